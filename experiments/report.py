"""Keep finished runs, and write the documents' tables and figures from what is kept: python experiments/report.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorasa_jax.config import ConfigError, nearest, require

from cli import polite, read_flags

if TYPE_CHECKING:
    from records import Experiment

DOCUMENTS = ("README.md", "docs/results.md", "docs/reproduce.md")
SHOWN_IN = "docs/results.md"
"""The document that must show every experiment: what is kept is not kept back."""
BEGIN, END = "<!-- results: begin ", "<!-- results: end -->"
BLOCK = re.compile(rf"^{BEGIN}(?P<asked>[^>\n]*?) -->\n(?P<text>.*?)^{END}$", re.DOTALL | re.MULTILINE)
MARK = re.compile(rf"^({BEGIN}|{END})", re.MULTILINE)
FIGURES_IN = Path("docs/figures")


@dataclass(frozen=True)
class ReportConfig:
    """Write the numbers and figures of all documents again, from the records in results/."""

    add: tuple[Path, ...] = ()
    """Finished runs or sweeps to keep first, together as one experiment: results/NAME/record.json."""
    name: str = ""
    """Name of that experiment; empty: that of the first directory."""
    more: bool = False
    """Keep what that experiment's record holds already, and these runs beside it."""
    check: bool = False
    """Write nothing; exit with 1 where a document is not what the records give."""
    root: Path = Path(__file__).parents[1]
    """Where README.md, docs/ and results/ are."""

    def __post_init__(self) -> None:
        require(not (self.check and self.add), "--check writes nothing, so there is nothing to --add with it")
        require(bool(self.add) or not self.name, "--name names what --add keeps; say which runs")
        require(bool(self.add) or not self.more, "--more keeps a record beside what --add adds to it; say which runs")


class Reporter:
    """The records of a repository, as parts of documents."""

    def __init__(self, root: Path):
        import yaml

        from records import read_experiments

        self.root = root
        self.experiments = read_experiments(root / "results")
        anchors = root / "results" / "anchors.yaml"
        self.anchors = yaml.safe_load(anchors.read_text()) if anchors.exists() else {"anchors": []}

    def figures(self) -> Iterator[tuple[str, Path, dict]]:
        """Yields kind, place and data of every figure."""
        import figures

        for e in self.experiments.values():
            for kind, data_of in figures.FIGURES.items():
                if data := data_of(e):
                    yield kind, self.root / FIGURES_IN / f"{e.name}-{kind}.png", data
        if data := figures.beside(self.experiments.values()):
            yield "curves", self.root / FIGURES_IN / "beside.png", data

    def parts(self, e: Experiment, document: Path) -> dict[str, Iterator[str]]:
        """Returns everything that can be said of an experiment, in the order in which it is."""
        import tables

        return {
            "setting": tables.setting(e),
            "targets": tables.targets(e),
            "overall": tables.overall(e),
            "schemes": tables.schemes(e),
            "comparisons": tables.comparisons(e),
            "curves": self._picture(e, "curves", document),
            "profile": self._picture(e, "profile", document),
            "diagnosis": self._diagnosis(e, document),
        }

    def _picture(self, e: Experiment, kind: str, document: Path) -> Iterator[str]:
        import figures

        if figures.FIGURES[kind](e):
            yield from self._shown(f"{e.name}-{kind}", kind, document)

    def _shown(self, name: str, kind: str, document: Path) -> Iterator[str]:
        said = {
            "curves": "greedy play over environment steps: means of seeds, 95 % bootstrap intervals; dotted: switches",
            "profile": "share of runs, over all tasks, that end above each result",
        }
        yield f"![{said[kind]}]({os.path.relpath(self.root / FIGURES_IN / f'{name}.png', document.parent)})"
        yield ""

    def _diagnosis(self, e: Experiment, document: Path) -> Iterator[str]:
        """What `diagnose.py` said of runs of the experiment, and drew, where that is kept beside the record."""
        from diagnose import SAID_IN
        from tables import said_by

        for said in sorted((self.root / "results" / e.name).glob(f"diagnosis*/{SAID_IN}")):
            yield from said_by(said)
            for picture in sorted(said.parent.glob("*.png")):
                yield f"![{picture.stem}]({os.path.relpath(picture, document.parent)})"
                yield ""

    def wholes(self, document: Path) -> dict[str, Iterator[str]]:
        """Returns what can be said of all experiments together."""
        import across

        known = list(self.experiments.values())
        return {
            "beside": self._beside(document),
            "anchors": across.anchors(known, self.anchors),
            "plan": across.plan(known),
            "cost": across.cost(known),
        }

    def _beside(self, document: Path) -> Iterator[str]:
        import across

        rows = list(across.beside(self.experiments.values()))
        yield from rows
        if rows:
            yield from self._shown("beside", "curves", document)

    def text(self, asked: str, document: Path) -> str:
        """Returns what stands in a block: `PART NAME`, `all NAME`, or `beside`, `anchors`, `plan` or `cost` of all
        experiments.

        Raises:
            ConfigError: there is no such part or experiment.
        """
        import tables

        part, _, name = asked.partition(" ")
        wholes = self.wholes(document)
        if part in wholes and not name:
            return "\n".join(wholes[part])
        known = self.experiments
        require(
            name in known,
            f"{document}: the block {asked!r} names no experiment in results/{nearest(name, known)}; "
            f"there are {', '.join(known) or 'none'}",
        )
        parts = self.parts(known[name], document)
        whole = {**parts, "seeds": tables.by_seed(known[name])}
        require(
            part == "all" or part in whole,
            f"{document}: there is no part {part!r}{nearest(part, whole)}; parts: all, {', '.join([*wholes, *whole])}",
        )
        chosen = parts.values() if part == "all" else [whole[part]]
        return "\n".join(line for lines in chosen for line in lines)

    def document(self, path: Path) -> tuple[str, list[str]]:
        """Returns a document as it should be, and the blocks in it that are not so now."""
        require(path.is_file(), f"there is no {path}; --root names a repository with {', '.join(DOCUMENTS)}")
        found, changed = path.read_text(), []
        require(
            [BEGIN, END] * len(BLOCK.findall(found)) == MARK.findall(found),
            f"{path}: every `{BEGIN}PART NAME -->` needs an `{END}` of its own, each on a line",
        )

        def fill(match: re.Match[str]) -> str:
            asked = match["asked"]
            text = f"\n{self.text(asked, path)}\n"
            if text != match["text"]:
                changed.append(asked)
            return f"{BEGIN}{asked} -->\n{text}{END}"

        return BLOCK.sub(fill, found), changed

    def require_shown(self) -> None:
        """Raises `ConfigError` where an experiment is kept that the results do not show."""
        path = self.root / SHOWN_IN
        shown = {asked for asked, _ in BLOCK.findall(path.read_text())}
        for name in self.experiments:
            require(
                f"all {name}" in shown or f"schemes {name}" in shown,
                f"{path} does not show the experiment {name}; give it a place with `{BEGIN}all {name} -->` and `{END}`",
            )


