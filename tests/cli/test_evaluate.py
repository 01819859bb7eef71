"""A saved run is played again, on start states of its own, and reported with how sure the result is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from saving import save_run

from lorasa_jax.analysis.statistics import bootstrap_interval
from lorasa_jax.cli import diagnose, evaluate
from lorasa_jax.cli import train as run
from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.cli.saved import labels_of, load_run
from lorasa_jax.learning import trainer
from lorasa_jax.storage.runs import load_run as load_row

EXPERIMENTS = Path(evaluate.__file__).parent


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a command that cannot work."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        evaluate.main(argv)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_a_run_is_played_as_it_was_learnt(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(saved), "--episodes", "16"])
    first, *lines, note = capsys.readouterr().out.splitlines()
    assert first == f"own_number, 16 greedy episodes of each seed, from {saved / 'checkpoints' / '10'}"
    assert lines[0] == "return    1.000 [1.000, 1.000]   by seed: 1.000  1.000"
    assert lines[1].startswith("win rate  100.0%")
    assert lines[2].startswith("length    1.0")
    assert note.endswith("over the means of 2 seeds")


def test_a_checkpoint_is_found_from_its_own_folder_and_through_a_link(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all who read it, and by a run that goes on."""
    (tmp_path / "latest").symlink_to(saved / "checkpoints" / "10")
    for folder, typed in ((saved / "checkpoints", "10"), (tmp_path, "latest")):
        monkeypatch.chdir(folder)
        _, checkpoint = load_run(Path(typed))
        assert checkpoint.resolve() == saved / "checkpoints" / "10"
        assert str(checkpoint) == typed or typed == "latest"
        assert labels_of(Path(typed)) == [{"seed": 3}, {"seed": 4}]
        assert diagnose.folder_of(diagnose.DiagnoseConfig(Path(typed)), 0) == "diagnosis-10"
        config = parse(RunConfig, ["--resume", typed])
        assert config.directory.resolve() == saved
        assert run.find_checkpoint(config) == checkpoint


def test_the_best_team_plays_where_asked(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(saved), "--episodes", "16", "--best", "True"])
    first, line, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("own_number, 16 best team's greedy episodes")
    assert line == "return    0.000 [0.000, 0.000]   by seed: 0.000  0.000"


def test_drawn_actions_have_the_policys_odds(saved: Path) -> None:
    team, _ = load_run(saved, eval_episodes=2000)
    played = evaluate.play(team, evaluate.keys(labels_of(saved), 0), greedy=False)["return"]
    assert played.shape == (2, 2000)
    assert np.any(played[0] != played[1])
    right = np.exp(2) / (np.exp(2) + 3)  # logits of 8 / 4 for the right action, 0 for the three others
    assert np.mean(played) == pytest.approx(right, abs=4 * np.sqrt(right * (1 - right) / 16_000))  # 4 deviations


def test_no_key_of_training_is_used_again_and_every_draw_is_another(saved: Path) -> None:
    used = [getattr(trainer, name) for name in ("_INIT", "_COLLECT", "_UPDATE", "_ATTACH", "_EVALUATE")]
    purposes = [*used, trainer.EPISODE, trainer.GROUPING, trainer.REPLAY]
    assert len(set(purposes)) == len(purposes)
    for seed, key in zip((3, 4), evaluate.keys(labels_of(saved), 7), strict=True):
        mine = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), trainer.REPLAY), 7)
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(mine))
    drawn = np.concatenate([jax.random.key_data(evaluate.keys(labels_of(saved), draw)) for draw in range(3)])
    assert len(np.unique(drawn, axis=0)) == 6


def test_the_interval_is_over_seeds_or_over_the_episodes_of_one() -> None:
    values = np.random.default_rng(0).normal(size=(3, 40))
    played = {name: values for name in ("return", "win_rate", "length")}
    for chosen, samples, said in (
        (played, values.mean(axis=1), "over the means of 3 seeds"),
        ({name: rows[:1] for name, rows in played.items()}, values[0], "over the 40 episodes of one seed"),
    ):
        low, high = bootstrap_interval(samples)
        lines = evaluate.report(chosen, wins=True)
        assert f"{samples.mean():.3f} [{low:.3f}, {high:.3f}]" in lines[0]
        assert lines[-1].endswith(said)
        # Where nothing can be won, nothing is said of it.
        assert evaluate.report(chosen, wins=False) == [line for line in lines if not line.startswith("win rate")]
        assert sum(line.startswith("win rate") for line in lines) == 1


