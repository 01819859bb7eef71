"""The learning rates of adapters follow play: what pooling keeps, how the pace moves, and what it does in a run."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same, make_diary, small_config

from lorasa_jax.config import ConfigError
from lorasa_jax.core.types import PolicyParams, Weights
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.pacing import next_pace, paced_factor, pool
from lorasa_jax.learning.trainer import make_trainer, train
from lorasa_jax.running import loop
from lorasa_jax.running.loop import run
from lorasa_jax.running.state import ADAPTERS
from lorasa_jax.sharing.schemes import cluster_trunks, make_sharing, one_trunk
from lorasa_jax.storage import arrays as storage
from lorasa_jax.storage import checkpoints

N = 3


def own(values: list[float]) -> Weights:
    """Weights of agents whose own parameters are these numbers, with an id each."""
    kernel = jnp.array(values)[:, None, None] * jnp.ones((1, 2, 4))
    return Weights(PolicyParams({"id": jnp.arange(N)}, {"agent": {"fc1": {"kernel": kernel}}}), jnp.ones(2))


def test_pooling_takes_the_mean_of_what_agents_own_and_leaves_the_rest():
    pooled = pool(own([1.0, 2.0, 6.0]), one_trunk(N, agent_id=True))
    assert_close(pooled, own([3.0, 3.0, 3.0]))


def test_pooling_keeps_to_the_agents_of_a_trunk():
    groups = cluster_trunks(N, small_config(sharing="seps", groups=(0, 1, 0)))
    assert_close(pool(own([1.0, 2.0, 6.0]), groups), own([3.5, 2.0, 3.5]))


def test_pooling_equal_weights_changes_no_bit():
    values = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    for value in values.T:
        same = Weights(PolicyParams({}, {"agent": jnp.full((7, 2), value[0])}))
        assert_same(pool(same, one_trunk(7, agent_id=True)), same)


def test_the_pace_rises_if_own_weights_earn_clearly_more_and_falls_if_they_earn_less():
    noise = np.tile([1.0, -1.0], 8)  # 16 episodes: a standard error of 1/4
    gains = np.array([0.6, 0.4, 0.0, -0.1, 0.6, -0.1])
    pace = np.array([0.0, 0.5, 0.5, 1.0, 1.0, 0.0])
    pooled = np.zeros((6, 16))
    assert next_pace(pace, gains[:, None] + noise, pooled).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0, 0.0]
    assert next_pace(pace, pooled, pooled).tolist() == pace.tolist()
    assert next_pace(np.zeros(2), np.array([[9.0], [-9.0]]), np.zeros((2, 1))).tolist() == [0.0, 0.0]  # one episode


def test_the_factor_goes_from_the_share_of_an_owner_to_the_full_rate():
    (level,) = make_sharing(make_diary(N).spec, small_config(sharing="lorasa_joint")).levels
    factors = [float(paced_factor(level, jnp.asarray(pace))) for pace in (0.0, 0.5, 1.0)]
    assert factors == pytest.approx([1 / N, N**-0.5, 1.0])


@pytest.fixture(scope="module")
def config():
    whole = small_config(sharing="lorasa_joint", switch_step=0, evaluations=4, seeds=2)
    return replace(whole, total_steps=4 * whole.steps_per_iteration)


def test_at_full_pace_an_update_is_that_of_a_level_at_the_full_rate(config):
    env = make_toy("probe_death", N)
    paced, fixed = (make_trainer(replace(config, levels=(level,)), env) for level in ("agent", "agent@1"))
    state = paced.init(jax.random.key(0))
    assert state.pace == 0 and fixed.init(jax.random.key(0)).pace == ()
    step = jax.jit(paced.step)
    fast, metrics = step(state._replace(pace=jnp.ones(())))
    expected, _ = jax.jit(fixed.step)(state._replace(pace=()))
    assert_close(fast.learner, expected.learner)
    assert metrics["factor_agent"] == 1.0
    slow, metrics = step(state)
    assert metrics["factor_agent"] == pytest.approx(1 / N)
    moved = [
        sum(
            float(jnp.abs(a - b).sum())
            for a, b in zip(*map(jax.tree.leaves, (now, state.learner.actor.agents)), strict=True)
        )
        for now in (slow.learner.actor.agents, fast.learner.actor.agents)
    ]
    assert moved[0] < 0.7 * moved[1]


def test_a_run_raises_the_pace_of_each_seed_if_its_own_weights_earn_more_and_lowers_it_if_they_earn_less(
    config, monkeypatch
):
    gains = iter([(1, 0), (1, 1), (-1, 1), (0, -1)])  # of both seeds, at each test
    paces, plays = [], []

    def play(self, weights, train, greedy):
        if greedy:
            play.gain = np.array(next(gains, (0, 0)), float)
        alike = all((leaf == leaf[:, :1]).all() for leaf in jax.tree.leaves(weights.actors.agents))
        if not greedy:
            plays.append((alike, train.iteration.tolist()))
        earned = np.tile((0.0 if alike else 1.0) * play.gain[:, None], 4)
        return {**dict.fromkeys(("return", "win_rate", "length"), np.zeros(config.seeds)), "returns": earned}

    monkeypatch.setattr(loop._Runner, "_play", play)
    monkeypatch.setattr(loop._Runner, "_with_chance", lambda self, state: state)
    run(config, make_toy("probe_death", N), [lambda _, state: paces.append(np.asarray(state.train.pace).tolist())])
    assert paces == [[0.5, 0.0], [1.0, 0.5], [0.5, 1.0], [0.5, 0.5]]
    # Both are played from the same state, so from the same start states.
    assert plays[:8] == [(alike, [i, i]) for i in range(1, 5) for alike in (False, True)]


def test_a_whole_run_as_one_function_keeps_the_first_factor(config):
    two_phases = replace(config, switch_step=2 * config.steps_per_iteration)
    state, metrics = train(two_phases, make_toy("probe_death", N))(jax.random.key(0))
    assert state.pace == 0 and "factor_agent" not in metrics and metrics["return"].shape == (4,)


@pytest.mark.slow
def test_a_run_whose_pace_has_moved_resumes_to_the_bit(config, tmp_path):
    env = make_toy("probe_death", N)
    config = replace(config, switch_step=config.steps_per_iteration, total_steps=6 * config.steps_per_iteration)
    config = replace(config, evaluations=6)
    kept = []

    def keep(_, state):
        moved = state.train._replace(pace=jnp.array([0.5, 1.0])) if state.phase == ADAPTERS else state.train
        kept.append(state._replace(train=moved))

    run(config, env, [keep])
    start = kept[2]
    storage.write(tmp_path, checkpoints.take_snapshot(start, config))
    loaded = checkpoints.load(tmp_path / str(start.rows), config, env)
    assert loaded.train.pace.tolist() == [0.5, 1.0]
    snapshot = checkpoints.take_snapshot(start, config)
    del snapshot.items["train"]["pace"]
    storage.write(tmp_path / "old", snapshot)
    with pytest.raises(ConfigError, match="is of an older version, in which the learning rate of adapters"):
        checkpoints.load(tmp_path / "old" / str(start.rows), config, env)
    ends = [run(config, env, start=begin).states for begin in (start, loaded)]
    assert_same(ends[0].learner, ends[1].learner)
    assert_same(ends[0].pace, ends[1].pace)
