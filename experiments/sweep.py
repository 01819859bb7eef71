"""Run a grid of settings: one pretraining, many continuations: python experiments/sweep.py FILE.yaml."""

from lorasa_jax.cli import main

if __name__ == "__main__":
    main("sweep")
