"""The live line shows where a run stands, and trackers are told what was measured."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lorasa_jax.running.state import ADAPTERS, SHARED, Report

import display
from cli import RunConfig, parse

CONFIG = parse(RunConfig, ["--env", "toy", "--n-envs", "8", "--rollout-length", "8", "--total-steps", "256"])


def told(phase: str, steps: list[int], returns: list[float], greedy: float | None = None) -> Report:
    values, active = np.array(returns), np.ones(len(steps), bool)
    names, played = ("return", "win_rate", "length"), np.full(len(steps), greedy)
    evaluation = None if greedy is None else dict.fromkeys(names, played)
    return Report(phase, np.array(steps), active, {"return": values, "win_rate": values / 2}, evaluation)


def test_without_a_terminal_there_is_a_line_per_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    said = io.StringIO()
    with display.Display(CONFIG, Console(file=said, width=200)) as shown:
        assert shown.report(told(SHARED, [64, 64], [0.5, 0.7])) is None  # one moment has no speed
        speed = shown.report(told(SHARED, [128, 128], [np.nan, np.nan], greedy=0.8))
        assert speed is not None and speed > 0
        assert shown.report(told(ADAPTERS, [192, 192], [1.0, 1.0], greedy=1.0)) is None  # another phase, another speed
    first, second = said.getvalue().splitlines()
    assert first.startswith("shared   ████████░░░░░░░░ 128/256 steps")
    assert "return 0.60 (greedy 0.80)  win 30% (greedy 80%)" in first  # where no episode ended, what was known stays
    assert second.startswith("adapters ████████████░░░░ 192/256 steps  - steps/s") and "return 1.00" in second


def test_where_nothing_can_be_won_nothing_is_said_of_it() -> None:
    said = io.StringIO()
    display.Display(CONFIG, Console(file=said, width=200), wins=False).report(told(SHARED, [64], [0.5], greedy=0.5))
    assert "return 0.50" in said.getvalue() and "win" not in said.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (61.9, "1:01"), (3_600, "1:00:00")])
def test_durations_are_written_as_on_a_clock(seconds: float, said: str) -> None:
    assert display.duration(seconds) == said


def test_a_tracker_gets_the_numbers_of_every_row(tmp_path: Path) -> None:
    with display.tracker("tensorboard", tmp_path, {}) as track:
        track({"seed": 3, "env_steps": 64, "phase": "shared", "return": 0.5, "win_rate": None})
    (events,) = tmp_path.glob("events*")
    assert b"seed3/return" in events.read_bytes() and b"win_rate" not in events.read_bytes()
    with display.tracker("none", tmp_path / "nowhere", {}) as track:
        track({"seed": 3})
    assert not (tmp_path / "nowhere").exists()
