"""Running statistics: of the returns, which are the critic's units, and of what is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lorasa_jax.core.types import PyTree
from lorasa_jax.envs.base import EnvSpec


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


class Moments(NamedTuple):
    """How many samples there were of each column, their mean, and the sum of their squared deviations from it."""

    samples: Float[Array, "..."]
    mean: Float[Array, "..."]
    squares: Float[Array, "..."]


class InputNorm(NamedTuple):
    """What happens to inputs before anyone sees them, as a record of pure functions.

    Attributes:
        init: `init() -> stats`.
        measure: `measure(obs [T, E, N, D], state [T, E, S], alive [T, E, N]) -> stats` of one rollout.
        update: `update(stats, stats of a rollout) -> stats` of both together.
        apply: `apply(stats, obs [..., N, D], state [..., S]) -> (obs, state)`.
    """

    init: Callable[[], PyTree]
    measure: Callable[[Array, Array, Array], PyTree]
    update: Callable[[PyTree, PyTree], PyTree]
    apply: Callable[[PyTree, Array, Array], tuple[Array, Array]]


def as_they_are() -> InputNorm:
    """Returns inputs unchanged, without statistics."""
    return InputNorm(
        init=lambda: (),
        measure=lambda obs, state, alive: (),
        update=lambda stats, new: (),
        apply=lambda stats, obs, state: (obs, state),
    )


def standardised(spec: EnvSpec, limit: float = 10.0) -> InputNorm:
    """Returns inputs of mean 0 and deviation 1 over all that was seen so far, held within +-`limit`.

    Every column of every agent has statistics of its own, so columns that an agent does not
    have, always zero, stay zero. What dead agents are shown does not count. Before the first update nothing changes.

    Source: parallel update of mean and variance (Chan et al. 1979).
    """

    def nothing(*shape: int) -> Moments:
        return Moments(jnp.zeros((*shape[:-1], 1)), jnp.zeros(shape), jnp.zeros(shape))

    def of(x: Float[Array, "T E ... D"], counts: Bool[Array, "T E ... 1"]) -> Moments:
        samples = counts.sum(axis=(0, 1), dtype=jnp.float32)
        mean = jnp.where(counts, x, 0.0).sum(axis=(0, 1)) / jnp.maximum(samples, 1.0)
        return Moments(samples, mean, jnp.where(counts, (x - mean) ** 2, 0.0).sum(axis=(0, 1)))

    def both(a: Moments, b: Moments) -> Moments:
        samples, apart = a.samples + b.samples, b.mean - a.mean
        share = b.samples / jnp.maximum(samples, 1.0)
        return Moments(samples, a.mean + apart * share, a.squares + b.squares + apart**2 * a.samples * share)

    def standard(moments: Moments, x: Array) -> Array:
        deviation = jnp.sqrt(jnp.maximum(moments.squares / jnp.maximum(moments.samples, 1.0), 1e-6))
        return jnp.where(moments.samples > 0, jnp.clip((x - moments.mean) / deviation, -limit, limit), x)

    return InputNorm(
        init=lambda: (nothing(spec.n_agents, spec.obs_dim), nothing(spec.state_dim)),
        measure=lambda obs, state, alive: (of(obs, alive[..., None]), of(state, jnp.ones_like(state[..., :1], bool))),
        update=lambda stats, new: (both(stats[0], new[0]), both(stats[1], new[1])),
        apply=lambda stats, obs, state: (standard(stats[0], obs), standard(stats[1], state)),
    )
