"""The learning rates of adapters follow play: what pooling keeps, how the pace moves, and what it does in a run."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same, make_diary, small_config

from lorasa_jax.core.types import PolicyParams, Weights
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.pacing import next_pace, paced_factor, pool
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.running import loop
from lorasa_jax.running.loop import run
from lorasa_jax.sharing.schemes import cluster_trunks, make_sharing, one_trunk

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


def test_pooling_equal_weights_changes_nothing():
    assert_same(pool(own([2.0, 2.0, 2.0]), one_trunk(N, agent_id=True)), own([2.0, 2.0, 2.0]))


def test_the_pace_rises_if_own_weights_earn_clearly_more_and_falls_if_they_earn_less():
    noise = np.tile([1.0, -1.0], 8)  # 16 episodes: a standard error of 1/4
    gains = np.array([0.6, 0.4, 0.0, -0.1, 0.6, -0.1])
    pace = np.array([0.0, 0.5, 0.5, 1.0, 1.0, 0.0])
    pooled = np.zeros((6, 16))
    assert next_pace(pace, gains[:, None] + noise, pooled).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0, 0.0]
    assert next_pace(pace, pooled, pooled).tolist() == pace.tolist()


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
    fast, metrics = jax.jit(paced.step)(state._replace(pace=jnp.ones(())))
    expected, _ = jax.jit(fixed.step)(state._replace(pace=()))
    assert_close(fast.learner, expected.learner)
    assert metrics["factor_agent"] == 1.0
    slow, metrics = jax.jit(paced.step)(state)
    assert metrics["factor_agent"] == pytest.approx(1 / N)
    moved = [
        sum(
            float(jnp.abs(a - b).sum())
            for a, b in zip(*map(jax.tree.leaves, (now, state.learner.actor.agents)), strict=True)
        )
        for now in (slow.learner.actor.agents, fast.learner.actor.agents)
    ]
    assert moved[0] < 0.7 * moved[1]


def test_a_run_raises_the_pace_if_own_weights_earn_more_and_lowers_it_if_they_earn_less(config, monkeypatch):
    earned = iter([(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])  # by own weights, and by pooled ones
    paces, calls = [], []

    def play(self, weights, train, greedy):
        alike = all((leaf == leaf[:, :1]).all() for leaf in jax.tree.leaves(weights.actors.agents))
        if not greedy:
            calls.append(alike)
        own, pooled = next(earned, (0.0, 0.0)) if greedy else play.now
        play.now = own, pooled
        value = np.full(config.seeds, pooled if alike else own)
        return {**dict.fromkeys(("return", "win_rate", "length"), value), "returns": np.tile(value[:, None], 4)}

    monkeypatch.setattr(loop._Runner, "_play", play)
    monkeypatch.setattr(loop._Runner, "_with_chance", lambda self, state: state)
    run(config, make_toy("probe_death", N), [lambda _, state: paces.append(np.asarray(state.train.pace).tolist())])
    assert paces == [[0.5] * 2, [1.0] * 2, [0.5] * 2, [0.5] * 2]
    assert calls[:4] == [False, True, False, True]
