"""LoRASA in JAX: one shared policy, and a small low-rank adapter for every agent."""
