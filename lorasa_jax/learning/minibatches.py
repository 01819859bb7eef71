"""Cuts a rollout into chunks, selects a block of agents, and assigns minibatches."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.core.axes import by_shard
from lorasa_jax.core.losses import normalise_advantages
from lorasa_jax.core.types import PyTree, Trajectory
from lorasa_jax.learning.system import System


class Batch(NamedTuple):
    """One minibatch: B chunks of L steps, each with its initial recurrent states."""

    obs: Float[Array, "L B M D"]
    view: Float[Array, "L B V D2"] | Float[Array, "L B 1 D2"]
    avail: Bool[Array, "L B M A"]
    mask: Bool[Array, "L B M"]
    actor_first: Bool[Array, "L B M"]
    critic_first: Bool[Array, "L B V"]
    action: Int[Array, "L B M"] | Float[Array, "L B M A"]
    log_prob: Float[Array, "L B M R"]
    advantage: Float[Array, "L B M"]
    preceding: Float[Array, "L B M"]
    value: Float[Array, "L B V"]
    target: Float[Array, "L B V"]
    actor_carry: Float[Array, "B M H"]
    critic_carry: Float[Array, "B V H2"]
    owner: PyTree = ()


ACTOR = ("obs", "avail", "mask", "actor_first", "action", "log_prob", "advantage", "preceding", "actor_carry")
CRITIC = ("view", "critic_first", "value", "target", "critic_carry")
CARRIES = ("actor_carry", "critic_carry")
"""Fields of a batch with an agent axis, with an axis of values, and without a time axis."""


def make_batch(
    system: System,
    trajectory: Trajectory,
    mask: Bool[Array, "T E N"],
    advantage: Float[Array, "T E V"],
    target: Float[Array, "T E V"],
    preceding: Float[Array, "T E 1"],
    block: Int[Array, " M"] | None,
) -> Batch:
    """Returns the rollout of a block in chunks: leaves [C, L, E, ...], carries [C, E, ...]."""
    fields: dict[str, PyTree] = {
        "obs": trajectory.obs,
        "view": system.critic_view(trajectory.obs, trajectory.state),
        "avail": trajectory.avail,
        "mask": mask,
        "actor_first": system.actor_first(trajectory.first, trajectory.alive),
        "critic_first": system.critic_first(trajectory.first, trajectory.alive),
        "action": trajectory.action,
        "log_prob": trajectory.log_prob,
        "advantage": jnp.broadcast_to(advantage, mask.shape),
        "preceding": jnp.broadcast_to(preceding, mask.shape),
        "value": trajectory.value,
        "target": target,
        "actor_carry": trajectory.actor_carry,
        "critic_carry": trajectory.critic_carry,
    }
    if system.actor.sharing.dynamic_roles:
        fields["owner"] = trajectory.owner
    if block is not None:
        narrowed = ACTOR + (CRITIC if system.critic.sharing.n_agents > 1 else ())
        fields |= {name: jnp.take(fields[name], block, axis=2) for name in narrowed if fields[name].shape[2] > 1}
    if system.config.ppo.advantage_norm == "rollout":
        fields["advantage"] = normalise_advantages(fields["advantage"], fields["mask"])
    length = system.config.chunk_length
    return Batch(**{k: x if k in CARRIES else x.reshape(-1, length, *x.shape[1:]) for k, x in fields.items()})


def minibatch(batch: Batch, envs: Int[Array, "Q M"] | None) -> Batch:
    """Returns all chunks of environment envs[q, m] for each agent m; with None, of all environments.

    If all values see the same, the critic's fields of all agents are those of environment envs[q, 0].
    """

    def pick(x: Array, envs: Int[Array, "Q M"] | None, axis: int) -> Array:
        if envs is not None:
            every, width = (slice(None),) * axis, envs.shape[1]
            x = x[(*every, envs[:, 0])] if width == 1 else x[(*every, envs, jnp.arange(width))]
        return jax.lax.collapse(jnp.moveaxis(x, 0, axis - 1), axis - 1, axis + 1)

    def pick_all(name: str, x: Array) -> Array:
        axis = 1 if name in CARRIES else 2
        picked = envs
        if envs is not None and name in CRITIC and batch.view.shape[3] == 1:
            picked = envs[:, :1]
        return by_shard(partial(pick, axis=axis), x, picked, axis)

    return Batch(**{name: jax.tree.map(partial(pick_all, name), x) for name, x in batch._asdict().items()})


def minibatch_indices(key: PRNGKeyArray, n_envs: int, minibatches: int, width: int) -> Int[Array, "B Q M"]:
    """Returns the environments of B minibatches: envs[b, q, m] is agent m's q-th environment in minibatch b.

    Out of every B neighbouring environments, each minibatch gets one, drawn independently for each agent. So an
    environment stays among its neighbours, and on its device.
    """
    blocks = n_envs // minibatches
    order = jnp.argsort(jax.random.uniform(key, (minibatches, blocks, width)), axis=0)
    return order + minibatches * jnp.arange(blocks)[:, None]
