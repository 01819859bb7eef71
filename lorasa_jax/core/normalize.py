"""Running statistics: of returns, for the normalisation of values, and of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lorasa_jax.core.types import PyTree
from lorasa_jax.envs.base import EnvSpec


class ValueNormState(NamedTuple):
    """Decaying sums. Divided by `weight`, they give the mean and the mean of squares."""

    total: Float[Array, ""]
    total_square: Float[Array, ""]
    weight: Float[Array, ""]


class ValueNorm(NamedTuple):
    """Normalisation of values, as a record of pure functions.

    Attributes:
        init: `init() -> state`.
        update: `update(state, returns) -> state`.
        normalise: `normalise(state, x)`, from reward units to normalised units.
        denormalise: `denormalise(state, x)`, the inverse.
    """

    init: Callable[[], ValueNormState]
    update: Callable[[ValueNormState, Array], ValueNormState]
    normalise: Callable[[ValueNormState, Array], Array]
    denormalise: Callable[[ValueNormState, Array], Array]


def _init() -> ValueNormState:
    return ValueNormState(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def running(beta: float = 0.99999, min_variance: float = 1e-2) -> ValueNorm:
    """Returns the normalisation by the running mean and standard deviation of the returns.

    Both moments decay by `beta` with each update. They are divided by the accumulated weight,
    which removes the bias of the start. The variance is at least `min_variance`.
    Before the first update values are not changed.

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
    """Returns a normalisation that changes nothing."""
    return ValueNorm(_init, lambda state, returns: state, lambda state, x: x, lambda state, x: x)


class Moments(NamedTuple):
    """Number of samples of each column, their mean, and the sum of their squared deviations from the mean."""

    samples: Float[Array, "..."]
    mean: Float[Array, "..."]
    squares: Float[Array, "..."]


class InputNorm(NamedTuple):
    """Normalisation of inputs before all networks, as a record of pure functions.

    Attributes:
        init: `init() -> stats`.
        measure: `measure(obs [T, E, N, D], state [T, E, S], alive [T, E, N]) -> stats` of one rollout.
        update: `update(stats, stats of a rollout) -> stats` of both combined.
        apply: `apply(stats, obs [..., N, D], state [..., S]) -> (obs, state)`.
    """

    init: Callable[[], PyTree]
    measure: Callable[[Array, Array, Array], PyTree]
    update: Callable[[PyTree, PyTree], PyTree]
    apply: Callable[[PyTree, Array, Array], tuple[Array, Array]]


def as_they_are() -> InputNorm:
    """Returns a normalisation that leaves inputs unchanged, without statistics."""
    return InputNorm(
        init=lambda: (),
        measure=lambda obs, state, alive: (),
        update=lambda stats, new: (),
        apply=lambda stats, obs, state: (obs, state),
    )


def standardised(spec: EnvSpec, limit: float = 10.0) -> InputNorm:
    """Returns a normalisation to mean 0 and standard deviation 1 over all samples so far, clipped to +-`limit`.

    Every column of every agent has its own statistics, so padded columns, which are always zero, stay zero.
    Observations of dead agents do not count. Before the first update inputs are not changed.

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
