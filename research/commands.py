"""The commands' modules that this folder uses. No other module here knows where they are."""

from lorasa_jax.cli import diagnose, plan, saved, yaml_reader
from lorasa_jax.cli import flags as cli

__all__ = ["cli", "diagnose", "plan", "saved", "yaml_reader"]
