"""Files: checkpoints, runs, adapters and teams."""
