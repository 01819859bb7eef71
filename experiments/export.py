"""Write a saved run's merged policy, or its adapters: python experiments/export.py RUN --out FILE."""

from lorasa_jax.cli import main

if __name__ == "__main__":
    main("export")
