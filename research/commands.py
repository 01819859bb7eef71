"""The commands' modules that this folder uses. No other module here knows where they are."""

from lorasa_jax import yaml_reader
from lorasa_jax.cli import command, diagnose, flags, paths, plan, saved

__all__ = ["command", "diagnose", "flags", "paths", "plan", "saved", "yaml_reader"]
