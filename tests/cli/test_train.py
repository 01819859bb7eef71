"""Whole runs in a toy game, through the command line's own entry point."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import make_diary

from lorasa_jax.cli import display, page, run_dir, signals
from lorasa_jax.cli import flags as cli
from lorasa_jax.cli import train as run
from lorasa_jax.cli.run_dir import RunDir
from lorasa_jax.config import Config
from lorasa_jax.envs import make_env
from lorasa_jax.learning import clustering as grouping
from lorasa_jax.running import loop
from lorasa_jax.running.state import Diverged
from lorasa_jax.sharing.schemes import make_sharing
from lorasa_jax.storage import arrays as storage
from lorasa_jax.storage.saver import Saver

TINY = [
    "--env", "toy", "--cache", "False", "--total-steps", "512", "--n-envs", "8", "--rollout-length", "8",
    "--evaluations", "4", "--eval-episodes", "16", "--switch-step", "256", "--seeds", "2", "--seed", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("run") / "out"
    run.main([*TINY, "--out", str(path)])
    return path


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_files(directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    written = {"config.json", "versions.json", "metrics.jsonl", "summary.json", "curve.png", "report.html"}
    assert names == {*written, "checkpoints"}
    assert (directory / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_one_row_per_seed_and_iteration(directory: Path) -> None:
    found = [(row["seed"], row["iteration"], row["env_steps"], row["phase"]) for row in rows(directory)]
    expected = [(seed, i, 64 * i, "shared" if i <= 4 else "adapters") for i in range(1, 9) for seed in (3, 4)]
    assert found == expected
    measured = {
        "return", "win_rate", "kl", "clip_fraction", "entropy", "explained_variance", "actor_grad_norm",
        "critic_grad_norm", "lr", "steps_per_second", "wall_seconds",
    }  # fmt: skip
    assert all(measured <= row.keys() for row in rows(directory))
    assert sum("eval_return" in row for row in rows(directory)) == 2 * 4


def test_the_summary_says_what_was_run_and_found(directory: Path) -> None:
    summary = json.loads((directory / "summary.json").read_text())
    assert {name: summary[name] for name in ("env", "task", "algo", "sharing", "seeds", "env_steps")} == {
        "env": "toy", "task": "specialisation", "algo": "mappo", "sharing": "lorasa", "seeds": [3, 4], "env_steps": 512,
    }  # fmt: skip
    assert summary["switch_steps"] == [256, 256]
    for name in ("wall_seconds", "compile_seconds", "train_seconds"):
        assert summary[name] > 0
    assert summary["steps_per_second"] == pytest.approx(2 * 512 / summary["train_seconds"])
    for play in ("greedy", "sampled", "best"):
        for name in ("return", "win_rate"):
            assert len(summary["final"][play][name]) == 2
    params = summary["params"]
    assert params["total"] == params["shared"] + 2 * params["per_agent"] + params["critic"]
    assert {"shared", "per_agent", "critic", "total", "nps_total"} <= params.keys()


def test_the_configuration_is_kept_whole(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config.keys() >= Config().__dict__.keys()
    assert config["n_envs"] == 8
    assert json.loads((directory / "versions.json").read_text())["packages"]["jax"]


def test_groups_that_were_found_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train_with(config: Config, *_: Any, **__: Any) -> None:
        trained.append(config.groups)
        raise KeyboardInterrupt

    monkeypatch.setattr(grouping, "find_groups", lambda config, env, key: (0, 1))
    monkeypatch.setattr(loop, "run", train_with)
    with pytest.raises(SystemExit):
        run.main([*TINY, "--sharing", "seps", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == "grouping agents\ngroups of agents: 0 1\n"
    assert trained == [(0, 1)]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["groups"] == [0, 1]


def test_an_existing_directory_is_never_written_to(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run.main([*TINY, "--out", str(directory)])
    assert stop.value.code == 2
    assert "exists already; name another directory with --out" in capsys.readouterr().err
    assert (directory / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--task", "specialization"], "no toy game 'specialization' (did you mean 'specialisation'"),
        (["--task", "own_number", "--critic.scope", "team"], "use critic.scope agent or own"),
        (["--task", "own_number", "--n-agents", "1"], "n-agents must be 2 or more"),
        (
            ["--sharing", "seps", "--groups", "0", "0", "1"],
            "groups must name a cluster for each of the 2 agents, got 3",
        ),
        (["--groups", "0", "1"], "groups have no meaning under sharing lorasa"),
    ],
)
def test_what_does_not_fit_the_game_is_one_line(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main([*TINY, *argv, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


CLOCK = ("steps_per_second", "wall_seconds", "compile_seconds", "train_seconds")


def outcome(directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """What a run computed: its rows and summary but for the clock, and the digest of everything at its end."""
    summary = json.loads((directory / "summary.json").read_text())
    last = storage.read_meta(storage.complete(directory / "checkpoints")[-1])
    measured = [{name: row[name] for name in row if name not in CLOCK} for row in rows(directory)]
    return measured, {name: summary[name] for name in summary if name not in CLOCK}, last["leaves"]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals act as in a terminal, also where the tests run in the background of a script, which ignores Ctrl-C."""
    before = {number: signal.signal(number, handler) for number, handler in signals.Stop.DEFAULTS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, signals: Sequence[int] = (signal.SIGINT,)) -> None:
    """Lets signals arrive when so many iterations of a command have been reported."""
    seen, report = [], run.Reporter.__call__

    def report_and_press(self: run.Reporter, iteration: Any, state: Any) -> None:
        report(self, iteration, state)
        seen.append(iteration)
        if len(seen) == after:
            for number in signals:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(run.Reporter, "__call__", report_and_press)


