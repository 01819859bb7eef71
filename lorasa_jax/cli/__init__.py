"""The command line: `lorasa train`, `lorasa sweep`, and so on. Heavy modules are imported only when needed."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": "train a team and leave a run directory",
    "sweep": "run a grid of settings",
    "evaluate": "play a saved run again",
    "diagnose": "say what the adapters of a saved run did",
    "export": "write a saved run's merged policy, or its adapters",
    "sizes": "count the parameters of all schemes",
}
"""One line of help for each command."""


def main(command: str | None = None) -> None:
    """Runs a command with the following words as its flags.

    Args:
        command: one of `COMMANDS`; None: the first word of the command line.
    """
    from lorasa_jax.cli.command import fail, leave
    from lorasa_jax.config import nearest

    if command is None:
        words = sys.argv[1:]
        if not words or words[0] in ("-h", "--help"):
            leave(_help)
            return
        command = words[0]
        if command not in COMMANDS:
            fail(f"unknown command {command!r}{nearest(command, COMMANDS)}; commands: {', '.join(COMMANDS)}")
        sys.argv = [f"{sys.argv[0]} {command}", *words[1:]]
    leave(importlib.import_module(f"lorasa_jax.cli.{command}").main)


def _help() -> None:
    print("usage: lorasa COMMAND [FLAGS]\n\nLoRASA in JAX: a shared policy, and a small adapter for every agent.\n")
    for name, about in COMMANDS.items():
        print(f"  {name:10}{about}")
    print("\nlorasa COMMAND --help shows the flags of a command.")
