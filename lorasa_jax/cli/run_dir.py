"""The run directory: configuration, versions, one row per iteration, a summary, and pictures."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorasa_jax.analysis.line_labels import name_lines
from lorasa_jax.cli.command import invocation
from lorasa_jax.cli.paths import read_json
from lorasa_jax.cli.saved import rows_of, scan_rows, words
from lorasa_jax.cli.streams import complain
from lorasa_jax.config import Config, ConfigError, changed_settings, require
from lorasa_jax.files import naming, whole, write_text
from lorasa_jax.running.state import Report
from lorasa_jax.sharing.schemes import outline
from lorasa_jax.surroundings import TOLD, switches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGES = ("lorasa-jax", "jax", "jaxlib", "flax", "optax", "chex", "jaxmarl", "brax", "mujoco", "numpy")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(_plain(data), indent=2) + "\n")


def _plain(value: Any) -> Any:
    """The value as JSON types; NaN (for example if no episode ended) becomes null."""
    match value:
        case dict():
            return {str(name): _plain(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case float() if not math.isfinite(value):
            return "inf" if value == math.inf else None
        case Path():
            return str(value)
    return value


def versions(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the versions behind a command: packages, interpreter, machine, commit, command line.

    Args:
        command: the words of the command line before the flags; None: `python` and the script.
    """
    import jax

    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {
        "packages": found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "switches": switches(),
        "commit": _commit(),
        "command": [*(command or ("python", sys.argv[0])), *sys.argv[1:]],
    }


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("-changed" if changed.strip() else "")


