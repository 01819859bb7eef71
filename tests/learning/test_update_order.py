"""Algorithms, as data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY

from lorasa_jax.config import PPOConfig
from lorasa_jax.core.types import Schedule
from lorasa_jax.learning.update_order import ALGORITHMS, semi_greedy

N = 4
SCORE = jnp.array([0.1, 3.0, 2.0, 1.0])


def draw(algo: str, team_value: bool = False, n_agents: int = N, **ppo) -> Schedule:
    score = jnp.resize(SCORE, n_agents)
    return jax.tree.map(np.asarray, ALGORITHMS[algo](n_agents, PPOConfig(**ppo), team_value)(KEY, score))


def orders(score, draws: int = 3000) -> np.ndarray:
    return np.asarray(jax.vmap(semi_greedy, in_axes=(0, None))(jax.random.split(KEY, draws), score))


@pytest.mark.parametrize("loop_order", ["agent", "epoch"])
@pytest.mark.parametrize("n_agents", [1, 3])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_agent_makes_every_epoch_exactly_once(algo, n_agents, loop_order):
    schedule = draw(algo, n_agents=n_agents, epochs=3, loop_order=loop_order)
    passes = np.zeros(n_agents, int)
    for block, train in zip(schedule.block, schedule.train_actor, strict=True):
        assert len(set(block.tolist())) == len(block)
        passes[block] += train.sum()
    np.testing.assert_array_equal(passes, 3)
    stages = schedule.block.shape[0]
    assert schedule.clip_eps.shape == schedule.trace.shape == (stages,)
    assert schedule.train_actor.shape == schedule.train_critic.shape
    assert (schedule.clip_eps > 0).all()


def test_mappo_moves_everyone_at_once_with_one_clip():
    schedule = draw("mappo", epochs=5, clip_eps=0.1)
    np.testing.assert_array_equal(schedule.block, [[0, 1, 2, 3]])
    np.testing.assert_allclose(schedule.clip_eps, [0.1])
    assert schedule.train_actor.shape == (1, 5)
    assert schedule.train_actor.all() and schedule.train_critic.all() and not schedule.trace.any()


def test_a2po_by_agents_lets_each_agent_finish():
    schedule = draw("a2po", epochs=3, loop_order="agent", clip_eps=0.2)
    assert sorted(schedule.block[:, 0]) == [0, 1, 2, 3]
    assert schedule.train_actor.shape == (N, 3)
    np.testing.assert_allclose(schedule.clip_eps, 0.2 * np.array([0.625, 0.75, 0.875, 1.0]))


def test_a2po_by_epochs_draws_every_round_anew_and_its_clip_starts_again():
    schedule = draw("a2po", epochs=30, loop_order="epoch", clip_eps=0.2)
    rounds = schedule.block.reshape(30, N)
    assert (np.sort(rounds, axis=1) == np.arange(N)).all()
    assert len({tuple(order) for order in rounds}) > 1
    np.testing.assert_allclose(schedule.clip_eps.reshape(30, N), [0.2 * np.array([0.625, 0.75, 0.875, 1.0])] * 30)


def test_the_order_is_by_turns_the_best_of_the_rest_and_one_at_random():
    drawn = orders(SCORE)
    assert (np.sort(drawn, axis=1) == np.arange(N)).all()
    assert (drawn[:, 0] == 1).all()
    share = np.bincount(drawn[:, 1], minlength=N) / len(drawn)
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)
    scores = np.asarray(SCORE)
    assert (scores[drawn[:, 2]] > scores[drawn[:, 3]]).all()


def test_equal_scores_come_in_random_order():
    share = np.stack([np.bincount(column, minlength=N) for column in orders(jnp.ones(N)).T]) / 3000
    np.testing.assert_allclose(share, 1 / N, atol=0.03)


def test_sequential_corrects_no_advantages_and_keeps_one_clip():
    schedule = draw("sequential", clip_eps=0.2)
    assert not schedule.trace.any()
    assert draw("a2po").trace.all()
    np.testing.assert_allclose(schedule.clip_eps, 0.2)


@pytest.mark.parametrize("loop_order", ["agent", "epoch"])
def test_a_teams_one_value_passes_over_the_data_as_often_as_under_mappo(loop_order):
    for team_value, passes in ((True, 3), (False, 3 * N)):
        schedule = draw("a2po", team_value, epochs=3, loop_order=loop_order)
        assert schedule.train_critic.sum() == passes
    last = draw("a2po", True, epochs=3, loop_order="agent").train_critic
    np.testing.assert_array_equal(last, [[False] * 3] * (N - 1) + [[True] * 3])


def test_in_two_stages_the_critic_goes_first():
    schedule = draw("a2po", epochs=2, loop_order="agent", two_stage=True)
    np.testing.assert_array_equal(schedule.train_actor, [[False, True, False, True]] * N)
    assert schedule.train_critic.all()
