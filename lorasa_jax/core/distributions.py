"""Action distributions, as records of pure functions over the network's raw output."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

UNAVAILABLE = -1e10
_NODES, _WEIGHTS = (x.astype(np.float32) for x in np.polynomial.hermite_e.hermegauss(12))
_WEIGHTS /= _WEIGHTS.sum()
_EXACTLY = jax.lax.Precision.HIGHEST


class Distribution(NamedTuple):
    """A family of action distributions.

    Log-probabilities come in R parts per action: one, or one per dimension.

    Attributes:
        mask: `mask(output [..., P], avail [..., A]) -> params [..., P]`, the arguments of the other functions.
        sample: `sample(key, params) -> action`.
        mode: `mode(params) -> action`, the most probable one.
        log_prob: `log_prob(params, action) -> [..., R]`.
        entropy: `entropy(params) -> [...]`, in nats.
        parts: `parts(avail) -> [..., R]`: the parts that exist.
        to_env: `to_env(action)`: the action in the form that the environment takes.
        distance: `distance(params, params) -> [...]`: distance between two distributions of the family.
        log_std: initial value of the log standard deviation, a parameter of the network; or None.
    """

    mask: Callable[[Array, Array], Array]
    sample: Callable[..., Array]
    mode: Callable[..., Array]
    log_prob: Callable[..., Array]
    entropy: Callable[..., Array]
    parts: Callable[[Array], Array]
    to_env: Callable[[Array], Array]
    distance: Callable[[Array, Array], Array]
    log_std: float | None = None


def mask_logits(logits: Float[Array, "... A"], avail: Bool[Array, "... A"]) -> Float[Array, "... A"]:
    """Returns the logits with unavailable actions at -1e10, so that their probability is exactly zero."""
    return jnp.where(avail, logits, UNAVAILABLE)


def _log_prob(logits: Float[Array, "... A"], action: Int[Array, "..."]) -> Float[Array, "... 1"]:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)


def _entropy(logits: Float[Array, "... A"]) -> Float[Array, "..."]:
    log_p = jax.nn.log_softmax(logits)
    # A masked action has p = 0 and log p = -1e10. Leave it out, so that rounding does not enter the sum.
    return -jnp.sum(jnp.where(log_p > UNAVAILABLE / 2, jnp.exp(log_p) * log_p, 0.0), axis=-1)


def _sample(key: PRNGKeyArray, logits: Float[Array, "... A"]) -> Int[Array, "..."]:
    return jax.random.categorical(key, logits)


def _mode(logits: Float[Array, "... A"]) -> Int[Array, "..."]:
    return jnp.argmax(logits, axis=-1)


def _whole(avail: Bool[Array, "... A"]) -> Bool[Array, "... 1"]:
    """The single part of an action with one log-probability."""
    return jnp.ones_like(avail[..., :1])


def total_variation(one: Float[Array, "... A"], other: Float[Array, "... A"]) -> Float[Array, "..."]:
    """Returns 1/2 sum_a |p(a) - q(a)| of two masked categoricals by their logits.

    The distance lies in [0, 1]. It is the largest difference in probability of any set of actions. Actions that are
    unavailable to both count 0.
    """
    # With softmax, XLA would fuse its quotient with the difference, and equal logits would differ by a rounding error.
    p, q = (jnp.exp(jax.nn.log_softmax(logits)) for logits in (one, other))
    return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)


categorical = Distribution(
    mask_logits, _sample, _mode, _log_prob, _entropy, _whole, to_env=lambda action: action, distance=total_variation
)
"""A categorical distribution over A actions."""


def _log_slope(u: Array) -> Array:
    """Returns log(1 - tanh(u)^2), also if the square is close to 1. Small absolute errors suffice: no log1p."""
    size = jnp.abs(u)
    return 2 * (math.log(2) - size - jnp.log(1 + jnp.exp(-2 * size)))


@jax.custom_jvp
def _mean_log_slope(mean: Float[Array, "..."], std: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns E[log(1 - tanh(u)^2)] for u ~ N(mean, std^2), by Gauss-Hermite quadrature.

    The derivative is explicit, and sums over nodes are matrix products. Otherwise the compiler makes twelve loops.
    """
    return jnp.tensordot(_WEIGHTS, _log_slope(_points(mean, std)), 1, precision=_EXACTLY)


