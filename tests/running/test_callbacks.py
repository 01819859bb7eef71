"""Callbacks look on and stop a run."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, small_config

from lorasa_jax.config import ConfigError
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.running.callbacks import Callback, Callbacks, early_stopping
from lorasa_jax.running.loop import run
from lorasa_jax.running.state import ADAPTERS, SHARED, Report, RunState

ITERATIONS = 3


TRAIN: Any = SimpleNamespace(iteration=jnp.array([20, 20]))
STATE = RunState(SHARED, TRAIN, TRAIN, (None, None), (), (), evaluation_interval=4, compile_seconds=0, train_seconds=0)
REPORT = Report(SHARED, np.array([20, 20]), np.array([True, True]), {}, None)


class Recorder(Callback):
    def __init__(self) -> None:
        self.states: list[Any] = []
        self.reports: list[Any] = []
        self.ends: list[Any] = []

    def begin(self, state: Any) -> None:
        self.states.append(state)

    def __call__(self, report: Any, state: Any) -> None:
        self.reports.append(report)
        self.states.append(state)

    def end(self, state: Any) -> None:
        self.ends.append(state)


def test_a_stopped_run_is_evaluated_and_goes_on_to_the_same_end() -> None:
    config, env = small_config(task="probe_death"), make_toy("probe_death", 3)
    batch = config.steps_per_iteration
    config = replace(config, total_steps=ITERATIONS * batch, evaluations=ITERATIONS)
    whole, recorder = Recorder(), Recorder()
    expected = run(config, env, [whole])
    assert expected.stop_steps is None
    stopped = run(config, env, [lambda report, state: report.env_steps.min() >= 2 * batch, recorder])
    assert stopped.stop_steps == [2 * batch]
    assert len(recorder.reports) == 2, "a callback behind the one that stops sees the iteration too"
    assert [len(part.ends) for part in (whole, recorder)] == [1, 1]
    last = recorder.ends[0]
    assert last is recorder.states[-1]
    assert_same(last.train.learner, whole.states[2].train.learner)
    assert set(stopped.final) == {"greedy", "sampled", "best"}
    again = run(config, env, start=last)
    assert again.stop_steps is None
    assert_same((again.final, again.states.learner), (expected.final, expected.states.learner))


def test_a_run_can_be_stopped_before_it_begins() -> None:
    class Never(Callback):
        def begin(self, state: Any) -> bool:
            return True

    result = run(small_config(task="probe_death"), make_toy("probe_death", 3), [Never()])
    assert result.stop_steps == [0]
    assert result.states.iteration.tolist() == [0]


def test_functions_and_objects_with_some_of_the_methods_are_callbacks() -> None:
    seen: list[Any] = []

    class Status:
        def __call__(self, report: Any, state: Any) -> None:
            seen.append(state)

        def status(self, text: str) -> None:
            seen.append(text)

    callbacks = Callbacks([Status(), lambda report, state: seen.append("function")])
    assert not callbacks.begin(STATE)
    assert not callbacks(REPORT, STATE)
    callbacks.status("text")
    callbacks.end(STATE)
    assert seen == [STATE, "function", "text"]


@pytest.mark.parametrize(
    ("answer", "stops"), [(True, True), (np.True_, True), (False, False), (None, False), (1, False), ([0], False)]
)
def test_only_true_stops(answer: Any, stops: bool) -> None:
    assert Callbacks([lambda report, state: answer, lambda report, state: None])(REPORT, STATE) is stops


def one_argument(report: Any) -> None:
    """Not a callback."""


class NoArguments:
    def __call__(self) -> None:
        """Not a callback."""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(one_argument, r"one_argument takes \(report: 'Any'\)"), (NoArguments(), r"NoArguments takes \(\)")],
)
def test_a_callback_that_does_not_take_a_report_and_a_state_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Callbacks([wrong])
    wrapper = wraps(one_argument)(lambda report, state: one_argument(report))
    Callbacks([print, max, lambda report, state, more=0: None, wrapper])  # of which some have no known signature


@pytest.mark.parametrize("wrong", [print, "display", [None], {"a": print}, 3])
def test_what_is_no_list_of_functions_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="callbacks must be a list of functions"):
        Callbacks(wrong)


def ask(
    stop: Any, returns: list[float], *, since: tuple[int, ...] = (0, 0), active: tuple[bool, ...] = (True, True),
    phase: str = SHARED, after: str | None = None, measured: bool = True,
) -> bool:  # fmt: skip
    """Whether a callback stops after an evaluation in iteration 20, the best one having been so many before."""
    evaluation = {"return": np.array(returns), "win_rate": np.array(returns) / 10} if measured else None
    report = Report(phase, np.array([20, 20]), np.array(active), {}, evaluation)
    best: Any = SimpleNamespace(iteration=jnp.array([20 - ago for ago in since]))
    return bool(stop(report, STATE._replace(best=best, phase=after or phase)))


def test_a_run_stops_when_every_row_that_trains_is_good_enough() -> None:
    stop = early_stopping(5.0)
    assert ask(stop, [5.0, 6.0]) and not ask(stop, [4.9, 6.0])
    assert ask(stop, [4.9, 6.0], active=(False, True)), "the other row waits, and will not change"
    assert not ask(stop, [5.0, 6.0], measured=False)
    assert ask(early_stopping(0.5, measure="win_rate"), [5.0, 6.0])
    assert not ask(early_stopping(0.7, measure="win_rate"), [7.0, 6.0])


def test_a_run_stops_when_it_has_not_improved_for_so_many_evaluations_of_its_phase() -> None:
    stop = early_stopping(patience=2)
    assert ask(stop, [0.0, 0.0], since=(8, 12)) and not ask(stop, [0.0, 0.0], since=(4, 12))
    assert not ask(stop, [0.0, 0.0], since=(8, 8), after=ADAPTERS), "a phase that has just begun has its own patience"
    both = early_stopping(5.0, 2)
    assert ask(both, [5.0, 0.0], since=(0, 8)) and not ask(both, [0.0, 0.0], since=(0, 8))


def test_a_run_may_be_stopped_in_one_phase_only() -> None:
    stop = early_stopping(5.0, phase=ADAPTERS)
    assert ask(stop, [5.0, 5.0], phase=ADAPTERS) and not ask(stop, [5.0, 5.0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "needs a value, or patience"),
        ({"patience": 0}, "patience must be positive, got 0"),
        ({"value": 1.0, "measure": "length"}, "measure must be return or win_rate, got 'length'"),
        ({"value": 1.0, "phase": "second"}, "phase must be shared, adapters or None, got 'second'"),
    ],
)
def test_early_stopping_says_what_it_needs(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        early_stopping(**settings)