def stopped(argv: list[str]) -> int:
    """The status with which a command ends before its time."""
    with pytest.raises(SystemExit) as stop:
        run.main(argv)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def resume(directory: Path, *argv: str) -> None:
    run.main(["--resume", str(directory), *argv])


def test_a_run_stopped_in_each_phase_ends_as_if_it_never_had_been(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        assert stopped([*TINY, "--out", str(out)]) == 130
    assert len(rows(out)) == 4
    said = capsys.readouterr().err
    assert "stopped after 128 steps" in said
    assert f"--resume {out}\n" in said
    copied = (out / "metrics.jsonl").read_bytes().replace(b"\n", b"\r\n")  # through another system
    (out / "metrics.jsonl").write_bytes(copied)
    with (out / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"seed": 3, "iteration": 3}\n{"seed": 4, "itera')  # as a kill may leave it
    with monkeypatch.context() as patch:
        interrupt(patch, after=4, signals=(signal.SIGTERM,))
        assert stopped(["--resume", str(out)]) == 143
    assert rows(out)[-1]["phase"] == "adapters"
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(display, "tracker", lambda *how: nullcontext(sent.append))
    resume(out, "--gif", "False", "--save-every", "0")
    assert outcome(out) == outcome(directory)
    assert sent == rows(out)  # a tracker is told the rows before, too
    wall = [row["wall_seconds"] for row in rows(out)]
    assert wall == sorted(wall)
    assert len(json.loads((out / "versions.json").read_text())["resumed"]) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_ctrl_c_stops_at_once_and_the_run_can_still_go_on(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its beginning here, since there was no time for a checkpoint."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt(patch, after=3, signals=(signal.SIGINT, signal.SIGINT))
        assert stopped([*TINY, "--out", str(out)]) == 130
    assert not (out / "checkpoints").exists()
    capsys.readouterr()
    resume(out)
    assert "has no checkpoint yet, so the run begins anew" in capsys.readouterr().err
    assert outcome(out) == outcome(directory)
    shutil.rmtree(out / "checkpoints")
    before = (out / "metrics.jsonl").read_bytes()
    assert stopped(["--resume", str(out), "--total-steps", "1024"]) == 2
    assert "holds a finished run, but no checkpoint to go on from" in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_has_nothing_left_to_do(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    resume(directory)
    assert capsys.readouterr().out == f"nothing is left to do: {directory} has all of its 512 steps\n"
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_larger_budget_goes_on_as_if_it_had_always_been_there(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.main([*TINY, "--total-steps", "384", "--evaluations", "3", "--out", str(out)])
    assert rows(out)[-1]["phase"] == "adapters"
    resume(out, "--total-steps", "512")
    assert outcome(out) == outcome(directory)
    assert json.loads((out / "config.json").read_text())["total_steps"] == 512


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rank", "3"], "--rank cannot change when a run is resumed: it is 8 in"),
        (["--ppo.lr", "0.25"], "--ppo.lr cannot change when a run is resumed"),
        (["--task", "synchronisation"], "--task cannot change"),
        (["--preset", "other"], "--preset cannot change"),
        (["--out", "elsewhere"], "--out cannot change"),
        (["--total-steps", "448"], "total-steps can only grow"),
    ],
)
def test_what_would_change_the_past_is_one_line(
    directory: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    before = {path: path.read_bytes() for path in directory.glob("*.json*")}
    assert stopped(["--resume", str(directory), *argv]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in directory.glob("*.json*")} == before


def test_a_checkpoint_or_rows_that_are_not_whole_are_one_line(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(directory, out)
    (out / "summary.json").unlink()  # as after a kill in the last moments
    older, newest = storage.complete(out / "checkpoints")
    metrics = (out / "metrics.jsonl").read_text()
    lines = metrics.splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    assert stopped(["--resume", str(out)]) == 2
    assert "has only 15 of the 16 rows before the checkpoint" in capsys.readouterr().err
    (out / "metrics.jsonl").write_text(metrics)
    shutil.rmtree(newest / "shared")
    assert stopped(["--resume", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.endswith(f"use the older one: {older}\n")
    resume(older)
    assert outcome(out) == outcome(directory)


def test_there_is_nothing_to_go_on_with_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(["--resume", str(tmp_path)]) == 2
    assert f"no run to resume in {tmp_path}: it has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert stopped(["--resume", str(tmp_path)]) == 2
    assert "is not valid JSON" in capsys.readouterr().err


def test_one_process_at_a_time_writes_a_directory(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(directory, tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    with closing(RunDir(tmp_path / "out", Config())):
        assert stopped(["--resume", str(tmp_path / "out")]) == 2
    assert "another process is writing" in capsys.readouterr().err


def test_a_run_that_diverges_says_where_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check, out = loop._Runner._check_finite, tmp_path / "out"

    def spoil(runner: loop._Runner, measured: dict, active: Any, env_steps: Any, *rest: Any) -> None:
        if env_steps[0] == 3 * 64:
            measured["kl"] = measured["kl"] * np.array([1.0, np.nan])
        check(runner, measured, active, env_steps, *rest)

    monkeypatch.setattr(loop._Runner, "_check_finite", spoil)
    assert stopped([*TINY, "--out", str(out)]) == 2
    (kept,) = storage.complete(out / "checkpoints")[-1:]
    assert kept.name == "4"
    message = capsys.readouterr().err.splitlines()[-1]
    assert "diverged: kl became nan for seed 4, in iteration 3" in message
    assert message.endswith(f"the state before is {kept}")
    told = json.loads((out / "diverged.json").read_text())
    assert {name: told[name] for name in ("quantity", "value", "seed", "iteration", "phase")} == {
        "quantity": "kl", "value": "nan", "seed": 4, "iteration": 3, "phase": "shared",
    }  # fmt: skip
    assert told["last_finite"] == rows(out)[-1]
    assert stopped(["--resume", str(out)]) == 2
    assert "note: this run diverged in iteration 3 (kl became nan for seed 4)" in capsys.readouterr().err


CODES = pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])


def failing(code: int, *name: str) -> Any:
    """A function that the file system does not let work."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code), *name)

    return fail


def fill(out: Path, monkeypatch: pytest.MonkeyPatch, train: Any = lambda *args, **kwargs: None) -> None:
    """Fills a run directory with what a run leaves that trains in no time."""
    monkeypatch.setattr(loop, "run", train)
    monkeypatch.setattr(run, "summarise", lambda *args: {"final": 1})
    monkeypatch.setattr(page, "write_page", lambda directory: directory)
    config = cli.parse(cli.RunConfig, [*TINY, "--out", str(out)])
    with closing(RunDir(out, config)) as run_dir:
        run.fill(config, make_env(config), run_dir, None, None, 0.0, "python again")


@CODES
def test_a_record_that_cannot_be_written_stops_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    with pytest.raises(SystemExit) as stop:
        fill(tmp_path, monkeypatch, failing(code))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert f"error: {tmp_path}: {os.strerror(code)}; " in message
    assert message.endswith("; go on with: python again\n")
    assert message.count("\n") == 1


@CODES
def test_a_run_whose_last_state_is_not_kept_has_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    """Going on with it gives the same numbers, and the team."""

    def train(saver: Saver, *args: Any, **kwargs: Any) -> None:
        saver._job = Future()
        saver._job.set_exception(OSError(code, os.strerror(code), "checkpoints/16"))

    monkeypatch.setattr(run, "run_saved", train)
    with pytest.raises(SystemExit) as stop:
        fill(tmp_path, monkeypatch)
    assert stop.value.code == 2
    complaint, error = capsys.readouterr().err.splitlines()
    assert complaint.startswith(f"a checkpoint could not be written: checkpoints/16: {os.strerror(code)}")
    assert error.endswith("; go on with: python again")
    assert not (tmp_path / "summary.json").exists()


@CODES
def test_a_picture_that_cannot_be_written_does_not_fail_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    monkeypatch.setattr(RunDir, "draw_curve", failing(code, "curve.png"))
    monkeypatch.setattr(run, "draw_episode", failing(code, "episode.gif"))
    fill(tmp_path, monkeypatch)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"final": 1}
    curve, episode = capsys.readouterr().err.splitlines()
    assert curve.startswith(f"note: not written: curve.png: {os.strerror(code)}")
    assert episode.startswith(f"note: not written: episode.gif: {os.strerror(code)}")


@CODES
def test_a_run_that_is_stopped_says_how_to_go_on_whatever_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "draw_curve", failing(code, "curve.png"))
    with pytest.raises(SystemExit) as stop:
        fill(tmp_path, monkeypatch, interrupted)
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith("go on with: python again\n")


@CODES
def test_a_run_that_diverges_says_so_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def diverges(*args: Any, **kwargs: Any) -> None:
        error = Diverged.__new__(Diverged, "kl became nan for seed 3")
        error.quantity, error.value, error.row, error.iteration, error.phase = "kl", float("nan"), 0, 1, "shared"
        error.culprit = None
        raise error

    monkeypatch.setattr(run, "run_saved", diverges)
    monkeypatch.setattr(run_dir, "write_json", failing(code, "diverged.json"))
    with pytest.raises(SystemExit) as stop:
        fill(tmp_path, monkeypatch)
    assert stop.value.code == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: not written: diverged.json: {os.strerror(code)}")
    assert "error: the run diverged: kl became nan for seed 3" in error


@pytest.mark.parametrize("number", signals.Stop.DEFAULTS)
def test_a_signal_that_is_sent_twice_is_one(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """As `timeout` does, to the command and to its group. Another kind may come with it."""
    with signals.Stop("stopping") as stop:
        for delay, again in ((0.1, number), (0.2, signal.SIGTERM)):
            threading.Timer(delay, os.kill, (os.getpid(), again)).start()
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert signal.getsignal(number) == signals.Stop.DEFAULTS[number]  # the next one acts at once
    assert capfd.readouterr().err == "\nstopping; press Ctrl-C again to stop at once\n"


def test_what_is_ignored_stays_ignored() -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.Stop("stopping") as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert stop.signal == 0


LONG = [
    "--env", "toy", "--n-envs", "8", "--rollout-length", "8", "--total-steps", "10_000_000", "--eval-episodes", "8",
    "--gif", "False", "--seeds", "1",
]  # fmt: skip


def test_a_run_whose_reader_ends_first_saves_and_ends_with_its_signal(tmp_path: Path) -> None:
    """As in `run.py 2>&1 | tee log`, where Ctrl-C reaches both."""
    out = tmp_path / "out"
    command = [sys.executable, str(Path(run.__file__)), *LONG, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while not (out / "metrics.jsonl").exists() or len(rows(out)) < 3:
            assert process.poll() is None
            time.sleep(0.1)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        threading.Timer(60, process.kill).start()
    assert process.returncode == 130
    assert storage.complete(out / "checkpoints")[-1].name == str(len(rows(out)))


@pytest.mark.slow
def test_a_run_to_which_no_stream_is_left_is_complete(directory: Path, tmp_path: Path) -> None:
    """Its files hold what it measured and nothing that was printed; this one goes on from the end of its training."""
    out = tmp_path / "out"
    shutil.copytree(directory, out)
    (out / "summary.json").unlink()
    command = f"'{sys.executable}' '{run.__file__}' --resume '{out}' <&- >&- 2>&-"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "FORCE_COLOR": "1"}
    assert subprocess.run(["sh", "-c", command], env=environment).returncode == 0
    assert outcome(out) == outcome(directory)


def unfinished(checkpoints: Path) -> set[tuple[str, int]]:
    """What is being written, or was when its run was killed."""
    entries = os.scandir(checkpoints) if checkpoints.is_dir() else ()
    return {(entry.name, entry.inode()) for entry in entries if "unfinished" in entry.name}


def kill(process: subprocess.Popen, checkpoints: Path, rng: random.Random) -> bool:
    """Kills a run: at some moment of its start, or about when it saves. Says whether that tore a checkpoint."""
    before = unfinished(checkpoints)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 10))
    else:
        seen, enough = set(before), len(before) + rng.randint(1, 8)
        while process.poll() is None and len(seen) < enough:
            seen |= unfinished(checkpoints)
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.wait()
    return not unfinished(checkpoints) <= before


@pytest.mark.slow
def test_a_run_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    """In the middle of saving too, which is what this run does most of its time."""
    rng, out, whole = random.Random(0), tmp_path / "out", tmp_path / "whole"
    argv = [*TINY, "--switch-step", "auto", "--total-steps", "5120", "--save-every", "0"]
    command = [sys.executable, str(Path(run.__file__))]
    subprocess.run([*command, *argv, "--out", str(whole)], check=True, capture_output=True)
    todo, torn, moments = [*argv, "--out", str(out)], 0, set()
    for _ in range(20):
        with subprocess.Popen(
            [*command, *todo], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            torn += kill(process, out / "checkpoints", rng)
            assert process.stderr is not None
            assert "rror" not in process.stderr.read()
        if not (out / "config.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            continue
        todo = ["--resume", str(out)]
        moments |= {path.name for path in storage.complete(out / "checkpoints")}
    assert torn > 2
    assert len(moments) > 5
    subprocess.run([*command, *todo], check=True, capture_output=True)
    assert outcome(out) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        *(f"--env smax --task 3m --ppo.chunk-length 10 --sharing {sharing}" for sharing in ("ps", "nps", "lorasa")),
        "--env smax --task 3m --ppo.chunk-length 10 --algo a2po",
        "--env mabrax --task hopper_3x1 --standardise True --ppo.minibatches 1",
        "--env mabrax --task hopper_3x1 --algo a2po --ppo.minibatches 1",
        "--env mujoco --task hopper_3x1 --standardise True --ppo.minibatches 1",
    ],
)
def test_a_battle_or_a_robot_goes_on_as_if_it_never_had_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    argv = [
        *flags.split(), "--n-envs", "4", "--rollout-length", "20", "--gif", "False",
        "--total-steps", "480", "--switch-step", "240", "--evaluations", "2", "--eval-episodes", "4",
    ]  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    run.main([*argv, "--out", str(whole)])
    for after in (2, 2):
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            stopped(["--resume", str(out)] if out.exists() else [*argv, "--out", str(out)])
    resume(out)
    assert outcome(out) == outcome(whole)


def test_a_switch_of_jax_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with jax.enable_x64(True), pytest.raises(SystemExit) as stop:
        run.main([*TINY, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    assert "error: lorasa_jax does not work with JAX_ENABLE_X64=True" in capsys.readouterr().err


def test_a_run_that_goes_on_under_another_switch_is_told_so(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "out")
    with closing(RunDir(tmp_path / "out", cli.read_config(cli.RunConfig, directory / "config.json"))) as found:
        assert list(found.notes()) == []
        with jax.threefry_partitionable(False):
            (note,) = found.notes()
    assert note == "JAX_THREEFRY_PARTITIONABLE is False now and was True, so the random numbers of the run may differ"


def test_what_a_user_may_not_expect_is_told() -> None:
    once = cli.parse(cli.RunConfig, ["--env", "toy", "--total-steps", "1024"])
    adapters, shared = (make_sharing(make_diary(4).spec, config) for config in (once, replace(once, sharing="ps")))
    assert [note[:39] for note in run.notes(once, adapters)] == ["the budget is a single iteration, so th"]
    assert not [*run.notes(replace(once, total_steps=4096), adapters)]
    late = replace(once, total_steps=4096, switch_step=1024, sharing="ps")
    assert [*run.notes(late, shared)] == ["--switch-step has no effect under --sharing ps, which has a single phase"]
    later = replace(once, total_steps=4096, sharing="lorasa_joint")
    assert [note[:44] for note in run.notes(later, make_sharing(make_diary(4).spec, later))] == [
        "adapters of the level agent begin with 0.25 ",
        "all agents receive the same reward, so adapt",
    ]
    at_once = replace(once, sharing="lorasa_joint", switch_step=0)
    joint = make_sharing(make_diary(4).spec, at_once)
    assert [*run.notes(at_once, joint)] == [
        "adapters of the level agent begin with 0.25 of the learning rate, and get more while agents' own weights play "
        "better than their mean"
    ]
    rounded = replace(once, total_steps=4000)
    assert [*run.notes(rounded, adapters)] == ["the run has 3,072 of 4,000 steps, which are whole iterations of 1,024"]
