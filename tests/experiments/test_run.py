"""Whole runs in a toy game, through the command line's own entry point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorasa_jax import grouping, loop
from lorasa_jax.config import Config

import run

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
    assert names == {"config.json", "versions.json", "metrics.jsonl", "summary.json", "curve.png"}
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
    for name in ("wall_seconds", "compile_seconds", "steps_per_second"):
        assert summary[name] > 0
    for play in ("greedy", "sampled"):
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

    def train_with(config: Config, *_: Any) -> None:
        trained.append(config.groups)
        raise KeyboardInterrupt

    monkeypatch.setattr(grouping, "find_groups", lambda config, env, key: (0, 1))
    monkeypatch.setattr(loop, "run", train_with)
    with pytest.raises(SystemExit):
        run.main([*TINY, "--sharing", "seps", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == "grouping agents\n"
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


def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def press_ctrl_c(self: run.Reporter, report: Any) -> None:
        calls.append(self.record.add(report, {}))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Reporter, "report", press_ctrl_c)
    with pytest.raises(SystemExit) as stop:
        run.main([*TINY, "--out", str(tmp_path / "out")])
    assert stop.value.code == 130
    assert len(rows(tmp_path / "out")) == 4
    assert "stopped after 128 steps" in capsys.readouterr().err
