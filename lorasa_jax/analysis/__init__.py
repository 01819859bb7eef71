"""What trained teams do, and what differs between their agents."""
