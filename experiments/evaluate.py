"""Play a saved run, and say how sure the result is: python experiments/evaluate.py RUN."""

from lorasa_jax.cli import main

if __name__ == "__main__":
    main("evaluate")
