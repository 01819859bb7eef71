"""Finds the checkpoint of a saved run, and loads its teams."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasa_jax.cli.flags import RunConfig, from_settings, read_config
from lorasa_jax.cli.paths import CHECKPOINTS, ROWS, locate, read_json, run_of
from lorasa_jax.config import require
from lorasa_jax.surroundings import prepare

if TYPE_CHECKING:
    from lorasa_jax.storage.checkpoints import SavedTeam

Label = dict[str, Any]
"""The label of a row: its seed, and in a sweep the settings of its point."""


def labels_of(path: Path) -> list[Label]:
    """Returns the labels of the rows of a run."""
    directory = run_of(path)
    if (directory / ROWS).exists():
        labels: list[Label] = read_json(directory / ROWS)["rows"]
        return labels
    config = read_config(RunConfig, directory / "config.json")
    return [{"seed": config.seed + k} for k in range(config.seeds)]


def scan_rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the rows of a `metrics.jsonl`, each with the end of its line in the file, in bytes.

    Line ends of all systems and blank lines are accepted. An incomplete last line is ignored.

    Raises:
        ConfigError: another line is invalid.
    """
    end, content = 0, path.read_bytes()
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            cut_short = end == len(content) and not line.endswith((b"\n", b"\r"))
            require(cut_short, f"line {number} of {path} is not a row of measurements; restore the file")
            return
        yield row, end


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl` (`scan_rows`); no rows if the file does not exist."""
    return [row for row, _ in scan_rows(path)] if path.exists() else []


def rows_of(rows: list[dict[str, Any]], label: Label, labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Returns the rows of a run with one of its labels.

    Labels of one program may name different settings, for example one a rank and another a placement, so one label may
    be part of another. A row belongs to the label with exactly the row's settings.
    """
    names = {name for known in labels for name in known}
    return [row for row in rows if {name: row[name] for name in names & row.keys()} == label]


def word(value: Any) -> str:
    """Returns the value of a setting in the form of flags and labels."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def words(label: Label) -> str:
    """Returns a label as text."""
    return ", ".join(f"{name} {word(value)}" for name, value in label.items())


def measures(wins: bool) -> tuple[tuple[str, str], ...]:
    """Returns the measures to report, with formats; win rates only if games can be won."""
    return (("return", ".3f"), ("win_rate", ".1%")) if wins else (("return", ".3f"),)


def points_of(labels: list[Label]) -> dict[str, list[int]]:
    """Returns the rows of every point by the point's name, which is empty if rows differ only in seeds."""
    found: dict[str, list[int]] = {}
    for k, label in enumerate(labels):
        point = words({name: value for name, value in label.items() if name != "seed"})
        found.setdefault(point, []).append(k)
    return found


def find_row(path: Path, seed: int | None, row: int | None) -> int:
    """Returns the index of a row of a run, given by its seed or its number; by default the first."""
    seeds = [label["seed"] for label in labels_of(path)]
    if row is not None:
        require(0 <= row < len(seeds), f"the rows of this run are 0 to {len(seeds) - 1}, got {row}")
        require(
            seed in (None, seeds[row]), f"row {row} of this run has seed {seeds[row]}, not {seed}; name one of the two"
        )
        return row
    require(
        len(set(seeds)) == len(seeds),
        f"this run holds several points; name one with --row, 0 to {len(seeds) - 1} as {ROWS} lists them",
    )
    seed = seeds[0] if seed is None else seed
    require(seed in seeds, f"the seeds of this run are {min(seeds)} to {max(seeds)}, got {seed}")
    return seeds.index(seed)


def row_config(config: RunConfig, path: Path, k: int) -> RunConfig:
    """Returns the configuration of row k of a run, which may differ from that of its program."""
    directory = run_of(path)
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    rows = read_json(directory / ROWS) if (directory / ROWS).exists() else {}
    own = rows["own"][k] if "own" in rows else {}  # in older files only in labels, or missing
    for name, value in {**own, **labels_of(path)[k]}.items():
        *sections, last = name.replace("-", "_").split(".")
        branch = settings
        for section in sections:
            branch = branch[section]
        branch[last] = value if isinstance(value, list) or not isinstance(branch[last], list) else [value]
    for name in ("resume", "distributed"):
        settings.pop(name)
    return from_settings(RunConfig, {**settings, "seeds": 1}, directory / "config.json")


def find_checkpoint(path: Path) -> tuple[RunConfig, Path]:
    """Returns a run's settings and a checkpoint: the named one, or the newest of the named run."""
    from lorasa_jax.storage.arrays import complete

    directory, checkpoint = locate(path)
    settings = directory / "config.json"
    jobs = sorted(path.parent.name for path in directory.glob("*/config.json"))
    beside = f", but those of its folders {', '.join(jobs)} do: name one of them" if jobs else ""
    require(settings.is_file(), f"there is no run in {directory}: it has no config.json{beside}")
    config = read_config(RunConfig, settings)
    if checkpoint is not None:
        return config, checkpoint
    found = complete(directory / CHECKPOINTS)
    require(bool(found), f"{directory} has no checkpoint yet; one is written after a minute, or when the run stops")
    return config, found[-1]


def load_run(path: Path, valued: bool = False, best: bool = False, **changes: Any) -> tuple[SavedTeam, Path]:
    """Returns the last or the best teams of a run (with critics), under changed settings, and the checkpoint."""
    prepare()
    from lorasa_jax.envs import make_env
    from lorasa_jax.storage.checkpoints import load_team

    config, checkpoint = find_checkpoint(path)
    config = dataclasses.replace(config, **changes)
    return load_team(checkpoint, config, make_env(config), valued=valued, best=best), checkpoint
