"""One update: a schedule of stages, each a pass over the rollout in minibatches.

A stage moves a block of agents. Parameters that the block does not use are left
untouched, their moments included.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.advantages import traced_gae
from lorasa_jax.distributions import mask_logits
from lorasa_jax.losses import normalise_advantages, policy_loss, value_loss
from lorasa_jax.system import System
from lorasa_jax.types import Learner, Metrics, PyTree, Schedule, Trajectory


class Batch(NamedTuple):
    """One minibatch: B chunks of L steps, each with the recurrent states it began in."""

    obs: Float[Array, "L B N D"]
    view: Float[Array, "L B V D2"]
    avail: Bool[Array, "L B N A"]
    mask: Bool[Array, "L B N"]
    actor_first: Bool[Array, "L B N"]
    critic_first: Bool[Array, "L B V"]
    action: Int[Array, "L B N"]
    log_prob: Float[Array, "L B N"]
    advantage: Float[Array, "L B N"]
    value: Float[Array, "L B V"]
    target: Float[Array, "L B V"]
    actor_carry: Float[Array, "B N H"]
    critic_carry: Float[Array, "B V H2"]


AGENT_FIELDS = {
    "obs": 2,
    "avail": 2,
    "mask": 2,
    "actor_first": 2,
    "action": 2,
    "log_prob": 2,
    "advantage": 2,
    "actor_carry": 1,
}
"""The fields of a batch that have an agent axis, and where."""

CARRIES = ("actor_carry", "critic_carry")
"""The fields of a batch that have no time axis."""


def run_schedule(
    system: System, learner: Learner, trajectory: Trajectory, lr_scale: Float[Array, ""], key: PRNGKeyArray
) -> tuple[Learner, Metrics]:
    """Returns the learner after all stages of the schedule, and what the update measured."""
    value, next_value = (
        system.value_norm.denormalise(learner.value_norm, x) for x in (trajectory.value, trajectory.next_value)
    )
    # A team's reward is every agent's; its one value is compared with that.
    reward = trajectory.reward[..., : value.shape[-1]]
    ppo = system.config.ppo
    advantage = traced_gae(
        reward, value, next_value, trajectory.terminated, trajectory.truncated, ppo.gamma, ppo.gae_lambda
    )
    returns = advantage + value
    value_norm = system.value_norm.update(learner.value_norm, returns)
    batch = _batch(system, trajectory, advantage, system.value_norm.normalise(value_norm, returns))
    learner = learner._replace(value_norm=value_norm)

    def stage(learner: Learner, inputs: tuple) -> tuple[Learner, Metrics]:
        row, key = inputs
        return run_stage(system, learner, batch, row, lr_scale, key)

    keys = jax.random.split(key, system.schedule.clip_eps.shape[0])
    learner, infos = jax.lax.scan(stage, learner, (system.schedule, keys))
    info = jax.tree.map(jnp.mean, infos)
    return learner, {**info, "explained_variance": 1 - jnp.var(returns - value) / (jnp.var(returns) + 1e-8)}


def _batch(system: System, trajectory: Trajectory, advantage: Array, target: Array) -> Batch:
    """The rollout as one batch, cut into chunks: every leaf is [C, L, E, ...], and [C, E, ...] the carries."""
    ppo = system.config.ppo
    mask = trajectory.alive if ppo.mask_dead else jnp.ones_like(trajectory.alive)
    advantage = jnp.broadcast_to(advantage, mask.shape)
    if ppo.advantage_norm == "rollout":
        advantage = normalise_advantages(advantage, mask)
    steps = {
        "obs": trajectory.obs,
        "view": system.critic_view(trajectory.obs, trajectory.state),
        "avail": trajectory.avail,
        "mask": mask,
        "actor_first": system.actor_first(trajectory.first, trajectory.alive),
        "critic_first": system.critic_first(trajectory.first, trajectory.alive),
        "action": trajectory.action,
        "log_prob": trajectory.log_prob,
        "advantage": advantage,
        "value": trajectory.value,
        "target": target,
    }
    chunk = system.config.chunk_length
    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), steps)
    return Batch(**chunks, actor_carry=trajectory.actor_carry, critic_carry=trajectory.critic_carry)


def _minibatch(batch: Batch, envs: Int[Array, "Q N"] | None) -> Batch:
    """All chunks of environment envs[q, m] for each agent m; of all environments where none are named."""

    def pick(x: Array, axis: int) -> Array:
        if envs is not None:
            width = x.shape[axis + 1]  # N, or the number of values
            x = x[(*(slice(None),) * axis, envs[:, :width], jnp.arange(width))]
        return jax.lax.collapse(jnp.moveaxis(x, 0, axis - 1), axis - 1, axis + 1)

    return Batch(**{name: pick(x, 1 if name in CARRIES else 2) for name, x in batch._asdict().items()})


def _deal(key: PRNGKeyArray, n_envs: int, minibatches: int, n_agents: int) -> Int[Array, "B Q N"]:
    """Deals every agent's environments to B minibatches: envs[b, q, m] is agent m's q-th environment in the b-th.

    Of any B neighbouring environments each minibatch gets one, drawn anew for every agent, so that an
    environment stays among its neighbours on whatever devices they are spread over.
    """
    blocks = n_envs // minibatches
    order = jnp.argsort(jax.random.uniform(key, (minibatches, blocks, n_agents)), axis=0)
    return order + minibatches * jnp.arange(blocks)[:, None]


def run_stage(
    system: System, learner: Learner, batch: Batch, row: Schedule, lr_scale: Float[Array, ""], key: PRNGKeyArray
) -> tuple[Learner, Metrics]:
    """Returns the learner after one pass over the batch for one block of agents."""
    config, minibatches = system.config, system.config.ppo.minibatches
    if minibatches == 1:
        return run_minibatch(system, learner, _minibatch(batch, None), row, lr_scale)

    def step(learner: Learner, envs: Int[Array, "Q N"]) -> tuple[Learner, Metrics]:
        return run_minibatch(system, learner, _minibatch(batch, envs), row, lr_scale)

    dealt = _deal(key, config.n_envs, minibatches, system.actor.sharing.n_agents)
    learner, infos = jax.lax.scan(step, learner, dealt)
    return learner, jax.tree.map(jnp.mean, infos)


def run_minibatch(
    system: System, learner: Learner, batch: Batch, row: Schedule, lr_scale: Float[Array, ""]
) -> tuple[Learner, Metrics]:
    """Returns the learner after one gradient step of the block's actors and one of the critic."""
    n_agents = system.actor.sharing.n_agents
    # Everyone moves: nothing to pick out, nothing to leave untouched.
    block = None if row.block.shape[0] == n_agents else row.block
    learner, actor_info = _update_actor(system, learner, batch, block, row.clip_eps, lr_scale)
    learner, critic_info = _update_critic(system, learner, batch, lr_scale)
    return learner, {**actor_info, **critic_info}