def test_another_task_of_the_same_shapes_is_played(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four agents that choose four different actions earn all there is."""
    run_of_four = saved.parent / "four"
    save_run(run_of_four, "--n-agents", "4")
    evaluate.main([str(run_of_four), "--episodes", "16", "--task", "specialisation"])
    said = capsys.readouterr().out
    assert said.startswith("specialisation, 16")
    assert "return    1.000 [1.000, 1.000]" in said
    assert "but synchronisation needs float32[2, 1, 2]" in refusal(
        capsys, str(run_of_four), "--task", "synchronisation"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--task", "specialisation"), "but specialisation needs float32[2,"),
        (("--task", "own_numbr"), "no toy game 'own_numbr' (did you mean 'own_number'"),
        (("--episodes", "0"), "episodes must be positive, got 0"),
        (("--draw", "-1"), "draw must be 0 or more, got -1"),
        (("--gif", "x.gif"), "there is nothing to draw in own_number"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert said in refusal(capsys, str(saved), *argv)


def test_a_saved_team_is_evaluated_as_its_seed_of_the_run(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = load_row(saved, row=1)
    folder = team.save(tmp_path / "team")
    assert (team.config.seed, labels_of(folder)) == (4, [{"seed": 4}])
    evaluate.main([str(folder), "--episodes", "16"])
    first, *lines, note = capsys.readouterr().out.splitlines()
    assert first == f"own_number, 16 greedy episodes of each seed, from {folder / 'checkpoints' / '10'}"
    assert lines[0] == "return    1.000 [1.000, 1.000]"
    assert note.endswith("over the 16 episodes of one seed")
    assert "has only what one team needs to play" in refusal(capsys, str(folder), "--best", "True")


def test_a_name_that_no_team_has_is_answered_with_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "spred_30x5")
    assert "there is no folder and no trained team 'spred_30x5' (did you mean 'spread_30x5'?); teams: " in said


def test_what_is_no_run_is_named(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"there is no run in {tmp_path}" in refusal(capsys, str(tmp_path))
    assert f"there is no checkpoint {saved}/checkpoints/9" in refusal(capsys, str(saved / "checkpoints" / "9"))
    shutil.copytree(saved, tmp_path / "job" / "1-ps")
    assert "its folders 1-ps do: name one of them" in refusal(capsys, str(tmp_path / "job"))
    shutil.copy(saved / "config.json", tmp_path / "config.json")
    assert f"{tmp_path} has no checkpoint yet" in refusal(capsys, str(tmp_path))
    for text in ("[" * 100_000, "\x80", '{"env": "smax", "evil": 1}', "[]"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        assert str(tmp_path) in refusal(capsys, str(tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    save_run(tmp_path / "run", spoilt=value)
    message = refusal(capsys, str(tmp_path / "run"))
    assert "learner/actor/shared/fc1/bias in checkpoint" in message
    assert message.endswith("holds NaN or infinity\n")


def test_standardised_inputs_come_along(tmp_path: Path) -> None:
    team, _ = load_run(save_run(tmp_path / "run", "--standardise", "True"))
    stats = team.weights.inputs[0]
    assert stats.mean.shape == (2, 4, 2)
    assert np.all(np.asarray(stats.mean) != 0)


@pytest.mark.parametrize("script", ["evaluate.py", "export.py", "diagnose.py"])
def test_help_is_instant_and_needs_no_jax(script: str) -> None:
    code = f"import runpy, sys; sys.path.insert(0, {str(EXPERIMENTS)!r}); sys.argv = [{script!r}, '--help']\n"
    code += f"try: runpy.run_path({str(EXPERIMENTS / script)!r}, run_name='__main__')\n"
    code += "except SystemExit: print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RUN/checkpoints/N" in " ".join(done.stdout.split())
    assert done.stdout.strip().endswith("False")


@pytest.mark.slow
def test_a_battle_is_played_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, frames = tmp_path / "out", []
    argv: list[Any] = ["--env", "smax", "--task", "3m", "--n-envs", "4", "--rollout-length", "20", "--out", out]
    argv += ["--total-steps", "160", "--switch-step", "80", "--evaluations", "1", "--eval-episodes", "4"]
    run.main([*map(str, argv), "--gif", "False", "--ppo.chunk-length", "10"])
    for name, how in (("a", []), ("b", ["--sampled", "True"]), ("c", ["--sampled", "True"])):
        gif = tmp_path / "made" / f"{name}.gif"
        evaluate.main([str(out), "--episodes", "8", "--gif", str(gif), *how])
        frames.append(gif.read_bytes())
    assert frames[0] != frames[1] == frames[2]
    evaluate.main([str(out), "--episodes", "8", "--gif", str(tmp_path / "short.gif"), "--gif-steps", "3"])
    with Image.open(tmp_path / "short.gif") as film:
        assert film.n_frames <= 4
    assert "3m, 8 sampled episodes" in capsys.readouterr().out
