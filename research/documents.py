"""The documents and figures that records give, and which of them are out of date."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd

from lorasa_jax.config import nearest, require
from lorasa_jax.files import write_text

from research import figures, records, tables
from research.commands import diagnose

DOCUMENTS = ("README.md", "docs/results.md", "docs/reproduce.md")
SHOWN_IN = "docs/results.md"
"""The document that must show every experiment."""
FIGURES_IN = "docs/figures"
BEGIN, END = "<!-- results: begin ", "<!-- results: end -->"
BLOCK = re.compile(rf"^{BEGIN}(?P<asked>[^>\n]*?) -->\n(?P<text>.*?)^{END}$", re.DOTALL | re.MULTILINE)
MARK = re.compile(rf"^({BEGIN}|{END})", re.MULTILINE)
CAPTIONS = {
    "curves": "greedy play over environment steps: means of seeds, 95 % bootstrap intervals; dotted: switches",
    "profile": "share of runs, over all tasks, that end above each result",
}


class Reporter:
    """The documents and figures of a repository, as its records give them."""

    def __init__(self, root: Path):
        self.root, self.experiments = root, records.read_experiments(root / "results")
        self.runs = pd.concat([e.runs for e in self.experiments.values()], ignore_index=True)
        self.anchors = {"anchors": [], **records.read_notes(root / "results" / "anchors.yaml")}
        self.figures = {name: (kind, data) for name, kind, data in figures.figures_of(self.runs)}

    def parts(self, name: str, document: Path) -> dict[str, tables.Blocks]:
        """Returns all parts on one experiment, in the order in which `all` shows them, and `seeds`."""
        written = (tables.setting, tables.targets, tables.overall, tables.schemes, tables.comparisons)
        return {
            **{part.__name__: part(self.experiments[name]) for part in written},
            **{kind: self.picture(f"{name}-{kind}", document) for kind in CAPTIONS},
            "diagnosis": self.diagnoses(name, document),
            "seeds": tables.seeds(self.experiments[name]),
        }

    def wholes(self, document: Path) -> dict[str, tables.Blocks]:
        """Returns all parts on all experiments together."""
        return {
            "beside": chain(tables.beside(self.runs), self.picture("beside", document)),
            "anchors": tables.anchors(self.runs, self.anchors),
            "plan": tables.plan(self.runs),
            "cost": tables.cost(self.experiments.values()),
        }

    def picture(self, name: str, document: Path) -> tables.Blocks:
        """Yields a figure, if there is one of this name."""
        if name in self.figures:
            path = os.path.relpath(self.root / FIGURES_IN / f"{name}.png", document.parent)
            yield f"![{CAPTIONS[self.figures[name][0]]}]({path})"

    def diagnoses(self, name: str, document: Path) -> tables.Blocks:
        """Yields what `diagnose.py` printed and drew, for every diagnosis beside the record."""
        for said in sorted((self.root / "results" / name).glob(f"diagnosis*/{diagnose.SAID_IN}")):
            yield from tables.diagnosis(said)
            for picture in sorted(said.parent.glob("*.png")):
                yield f"![{picture.stem}]({os.path.relpath(picture, document.parent)})"

    def text(self, asked: str, document: Path) -> str:
        """Returns what a block asks for: `PART NAME`, `all NAME`, or a part on all experiments.

        Raises:
            ConfigError: there is no such part or experiment.
        """
        part, _, name = asked.partition(" ")
        wholes, known = self.wholes(document), self.experiments
        if part in wholes and not name:
            return "\n\n".join(wholes[part])
        said = f"{document}: the block {asked!r} names no experiment in results/{nearest(name, known)}"
        require(name in known, f"{said}; there are {', '.join(known)}")
        parts = self.parts(name, document)
        said = f"{document}: there is no part {part!r}{nearest(part, parts)}; parts: all, "
        require(part == "all" or part in parts, said + ", ".join([*wholes, *parts]))
        chosen = [blocks for title, blocks in parts.items() if part == title or (part == "all" and title != "seeds")]
        return "\n\n".join(block for blocks in chosen for block in blocks)

    def document(self, path: Path) -> tuple[str, list[str]]:
        """Returns a document as it should be, and the blocks that differ from it now."""
        require(path.is_file(), f"there is no {path}; --root names a repository with {', '.join(DOCUMENTS)}")
        found, changed = path.read_text(encoding="utf-8"), []
        require(
            [BEGIN, END] * len(BLOCK.findall(found)) == MARK.findall(found),
            f"{path}: every `{BEGIN}PART NAME -->` needs an `{END}` of its own, each on a line",
        )

        def fill(match: re.Match[str]) -> str:
            text = f"\n{self.text(match['asked'], path)}\n\n"
            if text != match["text"]:
                changed.append(match["asked"])
            return f"{BEGIN}{match['asked']} -->\n{text}{END}"

        return BLOCK.sub(fill, found), changed

    def outdated(self) -> Iterator[tuple[Path, str, Callable[[], object]]]:
        """Yields every file that is not what the records give: its path, what is wrong, and what writes it anew."""
        for path in (self.root / name for name in DOCUMENTS):
            text, changed = self.document(path)
            wrong = f"is not what the records give in {', '.join(map(repr, changed))}"
            if changed:
                yield path, wrong, partial(write_text, path, text)
        for name, (kind, data) in self.figures.items():
            path = self.root / FIGURES_IN / f"{name}.png"
            if not figures.is_current(path, data):
                yield path, "is not drawn from the records", partial(figures.draw, kind, data, path)

    def require_shown(self) -> None:
        """Raises `ConfigError` if the results do not show an experiment."""
        path = self.root / SHOWN_IN
        shown = {asked for asked, _ in BLOCK.findall(path.read_text(encoding="utf-8"))}
        for name in self.experiments:
            place = f"give it a place with `{BEGIN}all {name} -->` and `{END}`"
            there = not shown.isdisjoint({f"all {name}", f"schemes {name}"})
            require(there, f"{path} does not show the experiment {name}; {place}")


def add(directories: Sequence[Path], name: str, more: bool, root: Path) -> str:
    """Records finished runs as one experiment, instead of what its record held or beside it; returns what it did.

    Raises:
        ConfigError: a directory is no finished run, there is no record to add to, or it holds these runs already.
    """
    for directory in directories:
        require(directory.is_dir(), f"there is no run or sweep {directory}")
    name = name or directories[0].resolve().name
    path = root / "results" / name / records.RECORD
    there = path.exists()
    require(there or not more, f"--more: there is no {path}; leave --more out, or give the experiment's --name")
    record = records.make_record(directories, records.read_record(path) if more else None)
    records.table_of(name, record)  # checks that its runs fit together
    records.write_record(record, path)
    return f"kept in {path}" + (", beside what was there" if more else ", in place of what was there" if there else "")