@_mean_log_slope.defjvp
def _mean_log_slope_jvp(inputs: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    slope = -2 * jnp.tanh(_points(*inputs))
    by_mean, by_std = jnp.tensordot(np.stack([_WEIGHTS, _WEIGHTS * _NODES]), slope, 1, precision=_EXACTLY)
    return _mean_log_slope(*inputs), by_mean * tangents[0] + by_std * tangents[1]


def _points(mean: Array, std: Array) -> Array:
    """Returns the nodes of the quadrature, [nodes, ...]."""
    return mean + std * _NODES.reshape(-1, *(1,) * std.ndim)


def squashed_normal(per_dim: bool = False) -> Distribution:
    """Returns a normal distribution over [..., A] squashed into (-1, 1) by tanh.

    An action is stored as u, before squashing. The environment receives a = tanh(u).

        u ~ N(mean, std^2),   std = sigmoid(log_std) / 2
        log pi(a) = sum_d  log N(u_d; mean_d, std_d) - log(1 - tanh(u_d)^2)

    The network gives the means; log_std, [A], is a separate parameter. A dimension that an
    agent does not have contributes exactly zero. The entropy has no closed form and is
    computed by Gauss-Hermite quadrature.

    Args:
        per_dim: return one log-probability per dimension, not their sum.

    Source: MAPPO's squashing as in Haarnoja et al. 2018 (SAC).
    """

    def mask(output: Float[Array, "... P"], avail: Bool[Array, "... A"]) -> Float[Array, "... P"]:
        mean, log_std = jnp.split(output, 2, axis=-1)
        return jnp.concatenate([jnp.where(avail, mean, 0.0), jnp.where(avail, log_std, UNAVAILABLE)], axis=-1)

    def read(params: Float[Array, "... P"]) -> tuple[Array, Array, Array]:
        mean, log_std = jnp.split(params, 2, axis=-1)
        there = log_std > UNAVAILABLE / 2
        return mean, 0.5 * jax.nn.sigmoid(jnp.where(there, log_std, 0.0)), there

    def sample(key: PRNGKeyArray, params: Float[Array, "... P"]) -> Float[Array, "... A"]:
        mean, std, there = read(params)
        return jnp.where(there, mean + std * jax.random.normal(key, mean.shape), 0.0)

    def log_prob(params: Float[Array, "... P"], action: Float[Array, "... A"]) -> Float[Array, "... R"]:
        mean, std, there = read(params)
        normal = -0.5 * ((action - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
        parts = jnp.where(there, normal - _log_slope(action), 0.0)
        return parts if per_dim else jnp.sum(parts, axis=-1, keepdims=True)

    def entropy(params: Float[Array, "... P"]) -> Float[Array, "..."]:
        mean, std, there = read(params)
        total = jnp.log(std) + 0.5 * math.log(2 * math.pi * math.e) + _mean_log_slope(mean, std)
        return jnp.sum(jnp.where(there, total, 0.0), axis=-1)

    def distance(one: Float[Array, "... P"], other: Float[Array, "... P"]) -> Float[Array, "..."]:
        """The 2-Wasserstein distance of the normals before squashing, in closed form.

        W^2 = sum_d (mean_d - mean'_d)^2 + (std_d - std'_d)^2, over the dimensions of the first one.
        """
        (mean, std, there), (mean_, std_, _) = read(one), read(other)
        return jnp.sqrt(jnp.sum(jnp.where(there, (mean - mean_) ** 2 + (std - std_) ** 2, 0.0), axis=-1))

    return Distribution(
        mask=mask,
        sample=sample,
        mode=lambda params: read(params)[0],
        log_prob=log_prob,
        entropy=entropy,
        parts=(lambda avail: avail) if per_dim else _whole,
        to_env=jnp.tanh,
        distance=distance,
        log_std=1.0,
    )
