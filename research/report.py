"""Adds finished runs to the records, and writes the documents' tables and figures: python research/report.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from lorasa_jax.cli import command, diagnose, flags
from lorasa_jax.config import nearest, require
from lorasa_jax.files import write_text

from research import figures, tables
from research.runs import RECORD, Experiment, read_experiments, read_notes

DOCUMENTS = ("README.md", "docs/**/*.md")
"""Patterns of the documents in which blocks are filled."""
SHOWN_IN = "docs/results"
"""The folder with a page for every experiment."""
FIGURES_IN = "docs/figures"
BEGIN, END = "<!-- results: begin ", "<!-- results: end -->"
BLOCK = re.compile(rf"^{BEGIN}([^>\n]*?) -->\n.*?^{END}$", re.DOTALL | re.MULTILINE)
MARK = re.compile(rf"^({BEGIN}|{END})", re.MULTILINE)
CAPTIONS = {
    "curves": "greedy play over environment steps: means of seeds, 95 % bootstrap intervals; dotted: switches",
    "dial": "greedy play at the end over the number of roles: 0 is random play, 1 the best scheme; "
    "means of seeds, 95 % bootstrap intervals",
    "ablations": "greedy play at the end, with one setting changed; filled: the baseline; "
    "means of seeds, 95 % bootstrap intervals",
    "profile": "share of runs, over all tasks, that end above each result",
}


class Reporter:
    """The documents and figures of a repository, as its records give them."""

    def __init__(self, root: Path):
        self.root, self.experiments = root, read_experiments(root / "results")
        self.runs = pd.concat([e.runs for e in self.experiments.values()], ignore_index=True)
        self.anchors = {"anchors": [], **read_notes(root / "results" / "anchors.yaml")}
        self.figures = {name: (kind, data) for name, kind, data in figures.figures_of(self.runs)}

    def blocks(self, asked: str, document: Path) -> tables.Blocks:
        """Returns what a block asks for: `all` or `seeds` of an experiment, or a table of all experiments.

        Raises:
            ConfigError: there is no such block.
        """
        known = {
            "beside": chain(tables.beside(self.runs), self.picture("beside", document)),
            "anchors": tables.anchors(self.runs, self.anchors),
            "plan": tables.plan(self.runs),
            "cost": tables.cost(self.experiments.values()),
            "teams": tables.teams(),
            **{f"all {name}": self.everything(e, document) for name, e in self.experiments.items()},
            **{f"seeds {name}": tables.seeds(e) for name, e in self.experiments.items()},
        }
        said = f"{document}: the records give no block {asked!r}{nearest(asked, known)}"
        require(asked in known, f"{said}; they give {', '.join(known)}")
        return known[asked]

    def everything(self, e: Experiment, document: Path) -> tables.Blocks:
        """Yields all on one experiment but its single seeds, with what `diagnose.py` printed and drew."""
        for part in (tables.setting, tables.targets, tables.dial, tables.overall, tables.schemes, tables.comparisons):
            yield from part(e)
        for kind in CAPTIONS:
            yield from self.picture(f"{e.name}-{kind}", document)
        for said in sorted((self.root / "results" / e.name).glob(f"diagnosis*/{diagnose.SAID_IN}")):
            yield from tables.diagnosis(said)
            for picture in sorted(said.parent.glob("*.png")):
                yield f"![{picture.stem}]({os.path.relpath(picture, document.parent)})"

    def picture(self, name: str, document: Path) -> tables.Blocks:
        """Yields a figure, if there is one of this name."""
        if name in self.figures:
            path = os.path.relpath(self.root / FIGURES_IN / f"{name}.png", document.parent)
            yield f"![{CAPTIONS[self.figures[name][0]]}]({path})"

    def documents(self) -> list[Path]:
        """Returns all documents, those without blocks too."""
        return sorted(path for pattern in DOCUMENTS for path in self.root.glob(pattern))

    def document(self, path: Path) -> tuple[str, list[str]]:
        """Returns a document as it should be, and the blocks that differ from it now."""
        found, changed = path.read_text(encoding="utf-8"), []
        said = f"{path}: every `{BEGIN}PART NAME -->` needs an `{END}` of its own, each on a line"
        require(len(MARK.findall(found)) == 2 * len(BLOCK.findall(found)), said)

        def fill(match: re.Match[str]) -> str:
            text = "\n\n".join([f"{BEGIN}{match[1]} -->", *self.blocks(match[1], path), END])
            if text != match[0]:
                changed.append(match[1])
            return text

        return BLOCK.sub(fill, found), changed

    def outdated(self) -> Iterator[tuple[Path, str, Callable[[], object]]]:
        """Yields every file that is not what the records give: its path, what is wrong, and what writes it anew."""
        for path in self.documents():
            text, changed = self.document(path)
            if changed:
                wrong = f"is not what the records give in {', '.join(map(repr, changed))}"
                yield path, wrong, partial(write_text, path, text)
        for name, (kind, data) in self.figures.items():
            path = self.root / FIGURES_IN / f"{name}.png"
            if not figures.is_current(path, data):
                yield path, "is not drawn from the records", partial(figures.draw, kind, data, path)

    def not_shown(self) -> str:
        """Returns which experiment no page shows, and what to do; empty if all are shown."""
        pages = (path.read_text(encoding="utf-8") for path in (self.root / SHOWN_IN).glob("*.md"))
        shown = {asked for page in pages for asked in BLOCK.findall(page)}
        missing = next((name for name in self.experiments if f"all {name}" not in shown), "")
        page = f"{self.root / SHOWN_IN / missing}.md with `{BEGIN}all {missing} -->` and `{END}`"
        return missing and f"no page shows the experiment {missing}; write {page}"


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
        if config.add:
            name = config.name or config.add[0].resolve().name
            from research.records import add  # imports jax, which the rest can do without

            print(add(config.add, config.root / "results" / name / RECORD, config.more))
        reporter = Reporter(config.root)
        for path, wrong, write in reporter.outdated():
            if config.check:
                print(f"{path} {wrong}; run python research/report.py", file=sys.stderr)
                raise SystemExit(1)
            write()
            print(f"written: {path}")
        missing = reporter.not_shown()
        require(not (config.check and missing), missing)
        if missing:
            print(f"note: {missing}", file=sys.stderr)
        if config.check:
            print("all documents and figures are what the records give")


if __name__ == "__main__":
    command.leave(main)
