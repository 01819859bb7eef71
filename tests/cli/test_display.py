"""The live line shows where a run stands, and trackers are told what was measured."""

from __future__ import annotations

import errno
import io
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter

from lorasa_jax.cli import display
from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.running.state import ADAPTERS, SHARED, Report

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
    with display.Display(CONFIG, said) as shown:
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
    display.Display(CONFIG, said, wins=False).report(told(SHARED, [64], [0.5], greedy=0.5))
    assert "return 0.50" in said.getvalue() and "win" not in said.getvalue()


def test_before_the_first_episode_ends_the_line_says_so() -> None:
    shown = display.Display(CONFIG, io.StringIO())
    shown.report(told(SHARED, [64], [np.nan]))
    assert "no episode has ended yet" in shown._line().plain
    shown.report(told(SHARED, [128], [0.5]))
    assert "return 0.50 (greedy -)" in shown._line().plain


def shown_on(stream: io.StringIO) -> list[str]:
    """The lines of a short run."""
    with display.Display(CONFIG, stream) as shown:
        shown.status("compiling [/update]")
        shown.report(told(SHARED, [64], [0.5], greedy=0.5))
    return stream.getvalue().splitlines()


def test_a_file_gets_whole_lines_whatever_the_environment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    status, line = shown_on(io.StringIO())
    assert (status, line[:8]) == ("compiling [/update]", "shared  ")
    assert "\x1b" not in line


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_that_cannot_move_its_cursor_gets_whole_lines(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    lines = shown_on(stream)
    assert (len(lines) == 2 and "\x1b" not in lines[1]) == (term == "dumb")


def test_a_bar_is_drawn_in_characters_that_there_are() -> None:
    assert display.bar(0.5, "utf-8") == "████████░░░░░░░░"
    assert display.bar(0.25, "latin-1") == display.bar(0.25, "ascii") == "####------------"


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (61.9, "1:01"), (3_600, "1:00:00")])
def test_durations_are_written_as_on_a_clock(seconds: float, said: str) -> None:
    assert display.duration(seconds) == said


def shown_by_tensorboard(directory: Path) -> list[tuple[str, int]]:
    """What is left of the scalars in a directory: a session that begins at a step takes later ones back."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: list[tuple[str, int]] = []
    for path in sorted(directory.glob("events*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = [(tag, step) for tag, step in found if step < event.step]
            found += [(value.tag, event.step) for value in event.summary.value]
    return found


def test_a_run_that_goes_on_leaves_each_number_once(tmp_path: Path) -> None:
    rows = [{"seed": 3, "env_steps": step, "return": 0.5} for step in (64, 128, 192, 256)]
    for k, sent in enumerate((rows[:3], rows[:2] + rows[2:])):  # from a checkpoint behind the second row
        (tmp_path / str(k)).mkdir()
        with display.tracker("tensorboard", tmp_path / str(k), {}) as track:
            for row in sent:
                track(row)
        for path in (tmp_path / str(k)).iterdir():
            path.rename(tmp_path / f"events.{k}")  # their own names are of the second in which they began
    assert shown_by_tensorboard(tmp_path) == [("seed3/return", step) for step in (64, 128, 192, 256)]


def test_a_tracker_gets_the_numbers_of_every_row(tmp_path: Path) -> None:
    with display.tracker("tensorboard", tmp_path, {}) as track:
        track({"seed": 3, "env_steps": 64, "phase": "shared", "return": 0.5, "win_rate": None})
    (events,) = tmp_path.glob("events*")
    assert b"seed3/return" in events.read_bytes() and b"win_rate" not in events.read_bytes()
    with display.tracker("none", tmp_path / "nowhere", {}) as track:
        track({"seed": 3})
    assert not (tmp_path / "nowhere").exists()


def test_a_tracker_that_fails_is_said_once_and_no_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: EventsWriter) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventsWriter, "flush", full)
    monkeypatch.setattr(EventsWriter, "close", lambda self: self._py_recordio_writer.close())
    with display.tracker("tensorboard", tmp_path, {}) as track:
        for step in range(100):
            track({"seed": 3, "env_steps": step, "return": 0.5})
    said = capsys.readouterr().err
    assert "the tracker accepts no more data ([Errno 28] No space left on device); the run goes on" in said
    assert said.count("\n") == 1
