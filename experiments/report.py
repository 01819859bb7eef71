"""The command that moved to research/report.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lorasa_jax.cli import command

from research.report import main

if __name__ == "__main__":
    command.leave(main)
