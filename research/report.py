"""Adds finished runs to the records, and writes the documents' tables and figures: python research/report.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lorasa_jax.config import ConfigError, require

from research.commands import command, flags


@dataclass(frozen=True)
class ReportConfig:
    """Write the numbers and figures of all documents again, from the records in results/."""

    add: tuple[Path, ...] = ()
    """Finished runs or sweeps to record first, together as one experiment: results/NAME/record.json."""
    name: str = ""
    """Name of that experiment; empty: that of the first directory."""
    more: bool = False
    """Add these runs to those that the experiment's record holds already, instead of replacing it."""
    check: bool = False
    """Write nothing; exit with 1 if a document is not what the records give."""
    root: Path = Path(__file__).parents[1]
    """Where README.md, docs/ and results/ are."""

    def __post_init__(self) -> None:
        require(not (self.check and self.add), "--check writes nothing, so it cannot be used with --add")
        require(bool(self.add) or not self.name, "--name names the experiment of the runs after --add; add some")
        require(bool(self.add) or not self.more, "--more adds the runs after --add to a record; add some")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with command.polite():
        config = flags.read_flags(ReportConfig, sys.argv[1:] if argv is None else argv)
        from research.documents import Reporter, add  # imports pandas, which --help can do without

        if config.add:
            print(add(config.add, config.name, config.more, config.root))
        reporter = Reporter(config.root)
        for path, wrong, write in reporter.outdated():
            if config.check:
                print(f"{path} {wrong}; run python research/report.py", file=sys.stderr)
                raise SystemExit(1)
            write()
            print(f"written: {path}")
        try:
            reporter.require_shown()
        except ConfigError as error:
            if config.check:
                raise
            print(f"note: {error}", file=sys.stderr)
        if config.check:
            print("all documents and figures are what the records give")


if __name__ == "__main__":
    command.leave(main)
