"""Losses: each returns (scalar, info)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lorasa_jax.config import require
from lorasa_jax.core.types import Metrics

PolicyLoss = Callable[..., tuple[Float[Array, ""], Metrics]]
"""A loss that can replace `policy_loss`.

It is called with the arguments of `policy_loss` by name. It takes those it needs, and the others as `**rest`. It
returns a scalar to minimise, and a dictionary of scalars to report. Like `policy_loss`, it sums over the members of the
block, divides the sum over each member's samples by its `pool`, and leaves out samples that `mask` excludes.
"""


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Returns the mean of `x` where the mask is true, and 0 if it is false everywhere."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def normalise_advantages(advantage: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Returns advantages with mean 0 and standard deviation 1 over all masked entries, including the agent axis.

    Equal advantages become 0, up to rounding.
    """
    mean = masked_mean(advantage, mask)
    variance = masked_mean((advantage - mean) ** 2, mask)
    # The constant is much larger than the rounding error of equal advantages.
    return (advantage - mean) / (jnp.sqrt(variance) + 1e-5)


def approximate_kl(
    log_prob: Float[Array, "... R"], old_log_prob: Float[Array, "... R"], parts: Bool[Array, "... R"]
) -> Float[Array, "..."]:
    """Returns an estimate of KL(old || new) from each sample: pi / pi_old - 1 - log(pi / pi_old) >= 0, in nats.

    The parts of an action are summed. The mean over samples of the old policy is unbiased. Source: Schulman 2020,
    "Approximating KL divergence".
    """
    log_ratio = log_prob - old_log_prob
    return jnp.sum(jnp.where(parts, jnp.exp(log_ratio) - 1 - log_ratio, 0.0), axis=-1)


def policy_loss(
    log_prob: Float[Array, "L B M R"],
    old_log_prob: Float[Array, "L B M R"],
    parts: Bool[Array, "L B M R"],
    entropy: Float[Array, "L B M"],
    advantage: Float[Array, "L B M"],
    preceding: Float[Array, "L B M"],
    mask: Bool[Array, "L B M"],
    pool: Float[Array, " M"],
    clip_eps: Float[Array, ""] | float,
    entropy_coef: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the negative clipped surrogate with its entropy bonus, to be minimised.

    With l = pi / pi_old clip(preceding, 1 - eps / 2, 1 + eps / 2),

        loss = - sum_i 1 / pool_i  sum_{t, e} mask (min(l A, clip(l, 1 - eps, 1 + eps) A) + c entropy).

    `pool` is the number of masked samples of all block members on agent i's trunk, so the
    trunk follows the gradient of their pooled mean. `preceding` is the probability ratio of the agents updated
    before; it is 1 if all are updated at once. With several `parts` of an action, one per dimension, the minimum
    above is taken for each part, and summed over the parts that exist.

    Source: PPO (Schulman et al. 2017); MAPPO (Yu et al. 2022); A2PO (Wang et al. 2023) for the preceding factor.
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    joint = ratio * jnp.clip(preceding, 1 - clip_eps / 2, 1 + clip_eps / 2)[..., None]
    clipped = jnp.clip(joint, 1 - clip_eps, 1 + clip_eps)
    worse = jnp.minimum(joint * advantage[..., None], clipped * advantage[..., None])
    surrogate = jnp.sum(jnp.where(parts, worse, 0.0), axis=-1)
    # Sum over time and environments: one number per agent remains.
    per_agent = jnp.sum(jnp.where(mask, surrogate + entropy_coef * entropy, 0.0), axis=(0, 1))
    counts = mask[..., None] & parts
    info = {
        "policy_loss": -masked_mean(surrogate, mask),
        "entropy": masked_mean(entropy, mask),
        "clip_fraction": masked_mean((jnp.abs(joint - 1) > clip_eps).astype(jnp.float32), counts),
    }
    return -jnp.sum(per_agent / pool), info


def require_policy_loss(loss: Any, n_agents: int) -> None:
    """Tests a policy loss on one sample of every agent.

    Raises:
        ConfigError: the loss does not take the arguments of `policy_loss`, or does not return a scalar and a
            dictionary of scalars.
    """
    names = list(inspect.signature(policy_loss).parameters)
    require(callable(loss), f"policy_loss must be a function, got a {type(loss).__name__}")
    try:
        inspect.signature(loss).bind(**dict.fromkeys(names))
    except TypeError as error:
        needed = f"policy_loss must take {', '.join(names)} by name; those that it does not need as **rest"
        require(False, f"{needed} ({error})")
    sample = jax.ShapeDtypeStruct((1, 1, n_agents), jnp.float32)
    parts, mask, pool = (
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (((1, 1, n_agents, 1), bool), ((1, 1, n_agents), bool), ((n_agents,), jnp.float32))
    )
    log_prob = jax.ShapeDtypeStruct(parts.shape, jnp.float32)
    arrays = dict(zip(names, (log_prob, log_prob, parts, sample, sample, sample, mask, pool), strict=False))
    found = jax.eval_shape(partial(loss, entropy_coef=0.01), **arrays, clip_eps=jax.ShapeDtypeStruct((), jnp.float32))
    fits = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)
    scalars = fits and all(getattr(leaf, "shape", None) == () for leaf in (found[0], *found[1].values()))
    shapes = jax.tree.map(lambda leaf: leaf.shape, found)
    require(scalars, f"policy_loss must return a scalar and a dictionary of scalars; it returned shapes {shapes}")


def value_loss(
    value: Float[Array, "L B V"],
    old_value: Float[Array, "L B V"],
    target: Float[Array, "L B V"],
    value_clip: float,
    huber_delta: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the clipped Huber loss of the values, all in normalised units.

    It is the larger of two losses: of the new value, and of the new value clipped to within `value_clip` of the old
    one. With `huber_delta` infinite, the loss is half the squared error. Dead agents count, because the
    team's return continues.

    Source: MAPPO (Yu et al. 2022).
    """
    held = old_value + jnp.clip(value - old_value, -value_clip, value_clip)
    loss = jnp.mean(jnp.maximum(_huber(value - target, huber_delta), _huber(held - target, huber_delta)))
    return loss, {"value_loss": loss}


def _huber(error: Array, delta: float) -> Array:
    return 0.5 * error**2 if delta == float("inf") else optax.huber_loss(error, delta=delta)
