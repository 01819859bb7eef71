"""Who shares which parameters, and the map over agents."""