def _update_actor(
    system: System, learner: Learner, batch: Batch, block: Array | None, clip_eps: Array, lr_scale: Array
) -> tuple[Learner, Metrics]:
    sharing, ppo = system.actor.sharing, system.config.ppo
    members = jnp.arange(sharing.n_agents) if block is None else block
    if block is not None:
        batch = batch._replace(
            **{name: jnp.take(getattr(batch, name), block, axis=axis) for name, axis in AGENT_FIELDS.items()}
        )
    advantage = batch.advantage
    if ppo.advantage_norm == "minibatch":
        advantage = normalise_advantages(advantage, batch.mask)

    # Samples of each member, and of all members on its trunk.
    counts = jnp.sum(batch.mask, axis=(0, 1), dtype=jnp.float32)
    on_trunk = jax.nn.one_hot(jnp.array(sharing.groups)[members], sharing.n_trunks)
    pool = jnp.maximum(on_trunk @ (counts @ on_trunk), 1.0)

    def loss(trained: dict[str, PyTree]) -> tuple[Array, Metrics]:
        params = learner.actor._replace(**trained)
        _, logits = system.actor.unroll(params, batch.actor_carry, batch.obs, batch.actor_first, block)
        logits = mask_logits(logits, batch.avail)
        log_prob = system.dist.log_prob(logits, batch.action)
        entropy = system.dist.entropy(logits)
        return policy_loss(
            log_prob, batch.log_prob, entropy, advantage, batch.mask, pool, clip_eps, ppo.entropy_coef
        )  # fmt: skip

    grads, info = jax.grad(loss, has_aux=True)({part: getattr(learner.actor, part) for part in system.train})
    moved = {
        "shared": None if block is None else jnp.any(on_trunk > 0, axis=0),
        "agents": None if block is None else jnp.zeros(sharing.n_agents, bool).at[block].set(True),
    }
    if "agents" in grads:
        # The loss pools the agents of a trunk; what an agent owns follows the mean over its own samples.
        undilute = jnp.zeros(sharing.n_agents).at[members].set(pool / jnp.maximum(counts, 1.0))
        grads["agents"] = jax.vmap(lambda scale, tree: jax.tree.map(lambda g: scale * g, tree))(
            undilute, grads["agents"]
        )
    params, states, norms = learner.actor, dict(learner.actor_opt), []
    for part, grad in grads.items():
        new, states[part], norm = system.optimizer.apply(
            getattr(params, part), states[part], grad, ppo.lr * lr_scale, moved[part]
        )
        params = params._replace(**{part: new})
        norms.append(jnp.mean(norm))
    return learner._replace(actor=params, actor_opt=states), {**info, "actor_grad_norm": sum(norms)}


def _update_critic(system: System, learner: Learner, batch: Batch, lr_scale: Array) -> tuple[Learner, Metrics]:
    ppo = system.config.ppo

    def loss(shared: PyTree) -> tuple[Array, Metrics]:
        params = learner.critic._replace(shared=shared)
        _, value = system.critic.unroll(params, batch.critic_carry, batch.view, batch.critic_first)
        total, info = value_loss(value[..., 0], batch.value, batch.target, ppo.value_clip, ppo.huber_delta)
        return ppo.value_coef * total, info

    grads, info = jax.grad(loss, has_aux=True)(learner.critic.shared)
    shared, state, norm = system.optimizer.apply(
        learner.critic.shared, learner.critic_opt, grads, ppo.critic_lr * lr_scale
    )
    learner = learner._replace(critic=learner.critic._replace(shared=shared), critic_opt=state)
    return learner, {**info, "critic_grad_norm": jnp.mean(norm)}
