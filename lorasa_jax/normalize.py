"""Running statistics of the returns: the critic's units."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class ValueNormState(NamedTuple):
    """Decaying sums; divided by `weight` they are the mean and the mean of squares."""

    total: Float[Array, ""]
    total_square: Float[Array, ""]
    weight: Float[Array, ""]


class ValueNorm(NamedTuple):
    """Units for values, as a record of pure functions.

    Attributes:
        init: `init() -> state`.
        update: `update(state, returns) -> state`.
        normalise: `normalise(state, x)`, from units of the reward to the critic's.
        denormalise: `denormalise(state, x)`, back.
    """

    init: Callable[[], ValueNormState]
    update: Callable[[ValueNormState, Array], ValueNormState]
    normalise: Callable[[ValueNormState, Array], Array]
    denormalise: Callable[[ValueNormState, Array], Array]


def _init() -> ValueNormState:
    return ValueNormState(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def running(beta: float = 0.99999, min_variance: float = 1e-2) -> ValueNorm:
    """Returns units of the running mean and standard deviation of the returns.

    Both moments decay by `beta` with each update and are divided by the weight gathered so
    far, so that the start does not bias them; the variance is at least `min_variance`.
    Before the first update the units are those of the reward.

    Source: MAPPO (Yu et al. 2022).
    """

    def update(state: ValueNormState, returns: Array) -> ValueNormState:
        batch = ValueNormState(jnp.mean(returns), jnp.mean(returns**2), jnp.ones(()))
        return ValueNormState(*(beta * old + (1 - beta) * new for old, new in zip(state, batch, strict=True)))

    def moments(state: ValueNormState) -> tuple[Array, Array]:
        weight = jnp.maximum(state.weight, jnp.finfo(jnp.float32).tiny)
        mean = state.total / weight
        variance = jnp.maximum(state.total_square / weight - mean**2, min_variance)
        return mean, jnp.where(state.weight > 0, jnp.sqrt(variance), 1.0)

    def normalise(state: ValueNormState, x: Array) -> Array:
        mean, deviation = moments(state)
        return (x - mean) / deviation

    def denormalise(state: ValueNormState, x: Array) -> Array:
        mean, deviation = moments(state)
        return x * deviation + mean

    return ValueNorm(_init, update, normalise, denormalise)


def raw() -> ValueNorm:
    """Returns the units of the reward, unchanged."""
    return ValueNorm(_init, lambda state, returns: state, lambda state, x: x, lambda state, x: x)
