"""Examples run, are short, and do what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) <= 80


def test_deltas_beat_the_shared_network_in_a_loop_of_ones_own(capsys):
    runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    losses = re.findall(r"task \d: loss (\S+) shared, (\S+) with its deltas", capsys.readouterr().out)
    assert len(losses) == 3
    for shared, own in losses:
        assert float(own) < 0.1 * float(shared)


@pytest.mark.slow
def test_adapters_on_a_network_of_ones_own_reach_the_optimum(capsys):
    assert runpy.run_path(str(EXAMPLES / "own_network.py"))["main"]() == 1.0
    assert "attention/query" in capsys.readouterr().out


@pytest.mark.slow
def test_a_callback_logs_and_stops_a_run_that_is_good_enough(capsys):
    runpy.run_path(str(EXAMPLES / "callback.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert re.search(r"adapters +[\d,]+ steps  return", told)
    steps, budget = (int(number.replace(",", "")) for number in re.findall(r"stopped at (\S+) of (\S+) steps", told)[0])
    assert steps < budget
    assert float(re.findall(r"steps: return (\S+)", told)[0]) >= 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_agents_in_an_environment_of_ones_own_learn_to_meet(capsys):
    runpy.run_path(str(EXAMPLES / "own_environment.py"), run_name="__main__")
    (met,) = re.findall(r"they meet in (\d+)% of the episodes", capsys.readouterr().out)
    assert int(met) >= 90


@pytest.mark.slow
def test_a_loss_of_ones_own_trains(capsys):
    runpy.run_path(str(EXAMPLES / "own_loss.py"), run_name="__main__")
    ((earned, random),) = re.findall(r"return (\S+), of random play (\S+)", capsys.readouterr().out)
    assert float(earned) >= 0.95 > float(random)


def test_an_unchanged_script_of_jaxmarl_gets_adapters_per_agent(capsys):
    stand_in = Path(__file__).parent / "stand_ins" / "mappo_script.py"
    shared, own = runpy.run_path(str(EXAMPLES / "jaxmarl_script.py"))["main"](str(stand_in))
    assert "params/ScannedRNN_0/GRUCell_1/hn/kernel" in capsys.readouterr().out
    assert (shared < 0.25).all() and (own > 0.3).all()


@pytest.mark.slow
def test_trunk_and_adapters_that_train_together_reach_the_optimum_too(capsys):
    last = runpy.run_path(str(EXAMPLES / "joint_training.py"))["main"]()
    assert last == {name: 1.0 for name in ("ps_id", "lorasa", "lorasa, free trunk", "lorasa_joint")}
    moved = dict(re.findall(r"^(\S.*?) {2,}.* (\S+)$", capsys.readouterr().out, re.MULTILINE))
    assert moved["lorasa"] == "0.000" and float(moved["lorasa, free trunk"]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_study_prunes_runs_and_finds_good_settings():
    optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")
    example = runpy.run_path(str(EXAMPLES / "tuning.py"))
    study = example["main"](8)
    states = [trial.state for trial in study.trials]
    assert len(states) == 8 and study.best_value > 0.9
    assert optuna.trial.TrialState.PRUNED in states
    cut = next(trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED)
    assert cut.last_step < example["STEPS"]
