"""The commands' modules that this folder uses. No other module here knows where they are."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

import cli
import diagnose
import plan
import saved
import yaml_reader

__all__ = ["cli", "diagnose", "plan", "saved", "yaml_reader"]
