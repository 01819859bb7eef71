"""Learning rates of adapters that follow play, for agents that all receive the same reward.

Under a common reward an agent's own gradient is mostly noise, and Adam's steps do not shrink with noise. So adapters of
K owners begin with 1 / K of the learning rate. If agents have roles, this is too little. A test of play tells the two
cases apart: the team plays the same start states twice, with each agent's own weights, and with the mean of all agents'
weights. The mean keeps what agents have in common, and loses what is each one's own. The rate rises if own weights earn
clearly more, and falls if they earn less.

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
"""Change of the pace after an evaluation."""
CLEARLY = 2.0
"""Standard errors by which own weights must earn more, for the pace to rise."""


def first_pace(sharing: Sharing) -> Float[Array, ""] | tuple[()]:
    """Returns the pace before any evaluation, 0; empty if no level is paced."""
    return jnp.zeros(()) if sharing.paced else ()


def paced_factor(level: Level, pace: Float[Array, ""] | tuple[()]) -> Any:
    """Returns the learning rate of a level relative to the phase: K^(p - 1) if it is paced, otherwise its factor."""
    return level.factor if not level.paced else level.n_owners ** (jnp.asarray(pace) - 1.0)


def next_pace(
    pace: Float[np.ndarray, " K"], own: Float[np.ndarray, "K E"], pooled: Float[np.ndarray, "K E"]
) -> Float[np.ndarray, " K"]:
    """Returns the pace of every row after an evaluation.

    Args:
        pace: before it.
        own: returns of episodes with agents' own weights.
        pooled: returns with the mean of all agents' weights, in the same order of start states.
    """
    gain = own - pooled
    mean, error = gain.mean(axis=1), gain.std(axis=1) / np.sqrt(gain.shape[1])
    change = np.where(mean > CLEARLY * error, STEP, np.where(mean < 0, -STEP, 0.0))
    return np.clip(pace + change, 0.0, 1.0).astype(np.float32)


def pool(weights: Weights, sharing: Sharing) -> Weights:
    """Returns the weights with which all agents of a trunk play alike: the mean of their own.

    Args:
        weights: every agent's weights for acting. Ids stay, because no agent owns them.
        sharing: the scheme.
    """
    groups = jnp.array(sharing.groups)
    sizes = jnp.zeros(sharing.n_trunks).at[groups].add(1.0)

    def mean(leaf: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        total = jnp.zeros((sharing.n_trunks, *leaf.shape[1:]), leaf.dtype).at[groups].add(leaf)
        return (total / sizes.reshape(-1, *[1] * (leaf.ndim - 1)))[groups]

    actors = weights.actors
    return weights._replace(actors=PolicyParams(actors.shared, jax.tree.map(mean, actors.agents)))
