"""Say what the adapters of a saved run did: python experiments/diagnose.py RUN."""

from lorasa_jax.cli import main

if __name__ == "__main__":
    main("diagnose")
