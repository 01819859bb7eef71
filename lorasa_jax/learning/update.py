"""One update: a schedule of stages. In each stage a block of agents makes passes over the rollout in minibatches.

Parameters and moments that the block does not use stay unchanged. Agents outside the block that were
already updated enter the block's advantages and loss through their probability ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.core.advantages import traced_gae
from lorasa_jax.core.losses import approximate_kl, masked_mean, normalise_advantages, value_loss
from lorasa_jax.core.types import Learner, Metrics, PolicyParams, PyTree, Rates, Schedule, Trajectory
from lorasa_jax.learning.minibatches import CARRIES, Batch, make_batch, minibatch, minibatch_indices
from lorasa_jax.learning.pacing import paced_factor
from lorasa_jax.learning.system import System, trained_stacks
from lorasa_jax.sharing.schemes import join


class Progress(NamedTuple):
    """The state of an update between two stages.

    Attributes:
        learner: the current learner.
        log_prob: log-probabilities of the taken actions under the current policies.
        moved: agents that use a parameter that this update has trained, [N].
    """

    learner: Learner
    log_prob: Float[Array, "T E N R"]
    moved: Bool[Array, " N"]


def run_schedule(
    system: System, learner: Learner, trajectory: Trajectory, rates: Rates, key: PRNGKeyArray
) -> tuple[Learner, Metrics]:
    """Returns the learner after all stages of the schedule, and the metrics of the update."""
    units, mask = system.value_norm, _counted(system, trajectory)
    value = units.denormalise(learner.value_norm, trajectory.value)
    advantages = partial(_advantages, system, learner, trajectory)
    plain = advantages()
    returns = plain + value
    value_norm = units.update(learner.value_norm, returns)
    order_key, deal_key = jax.random.split(key)
    score = jax.vmap(masked_mean, in_axes=-1)(jnp.abs(jnp.broadcast_to(plain, mask.shape)), mask)
    schedule = system.schedule(order_key, score)
    everyone = schedule.block.shape[1] == mask.shape[-1]

    def stage(progress: Progress, inputs: tuple[Schedule, PRNGKeyArray]) -> tuple[Progress, tuple[Metrics, Metrics]]:
        row, key = inputs
        if everyone:
            block, ratio, advantage = None, jnp.ones_like(plain[..., :1]), plain
        else:
            block, ratio = row.block, _preceding_ratio(system, progress, trajectory, mask, row.block)
            advantage = advantages(jnp.where(row.trace, ratio, 1.0))
        target = units.normalise(value_norm, advantage + value)
        batch = make_batch(system, trajectory, mask, advantage, target, ratio, block)
        learner, info = run_stage(system, progress.learner, batch, row, block, rates, key)
        progress = progress._replace(learner=learner)
        return progress if block is None else _recompute_log_probs(system, progress, trajectory, block), info

    progress = Progress(learner._replace(value_norm=value_norm), trajectory.log_prob, jnp.zeros(mask.shape[-1], bool))
    keys = jax.random.split(deal_key, schedule.block.shape[0])
    progress, infos = jax.lax.scan(stage, progress, (schedule, keys))
    # Average only over passes that performed an update.
    info: Metrics = {}
    for part, trained in zip(infos, (schedule.train_actor, schedule.train_critic), strict=True):
        info |= {name: jnp.sum(x) / jnp.sum(trained) for name, x in part.items()}
    explained = 1 - jnp.var(returns - value) / (jnp.var(returns) + 1e-8)
    change = _policy_change(system, progress, trajectory, everyone)
    return progress.learner, {**info, **change, "explained_variance": explained}


def _counted(system: System, trajectory: Trajectory) -> Bool[Array, "T E N"]:
    """The samples that enter the policy loss."""
    return trajectory.alive if system.config.ppo.mask_dead else jnp.ones_like(trajectory.alive)


def _policy_change(system: System, progress: Progress, trajectory: Trajectory, everyone: bool) -> Metrics:
    """KL divergence between the policies that collected the rollout and those at the end of the update.

    `kl` is the mean of `approximate_kl` over samples. `kl_max` is the largest mean over the samples of one owner of
    parameters: an agent, a role, or, without adapters, a trunk. If all agents are updated at once, a quarter of the
    steps is used. Otherwise the probabilities of all steps are already known.
    """
    log_prob = progress.log_prob
    if everyone:
        trajectory = _a_quarter(system, trajectory)
        log_prob = _log_prob_now(system, progress.learner.actor, trajectory, None)
    mask, sharing = _counted(system, trajectory), system.actor.sharing
    kl = approximate_kl(log_prob, trajectory.log_prob, system.dist.parts(trajectory.avail))
    kl = jnp.where(mask, kl, 0.0)
    owner, n_owners = sharing.finest

    def total(x: Float[Array, "T E N"]) -> Float[Array, " K"]:
        if owner is None:
            return jnp.sum(x[..., None] * jax.nn.one_hot(trajectory.owner, n_owners), axis=(0, 1, 2))
        return jnp.zeros(n_owners).at[jnp.array(owner)].add(jnp.sum(x, axis=(0, 1)))

    sums, counts = total(kl), total(mask.astype(kl.dtype))
    return {
        "kl": jnp.sum(sums) / jnp.maximum(jnp.sum(counts), 1.0),
        "kl_max": jnp.max(sums / jnp.maximum(counts, 1.0)),
    }


def _a_quarter(system: System, trajectory: Trajectory) -> Trajectory:
    """Every fourth chunk of a rollout, or the first quarter of each chunk if there are fewer than four."""
    length = system.config.chunk_length
    chunks = len(trajectory.first) // length
    stride, kept = (4, length) if chunks >= 4 else (1, -(-length // 4))

    def pick(x: Array) -> Array:
        return jax.lax.collapse(x.reshape(chunks, length, *x.shape[1:])[::stride, :kept], 0, 2)

    carries = {name: getattr(trajectory, name)[::stride] for name in CARRIES}
    rest = {name: x for name, x in trajectory._asdict().items() if name not in (*CARRIES, "inputs")}
    return trajectory._replace(**jax.tree.map(pick, rest), **carries)


def _advantages(
    system: System, learner: Learner, trajectory: Trajectory, trace: Float[Array, "T E 1"] | None = None
) -> Float[Array, "T E V"]:
    """Advantages in reward units."""
    ppo, ended = system.config.ppo, (trajectory.terminated, trajectory.truncated)
    values = trajectory.value, trajectory.next_value
    value, next_value = (system.value_norm.denormalise(learner.value_norm, x) for x in values)
    # All agents of a team have the same reward; the team's value is compared with it.
    reward = trajectory.reward[..., : value.shape[-1]]
    return traced_gae(reward, value, next_value, *ended, ppo.gamma, ppo.gae_lambda, trace)


def policy_gradient(system: System, learner: Learner, trajectory: Trajectory) -> dict[str, PyTree]:
    """Returns the gradient of the policy loss over a whole rollout, by stack, before any update.

    It is the gradient of the first step of an update of all agents at once, with the whole rollout as minibatch.

    Args:
        system: the parts.
        learner: the learner whose policy collected the rollout.
        trajectory: the rollout.
    """
    mask, advantage = _counted(system, trajectory), _advantages(system, learner, trajectory)
    nobody = jnp.ones_like(advantage[..., :1])
    batch = minibatch(make_batch(system, trajectory, mask, advantage, trajectory.value, nobody, None), None)
    loss, *_ = _policy_loss(system, learner.actor, batch, None, system.config.ppo.clip_eps)
    return jax.grad(loss, has_aux=True)(trained_stacks(system, learner.actor))[0]


def _preceding_ratio(
    system: System, progress: Progress, trajectory: Trajectory, mask: Bool[Array, "T E N"], block: Int[Array, " M"]
) -> Float[Array, "T E 1"]:
    """The probability ratio of the joint action of the updated agents outside the block."""
    parts = system.dist.parts(trajectory.avail)
    change = jnp.where(parts, progress.log_prob - trajectory.log_prob, -jnp.inf)
    # The mean ratio over the parts of an action.
    change = jax.nn.logsumexp(change, axis=-1) - jnp.log(parts.sum(axis=-1))
    others = progress.moved.at[block].set(False)
    return jnp.exp(jnp.sum(jnp.where(mask & others, change, 0.0), axis=2, keepdims=True))


def _recompute_log_probs(
    system: System, progress: Progress, trajectory: Trajectory, block: Int[Array, " M"]
) -> Progress:
    """Recomputes the log-probabilities after a stage, and marks the agents that it updated.

    If no agent outside the block uses parameters that the stage trained, only the block is recomputed.
    """
    sharing = system.actor.sharing
    users = jnp.zeros(sharing.n_agents, bool).at[block].set(True)
    homes = {"shared": sharing.groups} | {name: level.owner or () for name, level in sharing.stacks.items()}
    trained = [homes[name] for name in trained_stacks(system, progress.learner.actor)]
    common = [jnp.array(home) for home in trained if len(set(home)) < sharing.n_agents]
    for home in common:
        users |= jnp.zeros(sharing.n_agents, bool).at[home[block]].set(True)[home]
    if common:
        log_prob = _log_prob_now(system, progress.learner.actor, trajectory, None)
    else:
        now = _log_prob_now(system, progress.learner.actor, trajectory, block)
        log_prob = progress.log_prob.at[:, :, block].set(now)
    return Progress(progress.learner, log_prob, progress.moved | users)


def _log_prob_now(
    system: System, params: PolicyParams, trajectory: Trajectory, block: Int[Array, " M"] | None
) -> Float[Array, "T E M R"]:
    """The log-probabilities of the taken actions. Each chunk starts from its stored recurrent state."""

    def pick(x: Array) -> Array:
        return x if block is None else jnp.take(x, block, axis=2)

    def chunks(x: Array) -> Array:
        return x.reshape(len(trajectory.actor_carry), -1, *x.shape[1:])

    def unroll(carry: Array, obs: Array, first: Array, owner: PyTree) -> Array:
        return system.actor.unroll(
            params, carry, obs, first, block, owner if system.actor.sharing.dynamic_roles else None
        )[1]

    obs, first = pick(trajectory.obs), pick(system.actor_first(trajectory.first, trajectory.alive))
    steps = jax.tree.map(chunks, (obs, first, trajectory.owner))
    logits = jax.lax.collapse(jax.vmap(unroll)(pick(trajectory.actor_carry), *steps), 0, 2)
    return system.dist.log_prob(system.dist.mask(logits, pick(trajectory.avail)), pick(trajectory.action))


def run_stage(
    system: System,
    learner: Learner,
    batch: Batch,
    row: Schedule,
    block: Int[Array, " M"] | None,
    rates: Rates,
    key: PRNGKeyArray,
) -> tuple[Learner, tuple[Metrics, Metrics]]:
    """Returns the learner after a block's passes over its batch, and the metrics of each pass, [P].

    Args:
        system: the parts.
        learner: before the stage.
        batch: from `make_batch`.
        row: the stage's row of the schedule.
        block: the agents to update; None: all agents, without any selection.
        rates: the learning rates.
        key: draws the minibatches.
    """
    config, minibatches = system.config, system.config.ppo.minibatches

    def one_pass(learner: Learner, inputs: tuple) -> tuple[Learner, tuple[Metrics, Metrics]]:
        train_actor, train_critic, key = inputs

        def step(learner: Learner, envs: Array | None) -> tuple[Learner, tuple[Metrics, Metrics]]:
            part = minibatch(batch, envs)
            learner, actor_info = _where(
                train_actor, lambda now: _update_actor(system, now, part, block, row.clip_eps, rates), learner
            )
            learner, critic_info = _where(
                train_critic, lambda now: _update_critic(system, now, part, block, rates), learner
            )
            return learner, (actor_info, critic_info)

        if minibatches == 1:
            return step(learner, None)
        dealt = minibatch_indices(key, config.n_envs, minibatches, batch.mask.shape[-1])
        learner, infos = jax.lax.scan(step, learner, dealt)
        return learner, jax.tree.map(jnp.mean, infos)

    keys = jax.random.split(key, row.train_actor.shape[0])
    return jax.lax.scan(one_pass, learner, (row.train_actor, row.train_critic, keys))


def _where(
    flag: Bool[Array, ""], update: Callable[[Learner], tuple[Learner, Metrics]], learner: Learner
) -> tuple[Learner, Metrics]:
    """The result of the update if the flag is true, otherwise the unchanged learner and zeros."""
    _, info = jax.eval_shape(update, learner)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info)
    return jax.lax.cond(flag, update, lambda now: (now, nothing), learner)


def _policy_loss(
    system: System, actor: PolicyParams, batch: Batch, block: Array | None, clip_eps: Float[Array, ""] | float
) -> tuple[Callable[[dict[str, PyTree]], tuple[Array, Metrics]], Array, Array]:
    """The block's loss as a function of the trained parameters, and its numbers of samples.

    Returns:
        The loss; the number of samples of each member, [M], and of all members on its trunk, [M].
    """
    sharing, ppo, dist = system.actor.sharing, system.config.ppo, system.dist
    members = jnp.arange(sharing.n_agents) if block is None else block
    advantage = batch.advantage
    if ppo.advantage_norm == "minibatch":
        advantage = normalise_advantages(advantage, batch.mask)

    # Samples of each member, and of all members on its trunk.
    counts = jnp.sum(batch.mask, axis=(0, 1), dtype=jnp.float32)
    homes = jnp.array(sharing.groups)[members]
    pool = jnp.maximum(jnp.zeros(sharing.n_trunks).at[homes].add(counts)[homes], 1.0)
    if sharing.shared_across_trunks:
        pool = jnp.full_like(pool, jnp.maximum(jnp.sum(counts), 1.0))

    def loss(stacks: dict[str, PyTree]) -> tuple[Array, Metrics]:
        params = join(actor, stacks)
        played = batch.actor_carry, batch.obs, batch.actor_first
        _, logits = system.actor.unroll(params, *played, block, batch.owner if sharing.dynamic_roles else None)
        logits = dist.mask(logits, batch.avail)
        log_prob, entropy = dist.log_prob(logits, batch.action), dist.entropy(logits)
        total, info = system.policy_loss(
            log_prob=log_prob, old_log_prob=batch.log_prob, parts=dist.parts(batch.avail), entropy=entropy,
            advantage=advantage, preceding=batch.preceding, mask=batch.mask, pool=pool,
            clip_eps=clip_eps, entropy_coef=ppo.entropy_coef,
        )  # fmt: skip
        return total, {"policy_loss": total, "entropy": masked_mean(entropy, batch.mask), **info}

    return loss, counts, pool


def _update_actor(
    system: System,
    learner: Learner,
    batch: Batch,
    block: Array | None,
    clip_eps: Float[Array, ""],
    rates: Rates,
) -> tuple[Learner, Metrics]:
    """One gradient step of the block's actors."""
    sharing = system.actor.sharing
    loss, counts, pool = _policy_loss(system, learner.actor, batch, block, clip_eps)
    stacks = trained_stacks(system, learner.actor)
    grads, info = jax.grad(loss, has_aux=True)(stacks)
    owners: dict[str, tuple[tuple[int, ...] | None, int]] = {"shared": (sharing.groups, sharing.n_trunks)}
    owners |= {name: (level.owner, level.n_owners) for name, level in sharing.stacks.items()}
    states, norms = dict(learner.actor_opt), []
    for name, grad in grads.items():
        undilute, moved = _own_samples(*owners[name], batch, counts, pool, block)
        # The loss averages over the pool: the agents of a trunk, or all. An owner averages over its own samples.
        if name != "shared" or sharing.shared_across_trunks:
            grad = jax.vmap(lambda scale, tree: jax.tree.map(lambda g: scale * g, tree))(undilute, grad)
        factor = 1.0 if name == "shared" else paced_factor(sharing.stacks[name], rates.pace)
        stacks[name], states[name], norm = system.optimizer.apply(
            stacks[name], states[name], grad, factor * rates.actor, moved
        )
        norms.append(_mean_norm(norm, moved))
    learner = learner._replace(actor=join(learner.actor, stacks), actor_opt=states)
    return learner, {**info, "actor_grad_norm": sum(norms)}


