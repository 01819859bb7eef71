"""Train a team and leave a run directory: python experiments/run.py --env smax --task 2s3z."""

from lorasa_jax.cli import main

if __name__ == "__main__":
    main("train")