def add(directories: Sequence[Path], name: str, more: bool, root: Path) -> str:
    """Keeps finished runs as one experiment, in place of what was kept of it before or beside it; says where.

    Raises:
        ConfigError: a directory is no finished run, the record that gets more is not there, or it holds these runs.
    """
    from keep import make_record, write_record
    from records import RECORD, points_of, read_record

    for directory in directories:
        require(directory.is_dir(), f"there is no run or sweep {directory}")
    path = root / "results" / (name or directories[0].resolve().name) / RECORD
    there = path.exists()
    require(there or not more, f"--more: there is no {path}; leave it out, or give the experiment's --name")
    record = make_record(directories, read_record(path) if more else None)
    points_of(record, path)  # says what is there twice
    write_record(record, path)
    return f"kept in {path}" + (", beside what was there" if more else ", in place of what was there" if there else "")


def write(reporter: Reporter) -> Iterator[Path]:
    """Writes what is not as the records give it; yields what it wrote."""
    import figures

    for path in (reporter.root / name for name in DOCUMENTS):
        text, changed = reporter.document(path)
        if changed:
            path.write_text(text)
            yield path
    for kind, path, data in reporter.figures():
        if not figures.is_current(path, data):
            figures.draw(kind, data, path)
            yield path


def differences(reporter: Reporter) -> Iterator[str]:
    """Yields what is not as the records give it, one line each."""
    import figures

    for path in (reporter.root / name for name in DOCUMENTS):
        _, changed = reporter.document(path)
        if changed:
            yield f"{path} is not what the records give in {', '.join(repr(asked) for asked in changed)}"
    for _, path, data in reporter.figures():
        if not figures.is_current(path, data):
            yield f"{path} is not drawn from the records"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = read_flags(ReportConfig, sys.argv[1:] if argv is None else argv)
        if config.add:
            print(add(config.add, config.name, config.more, config.root))
        reporter = Reporter(config.root)
        if config.check:
            wrong = next(differences(reporter), None)
            if wrong is not None:
                print(f"{wrong}; run python experiments/report.py", file=sys.stderr)
                raise SystemExit(1)
            reporter.require_shown()
            print("all documents and figures are what the records give")
            return
        for path in write(reporter):
            print(f"written: {path}")
        try:
            reporter.require_shown()
        except ConfigError as error:
            print(f"note: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
