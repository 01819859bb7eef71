"""Action distributions, as records of pure functions over the network's raw output."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

UNAVAILABLE = -1e10


class Distribution(NamedTuple):
    """A family of action distributions.

    Attributes:
        sample: `sample(key, logits) -> action`.
        mode: `mode(logits) -> action`, the most probable one.
        log_prob: `log_prob(logits, action)`.
        entropy: `entropy(logits)`, in nats.
    """

    sample: Callable[..., Array]
    mode: Callable[..., Array]
    log_prob: Callable[..., Array]
    entropy: Callable[..., Array]


def mask_logits(logits: Float[Array, "... A"], avail: Bool[Array, "... A"]) -> Float[Array, "... A"]:
    """Returns the logits with unavailable actions at -1e10, so that their probability is exactly zero."""
    return jnp.where(avail, logits, UNAVAILABLE)


def _log_prob(logits: Float[Array, "... A"], action: Int[Array, "..."]) -> Float[Array, "..."]:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def _entropy(logits: Float[Array, "... A"]) -> Float[Array, "..."]:
    log_p = jax.nn.log_softmax(logits)
    # A masked action has p = 0 and log p = -1e10: their product, not their limit, would be lost to rounding.
    return -jnp.sum(jnp.where(log_p > UNAVAILABLE / 2, jnp.exp(log_p) * log_p, 0.0), axis=-1)


def _sample(key: PRNGKeyArray, logits: Float[Array, "... A"]) -> Int[Array, "..."]:
    return jax.random.categorical(key, logits)


def _mode(logits: Float[Array, "... A"]) -> Int[Array, "..."]:
    return jnp.argmax(logits, axis=-1)


categorical = Distribution(sample=_sample, mode=_mode, log_prob=_log_prob, entropy=_entropy)
