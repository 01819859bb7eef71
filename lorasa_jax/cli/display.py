"""The live line of a run, and its trackers."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lorasa_jax.cli.streams import can_redraw, complain
from lorasa_jax.config import Config, ConfigError
from lorasa_jax.running.state import Report

BAR = 16
WINDOW = 20
"""Iterations over which the shown speed is averaged."""


def duration(seconds: float) -> str:
    """Returns a duration as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def bar(share: float, encoding: str) -> str:
    """Returns a bar with the given share filled, in characters of the encoding."""
    filled = round(BAR * share)
    for full, empty in ("█░", "#-"):
        text = full * filled + empty * (BAR - filled)
        if text == text.encode(encoding, "replace").decode(encoding):
            break
    return text


class Display:
    """A line with the progress of a run; one line per evaluation if lines cannot be redrawn.

    Args:
        config: the run's configuration.
        file: output; None: stdout.
        wins: whether games can be won.
    """

    def __init__(self, config: Config, file: TextIO | None = None, wins: bool = True):
        self.config, self.wins = config, wins
        self._file = file or sys.stdout
        self._text = ""
        self._waits_since: float | None = None
        self._live = self._make_live() if can_redraw(self._file) else None
        self._ticks: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._seen: dict[str, float] = {}
        self._phase = ""

    def _make_live(self) -> Live:
        console = Console(file=self._file, force_terminal=True)
        return Live(
            get_renderable=self._line,
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # on the same terminal, stderr is printed above the line
        )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def status(self, text: str) -> None:
        """Shows a progress message, and on a terminal its duration."""
        self._ticks.clear()
        self._show(text, always=True, waits=True)

    def report(self, report: Report) -> float | None:
        """Shows one iteration; returns the speed in environment steps per second of all seeds, or None if unknown."""
        active = report.active
        if report.phase != self._phase:
            self._phase = report.phase
            self._ticks.clear()
        for name in ("return", "win_rate"):
            self._remember(name, report.metrics[name][active])
            if report.evaluation is not None:
                self._remember(f"greedy {name}", report.evaluation[name][active])
        done = float(report.env_steps.sum())
        self._ticks.append((time.perf_counter(), done))
        speed = self._speed()
        budget = self.config.iterations * self.config.steps_per_iteration
        share = float(report.env_steps.mean()) / budget
        left = f"{duration((budget * len(active) - done) / speed)} left" if speed else "-"
        wins = f"  win {self._recall('win_rate', '.0%')} (greedy {self._recall('greedy win_rate', '.0%')})"
        played = f"return {self._recall('return')} (greedy {self._recall('greedy return')}){wins if self.wins else ''}"
        self._show(
            f"{report.phase:8} {bar(share, self._file.encoding or 'utf-8')} "
            f"{report.env_steps.mean():,.0f}/{budget:,} steps  {f'{speed:,.0f}' if speed else '-'} steps/s  "
            f"{played if self._seen else 'no episode has ended yet'}  {left}",
            always=report.evaluation is not None,
        )
        return speed

    def _remember(self, name: str, values: np.ndarray) -> None:
        if np.isfinite(values).any():
            self._seen[name] = float(np.nanmean(values))

    def _recall(self, name: str, form: str = ".2f") -> str:
        return format(self._seen[name], form) if name in self._seen else "-"

    def _speed(self) -> float | None:
        if len(self._ticks) < 2:
            return None
        (began, before), (now, done) = self._ticks[0], self._ticks[-1]
        return (done - before) / max(now - began, 1e-9)

    def _show(self, text: str, always: bool, waits: bool = False) -> None:
        self._text, self._waits_since = text, time.perf_counter() if waits else None
        if self._live is None and always:
            print(text, file=self._file)

    def _line(self) -> Text:
        waited = "" if self._waits_since is None else f"  {duration(time.perf_counter() - self._waits_since)}"
        return Text(self._text + waited, overflow="ellipsis", no_wrap=True)


class Tracker:
    """Sends rows to a tracker until it fails. Trackers have only copies, so their errors do not end a run.

    Args:
        send: sends one row.
        close: closes the tracker.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None], close: Callable[[], None]):
        self._send, self._close, self._open = send, close, True

    def __call__(self, row: dict[str, Any]) -> None:
        """Sends one row."""
        if self._open:
            self._try(self._send, row)

    def close(self) -> None:
        """Closes the tracker."""
        self._try(self._close)

    def _try(self, do: Callable[..., None], *row: dict[str, Any]) -> None:
        try:
            do(*row)
        except Exception as error:  # the tracker's package may raise anything
            if self._open:
                complain(f"note: the tracker accepts no more data ({' '.join(str(error).split())}); the run goes on")
            self._open = False


def to_tensorboard(directory: Path) -> Tracker:
    """Returns a tracker that writes TensorBoard events directly; a writer with its own thread may hang when it ends."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    directory.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(directory / "events"))
    # A session that begins at step 0 overrides the events of earlier sessions.
    writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

    def send(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("seed", "env_steps"):
                summary = scalar(f"seed{row['seed']}/{key}", value)
                writer.write_event(Event(wall_time=time.time(), step=row["env_steps"], summary=summary))
        writer.flush()

    return Tracker(send, writer.close)


def to_wandb(directory: Path, config: dict[str, Any]) -> Tracker:
    """Returns a tracker that sends rows to Weights & Biases.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise ConfigError(
            "--track wandb needs the package wandb: pip install -c constraints.txt -e '.[wandb]'"
        ) from None

    run = wandb.init(project="lorasa_jax", name=directory.name, config=config)
    return Tracker(lambda row: run.log({f"seed{row['seed']}/{key}": value for key, value in row.items()}), run.finish)


@contextmanager
def tracker(kind: str, directory: Path, config: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Opens a tracker; yields a function that sends one row to it, or does nothing.

    A resumed run sends all its rows again, which override those of earlier commands.
    """
    if kind == "none":
        yield lambda row: None
        return
    with closing(to_tensorboard(directory) if kind == "tensorboard" else to_wandb(directory, config)) as track:
        yield track
