"""A run of several seeds is each seed's own run, switch included."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same, small_config, two_phases

from lorasa_jax.core.types import TrainState
from lorasa_jax.envs import make_env
from lorasa_jax.running import loop
from lorasa_jax.running.callbacks import Callback
from lorasa_jax.running.loop import run
from lorasa_jax.running.state import ADAPTERS, SHARED, Diverged, RunState
from lorasa_jax.storage import arrays as storage
from lorasa_jax.storage import checkpoints as checkpoint

ITERATIONS, SWITCHES, SEED = 5, (1, 3), 7


class Recorder(Callback):
    def __init__(self):
        self.reports, self.texts, self.states, self.ends = [], [], [], []

    def begin(self, state):
        self.states.append(state)

    def __call__(self, report, state):
        self.reports.append(report)
        self.states.append(state)

    def status(self, text):
        self.texts.append(text)

    def end(self, state):
        self.ends.append(state)


def make_config():
    config = two_phases().config
    return replace(
        config,
        seed=SEED,
        seeds=len(SWITCHES),
        switch_step="auto",
        total_steps=ITERATIONS * config.steps_per_iteration,
        evaluations=ITERATIONS,
    )


def switch_as_told(monkeypatch):
    """Each seed, known by its random return, switches after its own number of iterations."""
    due = {}

    def should_switch(curve, k, random_play, total_steps, winnable):
        assert all(len(values) == len(SWITCHES) for point in curve for values in point[1:])
        iterations = due.setdefault(random_play, SWITCHES[len(due) % 2])
        return curve[-1].step >= iterations * make_config().steps_per_iteration

    monkeypatch.setattr(loop, "should_switch", should_switch)


@pytest.fixture(scope="module")
def kept_programs():
    """Programs that are compiled once for all runs of `make_config()` that use them."""
    kept = {}

    class Kept(loop.Programs):
        def submit(self, name, function, *shapes, once=False):
            if name not in kept or kept[name][0].cancelled():
                out = super().submit(name, function, *shapes, once=once)
                kept[name] = self._jobs[name], out
            self._jobs[name], out = kept[name]
            return out

    return Kept


@pytest.fixture
def compiled_once(kept_programs, monkeypatch):
    monkeypatch.setattr(loop, "Programs", kept_programs)


@pytest.fixture(scope="module")
def finished(kept_programs):
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loop, "Programs", kept_programs)
        switch_as_told(monkeypatch)
        return SimpleNamespace(result=run(make_config(), two_phases().env, [recorder]), reports=recorder.reports)


def alone(seed: int, switch: int) -> TrainState:
    """One seed, one iteration after the other, without the loop."""
    phases = two_phases()
    state = phases.init(jax.random.key(seed))
    for _ in range(switch):
        state = phases.shared(state)
    state = phases.attach_adapters(state)
    for _ in range(ITERATIONS - switch):
        state = phases.adapters(state)
    return state


@pytest.mark.parametrize("row", range(len(SWITCHES)))
def test_each_seed_ends_as_it_would_alone_at_its_own_switch(finished, row):
    """With exactly the budget: a seed that is done waits unchanged for the others."""
    state, expected = jax.tree.map(lambda leaf: leaf[row], finished.result.states), alone(SEED + row, SWITCHES[row])
    assert state.iteration == expected.iteration == ITERATIONS
    assert_close(state.learner, expected.learner, atol=1e-4)
    assert_close(state.rollout.timestep, expected.rollout.timestep)
    assert (state.key == expected.key).all()


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["mappo", "a2po"])
def test_one_agent_in_one_environment_is_a_team_too(algo):
    size = {"n_agents": 1, "n_envs": 1, "eval_episodes": 1, "ppo": {"minibatches": 1}}
    config = small_config(env="toy", task="probe_policy", sharing="lorasa", algo=algo, **size)
    config = replace(config, total_steps=4 * config.steps_per_iteration, switch_step=2 * config.steps_per_iteration)
    result = run(config, make_env(config))
    assert result.states.iteration.tolist() == [4]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.states.learner))


def test_steps_are_counted_beyond_32_bits():
    train = SimpleNamespace(iteration=jnp.array([500_001], jnp.int32))
    state = RunState(ADAPTERS, train, None, (None,), (), (), 1, 0.0, 0.0)
    assert (state.iterations * 5_120).tolist() == [500_001 * 5_120]


def test_switches_are_those_of_the_curves(finished):
    batch = make_config().steps_per_iteration
    assert finished.result.switch_steps == [s * batch for s in SWITCHES]
    assert set(finished.result.final) == {"greedy", "sampled", "best"}
    assert finished.result.trainer.system.train == ("agents",)


def test_reports_say_who_is_active_and_how_far(finished):
    batch = make_config().steps_per_iteration
    rows = [(r.phase, (r.env_steps // batch).tolist(), r.active.tolist()) for r in finished.reports]
    assert rows == [
        (SHARED, [1, 1], [True, True]),
        (SHARED, [1, 2], [False, True]),
        (SHARED, [1, 3], [False, True]),
        (ADAPTERS, [2, 4], [True, True]),
        (ADAPTERS, [3, 5], [True, True]),
        (ADAPTERS, [4, 5], [True, False]),
        (ADAPTERS, [5, 5], [True, False]),
    ]
    for report in finished.reports:
        assert set(report.evaluation) == {"return", "win_rate", "length"}
        assert {leaf.shape for leaf in report.metrics.values()} == {(2,)}


@pytest.mark.usefixtures("compiled_once")
def test_a_run_stopped_anywhere_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """From before the first iteration to after the last, through both phases, by way of the disk."""
    switch_as_told(monkeypatch)
    config, env, recorder = make_config(), two_phases().env, Recorder()
    runner = loop._Runner(config, env, recorder)
    result, reports = loop._run(runner, None), recorder.reports
    runner.programs.close()
    assert recorder.ends == recorder.states[-1:]
    starts = [
        checkpoint.load(storage.write(tmp_path, checkpoint.take_snapshot(state, config)), config, env)
        for state in recorder.states
    ]
    assert [start.rows for start in starts] == [0, 2, 3, 4, 6, 8, 9, 10]
    assert [start.phase for start in starts] == [SHARED] * 3 + [ADAPTERS] * 5
    assert [len(start.random_return) for start in starts] == [0] + [2] * 7, "random play waits for the first evaluation"
    for done, start in enumerate(starts):
        recorder.reports = []
        again = loop._run(runner, start)
        assert again.switch_steps == result.switch_steps
        assert_same((again.final, again.random_return), (result.final, result.random_return))
        assert_same(jax.tree.leaves(again.states._replace(key=0)), jax.tree.leaves(result.states._replace(key=0)))
        assert (again.states.key == result.states.key).all()
        assert len(recorder.reports) == len(reports) - done
        for report, expected in zip(recorder.reports, reports[done:], strict=True):
            assert report.phase == expected.phase
            assert_same(report[1:], expected[1:])


@pytest.mark.usefixtures("compiled_once")
def test_the_best_team_is_that_of_the_best_evaluation_of_its_phase(monkeypatch):
    """And plays other episodes at the end than those it was chosen by. A second phase begins without one."""
    told = iter([[3.0, 1.0], [2.0, 4.0], [9.0, 9.0], [5.0, 6.0], [7.0, 6.0]])
    play, recorder, played = loop._Runner._play, Recorder(), []

    def as_told(runner, weights, train, greedy):
        played.append((train.iteration, weights))
        found = play(runner, weights, train, greedy)
        return {**found, "return": np.array(next(told, [0.0, 0.0]))}

    monkeypatch.setattr(loop._Runner, "_play", as_told)
    monkeypatch.setattr(loop._Runner, "_with_chance", lambda runner, state: state._replace(random_return=(0.0, 0.0)))
    monkeypatch.setattr(loop, "should_switch", lambda curve, *_: len(curve) == 3)
    result, states = run(make_config(), two_phases().env, [recorder]), recorder.states
    assert [state.phase for state in states] == [SHARED] * 3 + [ADAPTERS] * 3
    found = [(state.best.iteration.tolist(), state.best.returns.tolist()) for state in states]
    least = float(np.finfo(np.float32).min)
    assert found == [
        ([0, 0], [least, least]),
        ([1, 1], [3.0, 1.0]),
        ([1, 2], [3.0, 4.0]),
        ([3, 3], [least, least]),
        ([4, 4], [5.0, 6.0]),
        ([5, 4], [7.0, 6.0]),
    ]
    actors = [state.train.learner.actor for state in states]
    assert_same(states[2].best.actor, jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), actors[1], actors[2]))
    best = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), actors[5], actors[4])
    expected = jax.vmap(result.trainer.system.weights)(best)
    (iteration, weights), last = played[-1], played[-2][0]
    assert_close(weights.actors, expected)
    assert (iteration.tolist(), last.tolist()) == ([6, 6], [5, 5]), "on other keys than any evaluation"


def test_random_play_is_that_of_networks_of_zeros_before_the_first_iteration(finished):
    result = finished.result
    evaluate, weights = jax.jit(result.trainer.evaluate), jax.vmap(result.trainer.weights)(result.states)
    for row, found in enumerate(result.random_return):
        zeros = jax.tree.map(lambda leaf, row=row: jnp.zeros_like(leaf[row]), weights)
        played = evaluate(zeros, jax.random.key(SEED + row), jnp.zeros((), int), False)
        assert_close(found, played["return"])


def test_a_run_that_goes_on_leaves_its_start_as_it_was(monkeypatch):
    """And compiles only what is still ahead."""
    monkeypatch.setattr(loop, "should_switch", lambda *args: True)
    config, starts = make_config(), []

    class Enough(Exception):
        pass

    def stop_in_the_second_phase(report, state):
        if state.phase == ADAPTERS:
            starts.append(state)
            raise Enough

    with pytest.raises(Enough):
        run(config, two_phases().env, [stop_in_the_second_phase])
    (start,) = starts
    before = jax.tree.map(np.array, start.train._replace(key=0))
    recorder = Recorder()
    result = run(config, two_phases().env, [recorder], start=start)
    assert_same(start.train._replace(key=0), before)
    assert not {"compiling init", "compiling shared update", "compiling attach adapters"} & set(recorder.texts)
    assert result.switch_steps == list(start.switch_steps)
    assert result.compile_seconds > start.compile_seconds
    assert result.train_seconds > start.train_seconds


@pytest.mark.usefixtures("compiled_once")
def test_a_run_that_diverges_says_when_what_and_for_which_seed(monkeypatch):
    get = loop.Programs.__getitem__
    calls = []

    def spoil(programs, name):
        program = get(programs, name)
        if name != "collect":
            return program

        def collect(weights, critic, *rest):
            calls.append(name)
            factor = jnp.array([1.0, jnp.nan if len(calls) == 2 else 1.0])
            critic = jax.tree.map(lambda leaf: leaf * factor.reshape(-1, *(1,) * (leaf.ndim - 1)), critic)
            return program(weights, critic, *rest)

        return collect

    monkeypatch.setattr(loop.Programs, "__getitem__", spoil)
    monkeypatch.setattr(loop, "should_switch", lambda *args: False)
    batch = make_config().steps_per_iteration
    message = rf"policy_loss became nan for seed {SEED + 1}, in iteration 2 \({2 * batch} steps, phase shared\)"
    with pytest.raises(Diverged, match=message) as caught:
        run(make_config(), two_phases().env)
    error = caught.value
    assert (error.quantity, error.row, error.iteration, error.phase) == ("policy_loss", 1, 2, SHARED)
    assert error.before.iterations.tolist() == [1, 1]
