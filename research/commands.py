"""The commands' modules that this folder uses. No other module here knows where they are."""

from lorasa_jax.cli import command, diagnose, flags, paths, plan, saved, yaml_reader

__all__ = ["command", "diagnose", "flags", "paths", "plan", "saved", "yaml_reader"]