def _own_samples(
    owners: tuple[int, ...] | None,
    n_owners: int,
    batch: Batch,
    counts: Float[Array, " M"],
    pool: Float[Array, " M"],
    block: Array | None,
) -> tuple[Float[Array, " K"], Bool[Array, " K"] | None]:
    """The ratio of the pool's samples to each owner's samples, and the owners to update (None: all).

    Args:
        owners: the owner of each agent, a trunk or an owner at a level; None: it changes.
        n_owners: K.
        batch: the block's batch.
        counts: number of samples of each member of the block.
        pool: number of samples that the loss averages over for each member.
        block: the members; None: all agents.
    """
    nobody = jnp.zeros(n_owners)
    if owners is None:
        # An owner without samples keeps its parameters and moments.
        own = jax.nn.one_hot(batch.owner, n_owners) * batch.mask[..., None]
        own = jnp.sum(own, axis=(0, 1, 2))
        return pool[0] / jnp.maximum(own, 1.0), own > 0
    owner = jnp.array(owners) if block is None else jnp.array(owners)[block]
    undilute = nobody.at[owner].max(pool) / jnp.maximum(nobody.at[owner].add(counts), 1.0)
    return undilute, None if block is None else (nobody > 0).at[owner].set(True)


def _update_critic(
    system: System, learner: Learner, batch: Batch, block: Array | None, rates: Rates
) -> tuple[Learner, Metrics]:
    """One gradient step of the critic, on the block's values if there is one value per agent."""
    ppo, sharing = system.config.ppo, system.critic.sharing
    valued = block if sharing.n_agents > 1 else None
    # If every agent has its own critic, each follows the mean over its own values.
    apart = batch.value.shape[-1] if sharing.n_trunks > 1 else 1

    def loss(shared: PyTree) -> tuple[Array, Metrics]:
        params = learner.critic._replace(shared=shared)
        _, value = system.critic.unroll(params, batch.critic_carry, batch.view, batch.critic_first, valued)
        total, info = value_loss(value[..., 0], batch.value, batch.target, ppo.value_clip, ppo.huber_delta)
        return apart * ppo.value_coef * total, info

    grads, info = jax.grad(loss, has_aux=True)(learner.critic.shared)
    moved = None
    if block is not None and sharing.n_trunks > 1:
        moved = jnp.zeros(sharing.n_trunks, bool).at[block].set(True)
    shared, state, norm = system.optimizer.apply(learner.critic.shared, learner.critic_opt, grads, rates.critic, moved)
    learner = learner._replace(critic=learner.critic._replace(shared=shared), critic_opt=state)
    return learner, {**info, "critic_grad_norm": _mean_norm(norm, moved)}


def _mean_norm(norm: Float[Array, " K"], moved: Bool[Array, " K"] | None) -> Float[Array, ""]:
    """The mean over the updated slots."""
    return jnp.mean(norm) if moved is None else masked_mean(norm, moved)
