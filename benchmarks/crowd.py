"""A game for any number of agents, whose cost per agent does not depend on how many there are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lorasa_jax.envs import Env, EnvSpec, TimeStep

STEPS = 16
"""Length of every episode."""


def make_crowd(n: int, width: int = 32, n_actions: int = 8) -> Env:
    """Agents see, and the critic sees, `width` numbers; actions push what an agent sees about.

    The team is paid the share of agents that take the action of their number, modulo the number of actions.
    """
    push = jnp.asarray(np.random.default_rng(0).normal(size=(n_actions, width)), jnp.float32)
    own = jnp.arange(n) % n_actions

    def show(time: Array, seen: Array, reward: Any) -> tuple[tuple[Array, Array], TimeStep]:
        over = time >= STEPS
        return (time, seen), TimeStep(
            obs=seen,
            state=seen.mean(axis=0),
            avail=jnp.ones((n, n_actions), bool),
            alive=jnp.ones(n, bool),
            reward=jnp.full(n, reward, jnp.float32),
            terminated=over,
            truncated=jnp.zeros((), bool),
            won=jnp.zeros((), bool),
        )

    def reset(key: Array) -> tuple[tuple[Array, Array], TimeStep]:
        return show(jnp.int32(0), jax.random.normal(key, (n, width)), 0.0)

    def step(key: Array, state: tuple[Array, Array], action: Array) -> tuple[tuple[Array, Array], TimeStep]:
        time, seen = state
        return show(time + 1, 0.9 * seen + 0.1 * push[action], jnp.mean(action == own))

    spec = EnvSpec("crowd", n, width, width, n_actions, STEPS, team_reward=True, winnable=False)
    return Env(spec, reset, step)
