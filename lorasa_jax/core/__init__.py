"""The parts of one agent's learning: no agents, no environments' loops."""
