"""Games of PettingZoo: the same games, and pure functions in spite of what they hide."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_shapes, small_config
from mpe2 import simple_speaker_listener_v4, simple_spread_v3

import lorasa_jax
from lorasa_jax.config import ConfigError
from lorasa_jax.envs.base import Env
from lorasa_jax.envs.checks import require_fits
from lorasa_jax.envs.pettingzoo import pettingzoo_env

LIMIT = 6
KEY = jax.random.key(3)


def speaker(**options: Any) -> Any:
    """Two agents that see and act unequally."""
    return simple_speaker_listener_v4.parallel_env(max_cycles=LIMIT, **options)


def spread() -> Any:
    return simple_spread_v3.parallel_env(N=2, max_cycles=LIMIT, continuous_actions=True)


@pytest.fixture(scope="module", params=[speaker, spread])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Env]:
    return request.param, pettingzoo_env(request.param, 2, episode_limit=LIMIT)


def drawn(env: Env, t: int) -> jax.Array:
    """Actions, some of them beyond the ends of their box."""
    key, n, size = jax.random.fold_in(KEY, t), env.spec.n_agents, env.spec.n_actions
    return jax.random.uniform(key, (n, size), minval=-1.2, maxval=1.2) if env.spec.continuous else jnp.array([t % 3, 4])


def test_the_game_is_pettingzoos(pair):
    make, env = pair
    game, step = make(), jax.jit(env.step)
    state, shown = env.reset(KEY)
    obs, _ = game.reset(seed=int(state.seed))
    reward = dict.fromkeys(game.agents, 0.0)
    for t in range(LIMIT + 1):
        for i, agent in enumerate(game.possible_agents):
            width = obs[agent].size
            np.testing.assert_allclose(shown.obs[i, :width], obs[agent], rtol=1e-6)
            assert not shown.obs[i, width:].any()
            np.testing.assert_allclose(shown.reward[i], reward[agent], rtol=1e-6)
        assert (bool(shown.truncated), bool(shown.terminated)) == (t == LIMIT, False)
        if t < LIMIT:
            action = drawn(env, t)
            state, shown = step(KEY, state, action)
            rows = [row if env.spec.continuous else int(row) for row in np.asarray(action)]
            if env.spec.continuous:  # their boxes are [0, 1]
                rows = [((np.clip(row, -1, 1) + 1) / 2).astype(np.float32) for row in rows]
            obs, reward, *_ = game.step(dict(zip(game.possible_agents, rows, strict=True)))


def test_steps_are_pure_also_of_states_that_are_long_gone(pair):
    _, env = pair
    step = jax.jit(env.step)
    states, shown = [env.reset(KEY)[0]], []
    for t in range(LIMIT):
        state, seen = step(KEY, states[-1], drawn(env, t))
        states.append(state)
        shown.append(seen)
    for _ in range(5):  # others take the place of the live game
        step(KEY, env.reset(jax.random.key(9))[0], drawn(env, 0))
    for t in (3, 1, LIMIT - 1, 1):
        state, again = step(KEY, states[t], drawn(env, t))
        jax.tree.map(np.testing.assert_array_equal, (state, again), (states[t + 1], shown[t]))


def test_games_side_by_side_are_games_one_by_one(pair):
    _, env = pair
    keys = jax.random.split(KEY, 3)
    actions = jnp.stack([drawn(env, t) for t in range(3)])
    many = jax.jit(jax.vmap(env.step))(keys, jax.vmap(env.reset)(keys)[0], actions)
    for i in range(3):
        one = env.step(keys[i], env.reset(keys[i])[0], actions[i])
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf, i=i: leaf[i], many), one)


def test_a_game_fits_its_spec(pair):
    check_shapes(pair[1])
    require_fits(pair[1])


def test_agents_may_be_unlike():
    spec = pettingzoo_env(speaker, 1, episode_limit=LIMIT).spec
    assert (spec.obs_widths, spec.n_actions, spec.continuous) == ((3, 11), 5, False)


class Leaving:
    """One agent leaves at once, the other ends the game in the second step; masks forbid its first action."""

    possible_agents = ("a", "b")
    metadata = {"name": "leaving"}  # noqa: RUF012

    def action_space(self, agent: str) -> Any:
        return type("Space", (), {"n": 2})()

    def _see(self) -> dict[str, Any]:
        seen = {"observation": np.array([1.0, 2.0]), "action_mask": np.array([0, 1])}
        return dict.fromkeys(self.agents, seen)

    def reset(self, seed: int) -> tuple[dict, dict]:
        self.agents, self.t = ["a", "b"], 0
        return self._see(), {}

    def step(self, orders: dict[str, int]) -> tuple[dict, ...]:
        assert set(orders) == set(self.agents)
        self.t += 1
        before, ended = self.agents, {agent: agent == "a" or self.t == 2 for agent in self.agents}
        self.agents = [agent for agent in before if not ended[agent]]
        return self._see(), dict.fromkeys(before, 1.0), ended, dict.fromkeys(before, False), {}


def test_agents_that_leave_are_dead_and_a_games_own_end_terminates():
    env = pettingzoo_env(Leaving, 1, episode_limit=9)
    state, shown = env.reset(KEY)
    assert shown.alive.all() and shown.avail.tolist() == [[False, True]] * 2
    state, shown = env.step(KEY, state, jnp.array([1, 1]))
    assert shown.alive.tolist() == [False, True] and not shown.terminated and shown.reward.tolist() == [1, 1]
    assert shown.avail[0].all() and not shown.obs[0].any()
    state, shown = env.step(KEY, state, jnp.array([1, 1]))
    assert shown.terminated and not shown.truncated and shown.reward.tolist() == [0, 1]


def test_a_game_that_is_too_long_is_cut():
    env = pettingzoo_env(Leaving, 1, episode_limit=1)
    _, shown = env.step(KEY, env.reset(KEY)[0], jnp.array([1, 1]))
    assert shown.truncated and not shown.terminated


def test_a_team_trains_on_it():
    config = small_config(sharing="lorasa", n_envs=2, rollout_length=4, switch_step=8, total_steps=16, eval_episodes=2)
    result = lorasa_jax.run(config, pettingzoo_env(speaker, 2, episode_limit=LIMIT))
    assert np.isfinite(result.final["greedy"]["return"]).all()


def test_actions_of_another_kind_are_refused():
    class Odd(Leaving):
        def action_space(self, agent: str) -> Any:
            return "sentences"

    with pytest.raises(ConfigError, match="the action space of a, sentences, is neither discrete nor a bounded box"):
        pettingzoo_env(Odd, 1, episode_limit=1)
