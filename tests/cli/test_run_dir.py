"""A run directory on file systems that do not do what they should."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorasa_jax.cli import flags as cli
from lorasa_jax.cli import run_dir as module
from lorasa_jax.cli import train as run
from lorasa_jax.cli.run_dir import RunDir
from lorasa_jax.config import Config
from lorasa_jax.running.state import SHARED, Report

CONFIG = cli.parse(cli.RunConfig, ["--env", "toy", "--total-steps", "8192"])
CODES = pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])


def one(step: int) -> Report:
    values = {name: np.ones(1) for name in ("return", "win_rate")}
    return Report(SHARED, np.array([step]), np.array([True]), values, values)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_said_and_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with closing(RunDir(tmp_path, CONFIG)) as run_dir:
        run_dir.begin()
    assert (tmp_path / "config.json").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"note: {tmp_path} cannot be locked ({os.strerror(code)})" in said


@CODES
@pytest.mark.parametrize("file", ["config.json", "versions.json"])
def test_a_run_that_cannot_begin_leaves_nothing_and_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, file: str
) -> None:
    write, out = module.write_json, tmp_path / "out"

    def full(path: Path, data: dict[str, Any]) -> None:
        if path.name == file:
            raise OSError(code, os.strerror(code), str(path))
        write(path, data)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(SystemExit) as stop:
        run.main(["--env", "toy", "--total-steps", "8192", "--cache", "False", "--out", str(out)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"error: {out / file}: {os.strerror(code)}; " in said
    assert said.endswith("or name another directory with --out\n")
    assert not out.exists()


@CODES
def test_a_run_that_was_there_stays_where_it_cannot_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with closing(RunDir(tmp_path, CONFIG)) as run_dir:
        run_dir.begin()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Path, text: str, **how: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", full)
    with closing(RunDir(tmp_path, CONFIG)) as run_dir, pytest.raises(OSError, match=r"config.json'$"):
        run_dir.begin()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_directory_that_cannot_hold_a_file_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, mode: str) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError):
        RunDir(tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_record_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, CONFIG)) as run_dir:
        run_dir._metrics.close()
        run_dir._metrics = open("/dev/full", "a+")  # noqa: SIM115
        with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
            run_dir.add(one(1024), {})
        assert run_dir.rows == []


def test_a_directory_that_was_moved_gets_no_more_rows(tmp_path: Path) -> None:
    """Its checkpoints would be elsewhere, in a new one under its old name."""
    with closing(RunDir(tmp_path / "out", CONFIG)) as run_dir:
        run_dir.add(one(1024), {})
        (tmp_path / "out").rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match=r"out/metrics.jsonl'$"):
            run_dir.add(one(2048), {})
    assert (tmp_path / "moved" / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(("wins", "shown"), [(True, ["return", "win rate"]), (False, ["return"])])
def test_a_curve_shows_win_rates_only_if_games_can_be_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wins: bool, shown: list[str]
) -> None:
    from matplotlib.figure import Figure

    drawn: list[str] = []

    def look(self: Figure, file: Any, **how: Any) -> None:
        drawn.extend(axis.get_ylabel() for axis in self.axes)
        Path(file).touch()

    monkeypatch.setattr(Figure, "savefig", look)
    with closing(RunDir(tmp_path, CONFIG)) as run_dir:
        run_dir.add(one(1024), {})
        run_dir.draw_curve(wins)
    assert drawn == shown


def test_a_curve_that_does_not_fit_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def half(self: Figure, path: Path, **how: Any) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with closing(RunDir(tmp_path, CONFIG)) as run_dir:
        run_dir.add(one(1024), {})
        run_dir.draw_curve()
        before = (tmp_path / "curve.png").read_bytes()
        monkeypatch.setattr(Figure, "savefig", half)
        with pytest.raises(OSError, match=r"curve.png'$"):
            run_dir.draw_curve()
    assert (tmp_path / "curve.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["curve.png", "metrics.jsonl"]


def test_a_run_says_which_python_it_ran_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others keep records of their commands, to which a place on this machine means nothing."""
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    monkeypatch.setenv("PATH", "")
    with closing(RunDir(tmp_path, Config())) as run_dir:
        run_dir.begin()
    assert '"command": [\n    "/elsewhere/python",' in (tmp_path / "versions.json").read_text()
    assert module.versions()["command"][0] == "python"
