"""The live line of a run, and what it sends to a tracker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lorasa_jax.config import Config, ConfigError
from lorasa_jax.running.state import Report

BAR = 16
WINDOW = 20
"""Iterations behind the speed that is shown."""


def duration(seconds: float) -> str:
    """Returns a duration as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Display:
    """One line that says where a run stands; without a terminal, one line per evaluation."""

    def __init__(self, config: Config, console: Console | None = None, wins: bool = True):
        self.config, self.wins = config, wins
        self.console = console or Console(stderr=False, highlight=False)
        self._text = ""
        self._waits_since: float | None = None
        self._live = Live(get_renderable=self._line, console=self.console, refresh_per_second=4, transient=True)
        self._ticks: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._seen: dict[str, float] = {}
        self._phase = ""

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def status(self, text: str) -> None:
        """Shows what happens now, and on a terminal for how long it has."""
        self._ticks.clear()
        self._show(text, always=True, waits=True)

    def report(self, report: Report) -> float | None:
        """Shows one iteration; returns the speed, in environment steps per second of all seeds, once it is known."""
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
        filled = round(BAR * share)
        left = f"{duration((budget * len(active) - done) / speed)} left" if speed else "-"
        wins = f"  win {self._recall('win_rate', '.0%')} (greedy {self._recall('greedy win_rate', '.0%')})"
        self._show(
            f"{report.phase:8} {'█' * filled}{'░' * (BAR - filled)} "
            f"{report.env_steps.mean():,.0f}/{budget:,} steps  {f'{speed:,.0f}' if speed else '-'} steps/s  "
            f"return {self._recall('return')} (greedy {self._recall('greedy return')})"
            f"{wins if self.wins else ''}  {left}",
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
        if not self.console.is_terminal and always:
            self.console.print(text, soft_wrap=True)

    def _line(self) -> Text:
        waited = "" if self._waits_since is None else f"  {duration(time.perf_counter() - self._waits_since)}"
        return Text(self._text + waited, overflow="ellipsis", no_wrap=True)


@contextmanager
def tracker(kind: str, directory: Path, config: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Holds a tracker open; gives what sends one row to it, or does nothing."""
    if kind == "tensorboard":
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(directory)) as writer:

            def to_tensorboard(row: dict[str, Any]) -> None:
                for key, value in row.items():
                    if isinstance(value, int | float) and key not in ("seed", "env_steps"):
                        writer.add_scalar(f"seed{row['seed']}/{key}", value, row["env_steps"])

            yield to_tensorboard
    elif kind == "wandb":
        try:
            import wandb
        except ModuleNotFoundError:
            raise ConfigError(
                "--track wandb needs the package wandb: pip install -c constraints.txt -e '.[wandb]'"
            ) from None

        with wandb.init(project="lorasa_jax", name=directory.name, config=config) as run:
            yield lambda row: run.log({f"seed{row['seed']}/{key}": value for key, value in row.items()})
    else:
        yield lambda row: None
