"""Sizes of all sharing schemes, without training: python experiments/sizes.py --env smax --task 3s5z."""

from lorasa_jax.cli import main

if __name__ == "__main__":
    main("sizes")