class RunDir:
    """Writes a run directory during the run.

    `metrics.jsonl` has one row per seed (or fork) and iteration. Each row is on disk before the next iteration. Only
    one process at a time writes a directory.

    Args:
        directory: the directory, which is created if it does not exist.
        config: the run's configuration.
        labels: labels of the rows of an iteration; None: their seeds.
    """

    def __init__(self, directory: Path, config: Config, labels: Sequence[dict[str, Any]] | None = None):
        self.directory, self.config = directory, config
        self.labels = labels or [{"seed": config.seed + k} for k in range(config.seeds)]
        self.rows: list[dict[str, Any]] = []
        self._made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        try:
            self._metrics = self._path.open("a+")
        except OSError:
            self._withdraw()
            raise
        self._lock()

    def _lock(self) -> None:
        """Locks the directory, if the file system supports locks."""
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(f"another process is writing {self.directory}; wait for it, or stop it") from None
        except OSError as error:
            complain(f"note: {self.directory} cannot be locked ({error.strerror}); no other process should write to it")

    def begin(self) -> None:
        """Writes configuration and versions of a new run.

        Raises:
            OSError: they cannot be written; a new directory is removed.
        """
        try:
            self._metrics.truncate(0)
            self._write_config()
            write_json(self.directory / "versions.json", versions(invocation()))
        except OSError:
            self._withdraw()
            raise

    def _withdraw(self) -> None:
        """Removes the directory of a run that could not start, if it is new and otherwise empty."""
        if not self._made:
            return
        with suppress(OSError):
            for name in ("metrics.jsonl", "config.json", "versions.json"):
                (self.directory / name).unlink(missing_ok=True)
            self.directory.rmdir()

    def notes(self) -> Iterator[str]:
        """Yields warnings for resuming this run."""
        diverged, made_with = self.directory / "diverged.json", self.directory / "versions.json"
        if diverged.exists():
            found = read_json(diverged)
            yield (
                f"this run diverged in iteration {found['iteration']} ({found['quantity']} became {found['value']} "
                f"for seed {found['seed']}), and will again if nothing else has changed"
            )
        if made_with.exists():
            then, now = read_json(made_with), versions()
            parts = ("packages", "python", "cpus", "devices")
            for name, before, after in changed_settings({p: then[p] for p in parts}, {p: now[p] for p in parts}):
                yield f"{name} is {after} now and was {before}, so the last bits of the numbers may differ"
            for name, before in then.get("switches", {}).items():
                after, what = now["switches"].get(name), TOLD.get(name, "last bits")
                if after != before:
                    yield f"{name.upper()} is {after} now and was {before}, so the {what} of the run may differ"

    def require_rows(self, n: int, iterations: Iterable[int]) -> tuple[list[dict[str, Any]], int]:
        """Returns the first rows of the metrics file, and their end in the file, in bytes.

        Args:
            n: number of rows.
            iterations: the last iteration of each label among these rows.

        Raises:
            ConfigError: there are fewer rows, or other ones.
        """
        found = list(islice(scan_rows(self._path), n))
        back = "put the whole file back, or go on from an older checkpoint"
        require(len(found) == n, f"{self._path} has only {len(found)} of the {n} rows before the checkpoint; {back}")
        rows = [row for row, _ in found]
        for label, last in zip(self.labels, iterations, strict=True):
            mine = [row.get("iteration") for row in rows_of(rows, _plain(label), self.labels)]
            whole = mine == list(range(int(last) - len(mine) + 1, int(last) + 1))
            require(whole, f"the first {n} rows of {self._path} are not those before the checkpoint, in order; {back}")
        return rows, found[-1][1] if found else 0

    def go_on(self, rows: list[dict[str, Any]], end: int) -> None:
        """Keeps these first rows, and drops rows that the resumed run will write again."""
        self.rows = rows
        self._metrics.truncate(end)
        if not self._path.read_bytes().endswith((b"\n", b"\r")) and rows:
            self._metrics.write("\n")
        for name in ("summary.json", "diverged.json"):
            (self.directory / name).unlink(missing_ok=True)
        self._write_config()
        before = read_json(self.directory / "versions.json")
        resumed = [*before.get("resumed", []), versions(invocation())]
        write_json(self.directory / "versions.json", {**before, "resumed": resumed})

    def _write_config(self) -> None:
        settings = dataclasses.asdict(self.config)
        for how in ("resume", "distributed"):  # flags of the command, not settings of the run
            settings.pop(how, None)
        write_json(self.directory / "config.json", settings)

    @property
    def wall_seconds(self) -> float:
        """Seconds of all commands up to the last row."""
        return self.rows[-1]["wall_seconds"] if self.rows else 0.0

    def add(self, report: Report, clock: dict[str, float | None]) -> list[dict[str, Any]]:
        """Writes one iteration; returns its rows."""
        rows = []
        for k in np.flatnonzero(report.active):
            evaluation = report.evaluation or {}
            row = {
                **self.labels[int(k)],
                "iteration": int(report.env_steps[k]) // self.config.steps_per_iteration,
                "env_steps": int(report.env_steps[k]),
                "phase": report.phase,
                **{name: values[k] for name, values in report.metrics.items()},
                **{f"eval_{name}": values[k] for name, values in evaluation.items()},
                **clock,
            }
            rows.append(_plain(row))
        with naming(Path(self._metrics.name)):
            os.stat(self._metrics.name)  # fails if the file was moved or removed; writing would not
            self._metrics.write("".join(json.dumps(row) + "\n" for row in rows))
            self._metrics.flush()
        self.rows += rows
        return rows

    def rows_of(self, label: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the rows of one label."""
        return rows_of(self.rows, _plain(label), self.labels)

    @property
    def names(self) -> list[str]:
        """The labels in words."""
        return list(map(words, self.labels))

    def close(self) -> None:
        """Closes the metrics file."""
        with suppress(OSError):  # an error of a full disk was reported before
            self._metrics.close()

    def draw_curve(self, wins: bool = True) -> None:
        """Draws return, and win rate if games can be won, of all seeds over environment steps."""
        if not self.rows:
            return
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        shown = ("return", "win_rate") if wins else ("return",)
        figure, axes = plt.subplots(1, len(shown), figsize=(5.5 * len(shown), 3.6), layout="constrained", squeeze=False)
        config = self.config
        numbers = sorted({label["seed"] for label in self.labels})
        seeds = f"seed {numbers[0]}" if len(numbers) == 1 else f"seeds {numbers[0]}-{numbers[-1]}"
        figure.suptitle(f"{config.task}, {config.algo}, {config.sharing}, {seeds}", fontsize=11)
        for axis, name in zip(axes[0], shown, strict=True):
            self._draw_measure(axis, name)
            if name == "win_rate":
                axis.set_ylim(-0.03, 1.03)
            name_lines(axis)
        with whole(self.directory / "curve.png") as file:
            figure.savefig(file, format="png", dpi=120)
        plt.close(figure)

    def _draw_measure(self, axis: Axes, name: str) -> None:
        """Draws a measure of all seeds, in training and in evaluations, and the switches."""
        from matplotlib.ticker import EngFormatter

        for key, colour, label in ((name, "#9aa5b1", "training, sampled"), (f"eval_{name}", "#1f5fa8", "greedy")):
            for i, (steps, values) in enumerate(self._curves(key)):
                marker = "." if key.startswith("eval") else None
                axis.plot(steps, values, color=colour, lw=1.2, marker=marker, alpha=0.75, label=None if i else label)
        switches, colour = sorted(self._switches()), "#c2410c"
        for step in switches:
            axis.axvline(step, color=colour, ls="--", lw=1)
        if switches:
            scheme = outline(self.config)
            said = "trunk frozen, adapters start" if scheme.frozen else "adapters start"
            said = said if scheme.levels else "optimiser reset"
            axis.annotate(
                said, (switches[0], 1), (0, 3), axis.get_xaxis_transform(), "offset points", color=colour, fontsize=8
            )
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set(xlabel="environment steps", ylabel=name.replace("_", " "))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)

    def _switches(self) -> set[int]:
        """The steps at which a seed switched from the shared phase to the adapters."""
        return {
            before["env_steps"]
            for label in self.labels
            for before, after in pairwise(self.rows_of(label))
            if before["phase"] != after["phase"]
        }

    def _curves(self, key: str) -> list[tuple[list[int], list[float]]]:
        found = []
        for label in self.labels:
            rows = [row for row in self.rows_of(label) if row.get(key) is not None]
            if rows:
                found.append(([r["env_steps"] for r in rows], [r[key] for r in rows]))
        return found
