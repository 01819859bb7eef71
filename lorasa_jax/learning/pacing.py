"""Learning rates of adapters that follow play, for agents that all receive the same reward.

Under a common reward an agent's own gradient is mostly noise, and Adam's steps do not shrink with noise. So adapters of
K owners begin with 1 / K of the learning rate. If agents have roles, this is too little. A test of play
tells whether they have: the team plays the same start states twice, with each agent's own weights, and with the mean of
all agents' weights. The mean keeps what agents have in common, and loses what is each one's own. The rate rises if own
weights earn clearly more, and falls if they earn less.

The pace p in [0, 1] is a part of the state. A level of K owners has the factor K^(p - 1): 1 / K at p = 0, 1 / sqrt(K)
at p = 1/2, and 1 at p = 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorasa_jax.core.types import PolicyParams, Weights
from lorasa_jax.sharing.schemes import Level, Sharing

STEP = 0.5
"""Change of the pace after a test."""
CLEARLY = 2.0
"""Standard errors by which own weights must earn more, for the pace to rise."""


def first_pace(sharing: Sharing) -> Float[Array, ""] | tuple[()]:
    """Returns the pace before any test, 0; empty if no level is paced."""
    return jnp.zeros(()) if sharing.paced else ()


def paced_factor(level: Level, pace: Float[Array, ""] | tuple[()]) -> Any:
    """Returns the learning rate of a level relative to the phase: K^(p - 1) if it is paced, otherwise its factor."""
    return level.n_owners ** (jnp.asarray(pace) - 1.0) if level.paced else level.factor


def next_pace(
    pace: Float[np.ndarray, " K"], own: Float[np.ndarray, "K E"], pooled: Float[np.ndarray, "K E"]
) -> Float[np.ndarray, " K"]:
    """Returns the pace of every row after a test. A single episode never raises it.

    Args:
        pace: before the test.
        own: returns of episodes with agents' own weights.
        pooled: returns with the mean of all agents' weights, in the same order of start states.
    """
    gain, episodes = own - pooled, own.shape[1]
    mean = gain.mean(axis=1)
    error = gain.std(axis=1, ddof=1) / np.sqrt(episodes) if episodes > 1 else np.inf
    change = np.where(mean > CLEARLY * error, STEP, np.where(mean < 0, -STEP, 0.0))
    return np.clip(pace + change, 0.0, 1.0).astype(np.float32)


def pool(weights: Weights, sharing: Sharing) -> Weights:
    """Returns the weights with the mean over the agents of a trunk in place of each agent's own. Ids stay.

    Args:
        weights: every agent's weights for acting.
        sharing: the scheme.
    """
    groups = jnp.array(sharing.groups)
    firsts = jnp.array([sharing.groups.index(group) for group in sharing.groups])
    sizes = jnp.zeros(sharing.n_trunks).at[groups].add(1.0)

    def mean(leaf: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        first = leaf[firsts]  # the mean is that of differences, so the mean of equal weights is exactly those weights
        total = jnp.zeros((sharing.n_trunks, *leaf.shape[1:]), leaf.dtype).at[groups].add(leaf - first)
        return first + (total / sizes.reshape(-1, *[1] * (leaf.ndim - 1)))[groups]

    actors = weights.actors
    return weights._replace(actors=PolicyParams(actors.shared, jax.tree.map(mean, actors.agents)))
