"""One iteration: rollouts, updates, and the two phases."""
