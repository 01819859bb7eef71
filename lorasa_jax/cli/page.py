"""Writes `report.html`, one self-contained page about a run or a sweep, with its pictures.

The page is made only from the files in a directory, so it can be made again at any time.
"""

from __future__ import annotations

import base64
import csv
import json
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from lorasa_jax.cli.paths import read_json
from lorasa_jax.files import write_text

PAGE = "report.html"
PICTURES = {"curve.png": "training and evaluations", "curves.png": "evaluations", "episode.gif": "a greedy episode"}
TYPES = {".png": "image/png", ".gif": "image/gif"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2530; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #d5dce3; padding: .25rem .75rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } figure { margin: 1.5rem 0 } figcaption { color: #5a6774; font-size: .9rem }
pre { background: #f3f5f7; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
"""


def write_page(directory: Path) -> Path:
    """Writes the page about the run or the sweep in a directory, and returns its path.

    Raises:
        ConfigError: one of the run's own files is missing or damaged.
    """
    is_run = (directory / "config.json").exists()
    parts = _run(directory) if is_run else _sweep(directory)
    head = f'<meta charset="utf-8"><title>{escape(directory.name)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{escape(directory.name)}</h1>", *parts])
    write_text(
        directory / PAGE, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    )
    return directory / PAGE


def _run(directory: Path) -> Iterator[str]:
    config, made_with = read_json(directory / "config.json"), read_json(directory / "versions.json")
    summary = read_json(directory / "summary.json") if (directory / "summary.json").exists() else {}
    yield f"<p>{escape(', '.join(str(config[name]) for name in ('task', 'algo', 'sharing')))}</p>"
    if summary:
        yield from _results(summary)
    yield from _pictures(directory)
    for said in sorted(directory.glob("diagnosis*/diagnosis.json")):
        yield f"<h2>{escape(said.parent.name.capitalize())}</h2>"
        yield _text(read_json(said)["said"])
        yield from (_picture(path, path.stem) for path in sorted(said.parent.glob("*.png")))
    yield "<h2>To repeat it</h2>"
    yield _text(shlex.join(entry["command"]) for entry in (made_with, *made_with.get("resumed", [])))
    packages = [[name, version] for name, version in made_with["packages"].items() if version]
    yield _table(["package", "version"], [*packages, ["Python", made_with["python"]], ["commit", made_with["commit"]]])
    yield f"<details><summary>All settings</summary>{_text([json.dumps(config, indent=2)])}</details>"


def _results(summary: dict[str, Any]) -> Iterator[str]:
    """The final results over seeds."""
    names = list(next(iter(summary["final"].values())))
    rows = [
        [play, *(_mean(values[name], summary["final_ci95"][play][name]) for name in names)]
        for play, values in summary["final"].items()
    ]
    yield "<h2>Results</h2>"
    yield _table(["play", *names], rows)
    about = {
        "seeds": " ".join(map(str, summary["seeds"])),
        "environment steps of each seed": f"{summary['env_steps']:,}",
        "adapters from step": " ".join(f"{step:,}" for step in summary["switch_steps"] or () if step),
        "episodes of an evaluation": summary["eval_episodes"],
        "steps per second": f"{summary['steps_per_second']:,.0f}",
        "parameters of the actors": f"{summary['params']['actors']:,}",
        "of one network per agent": f"{summary['params']['nps_actors']:,}",
    }
    yield _table(["", ""], [[name, value] for name, value in about.items() if value])


def _mean(values: list[float], interval: list[float] | None) -> str:
    """The mean of seeds, with its 95 % interval if there is one."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{sum(known) / len(known):.3f}"
    return mean + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _sweep(directory: Path) -> Iterator[str]:
    with (directory / "table.csv").open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    yield from _pictures(directory)
    yield "<h2>Runs</h2>"
    yield _table(names, rows)


def _pictures(directory: Path) -> Iterator[str]:
    yield from (_picture(directory / name, says) for name, says in PICTURES.items() if (directory / name).exists())


def _picture(path: Path, says: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(says)}" src="data:{TYPES[path.suffix]};base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(says)}</figcaption></figure>"


def _text(lines: Iterable[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _table(names: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(names, "th"), *(line(row, "td") for row in rows), "</table>"])
