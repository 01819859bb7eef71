"""Advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def traced_gae(
    reward: Float[Array, "T E V"],
    value: Float[Array, "T E V"],
    next_value: Float[Array, "T E V"],
    terminated: Bool[Array, "T E"],
    truncated: Bool[Array, "T E"],
    gamma: float,
    gae_lambda: float,
    trace: Float[Array, "T E #V"] | None = None,
) -> Float[Array, "T E V"]:
    """Returns advantages, in the units of the reward.

    With delta_t = r_t + gamma (1 - terminated_t) V(next_t) - V_t and done = terminated or
    truncated,

        A_t = delta_t + gamma lambda (1 - done_t) min(1, rho_{t+1}) A_{t+1}.

    Without a trace, rho is 1, and this is GAE(gamma, lambda) (Schulman et al. 2016). With the
    probability ratio of the agents updated before, it is the preceding-agent correction of
    A2PO (Wang et al. 2023).

    Args:
        reward: r_t.
        value: V_t, in the units of the reward.
        next_value: the value of the next state, before any reset.
        terminated: the value after the step is zero.
        truncated: the time limit ended the episode; the next value still counts.
        gamma: discount.
        gae_lambda: decay of the trace.
        trace: rho_t.
    """
    going_on = 1.0 - (terminated | truncated)[..., None]
    delta = reward + gamma * (1.0 - terminated[..., None]) * next_value - value
    decay = gamma * gae_lambda * going_on
    if trace is not None:
        following = jnp.concatenate([trace[1:], jnp.ones_like(trace[:1])])
        decay = decay * jnp.minimum(1.0, following)

    def backward(later: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = inputs
        now = delta + decay * later
        return now, now

    return jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]
