"""Finds clusters of agents once, before training, for schemes with a trunk per cluster.

The method is selective parameter sharing (SePS; Christianos et al. 2021, arXiv 2102.07475). All agents play with an
untrained policy. An encoder gives agent i the normal distribution q_i(z) of a code. A decoder predicts the next
observation and the reward from z, the observation and the action. So the code only encodes differences between the
agents' transitions and rewards. Agents with similar codes form a cluster.

In the published method one code predicts observations and reward. The reward is then one of many predicted numbers, and
agents that differ only in their rewards are not distinguished. By default there are two codes instead: one predicts
observations, with the published settings, and the other only the reward. Agents share a cluster if they do so under
both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import Config
from lorasa_jax.core.types import PyTree, RolloutState, Trajectory
from lorasa_jax.envs.base import Env
from lorasa_jax.learning.trainer import GROUPING, make_trainer
from lorasa_jax.sharing.schemes import is_clustered

C = TypeVar("C", bound=Config)

STEPS = 4096
"""Minimum number of steps that every agent plays."""
CODE, WIDTH = 10, 64
"""Widths of the code and of the hidden layers."""
APART = 2.0
"""Agents differ if their codes are more than this number of standard deviations apart."""
STRUCTURE = 0.5
"""Smallest silhouette at which clusters are preferred to one cluster per agent."""


class Fit(NamedTuple):
    """Settings of the training of encoder and decoder with Adam.

    Attributes:
        kl_weight: weight of the KL divergence between the code and a standard normal.
        rate: maps the number of steps to a learning rate or its schedule.
        batch: rows per step.
        passes: minimum number of passes over the data.
        steps: minimum number of steps.
    """

    kl_weight: float
    rate: Callable[[int], float | optax.Schedule]
    batch: int
    passes: int = 10
    steps: int = 0


PUBLISHED = Fit(1e-4, lambda steps: 3e-4, batch=128)
"""Settings of SePS."""
REWARD = Fit(1e-2, partial(optax.cosine_decay_schedule, 3e-3), batch=256, steps=4000)
"""Settings of the code that predicts only the standardised reward. The code ignores effects that explain less than
about one percent of the reward's variance, because they may be chance."""


def with_groups(config: C, env: Env, status: Callable[[str], None] = lambda text: None) -> C:
    """Returns the configuration with groups. They are found if the scheme needs them and they are not given.

    All seeds of a run share them. They depend only on its first seed.

    Args:
        config: the run's configuration.
        env: its environment.
        status: receives progress messages.

    Raises:
        ConfigError: the configuration does not fit the environment.
    """
    if config.groups is not None or not is_clustered(config):
        return config
    status("grouping agents")
    groups = find_groups(config, env, jax.random.fold_in(jax.random.key(config.seed), GROUPING))
    status(f"groups of agents: {' '.join(map(str, groups))}")
    return replace(config, groups=groups)


def find_groups(config: Config, env: Env, key: PRNGKeyArray) -> tuple[int, ...]:
    """Returns the cluster of each agent, numbered in the order of first appearance.

    Args:
        config: of a scheme with groups. With `grouping` `joint`, one code predicts observations and reward. With
            `separate` each has its own code, and agents of a cluster must agree in both.
        env: its environment.
        key: used for play and training.
    """
    if env.spec.n_agents == 1:
        return (0,)
    play_key, encode_key = jax.random.split(key)
    before, after, known, alive = jax.device_get(jax.jit(partial(play, config, env))(play_key))
    rows = np.nonzero(alive)
    experience = Experience(rows[-1], before[rows], after[rows], known[rows])
    if config.grouping == "joint":
        looks = [(experience, PUBLISHED)]
    else:
        looks = [(observations_alone(experience), PUBLISHED), (reward_alone(experience), REWARD)]
    codes = [encode(look, env.spec.n_agents, fit, encode_key) for look, fit in looks]
    return common_refinement([choose_groups(*map(np.asarray, code)) for code in codes])


def common_refinement(partitions: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Returns the clusters of agents that share a cluster in every partition, in the order of first appearance."""
    together = list(zip(*partitions, strict=True))
    number = {labels: k for k, labels in enumerate(dict.fromkeys(together))}
    return tuple(number[labels] for labels in together)


class Experience(NamedTuple):
    """Transitions of agents, one row per agent and step at which it was alive. All numbers lie in [0, 1].

    Attributes:
        agent: index of the agent.
        before: its observation and its action, concatenated.
        after: its next observation and its reward, concatenated.
        known: valid entries of `after`; at the end of an episode only the reward.
    """

    agent: Int[np.ndarray, " B"] | Int[Array, " B"]
    before: Float[np.ndarray, "B D"] | Float[Array, "B D"]
    after: Float[np.ndarray, "B K"] | Float[Array, "B K"]
    known: Bool[np.ndarray, "B K"] | Bool[Array, "B K"]


def observations_alone(experience: Experience) -> Experience:
    """Returns the experience without rewards."""
    return experience._replace(after=experience.after[:, :-1], known=experience.known[:, :-1])


def reward_alone(experience: Experience) -> Experience:
    """Returns the experience with the reward as the only outcome. Every column has mean 0 and standard deviation 1."""
    before, reward = map(_standardised, (experience.before, experience.after[:, -1:]))
    return experience._replace(before=before, after=reward, known=experience.known[:, -1:])


def _standardised(columns: ArrayLike) -> Float[np.ndarray, "B K"]:
    """Columns with mean 0 and standard deviation 1; a constant column becomes 0."""
    x = np.asarray(columns)
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 1e-6, deviation, 1.0)


def play(
    config: Config, env: Env, key: PRNGKeyArray
) -> tuple[Float[Array, "T E N D"], Float[Array, "T E N K"], Bool[Array, "T E N K"], Bool[Array, "T E N"]]:
    """Plays at least `STEPS` steps of each agent with one untrained policy.

    Returns `before`, `after` and `known` of `Experience`, and the mask of alive agents.
    """
    n, length = env.spec.n_agents, config.rollout_length
    trainer = make_trainer(replace(config, groups=(0,) * n), env)
    state = trainer.init(key)
    weights, critic = trainer.weights(state), state.learner.critic
    # The record does not contain the step after the last one.
    rollouts = math.ceil((math.ceil(STEPS / config.n_envs) + 1) / length)

    def rollout(now: RolloutState, i: Array) -> tuple[RolloutState, Trajectory]:
        now, trajectory, _ = trainer.collect(weights, critic, now, key, i)
        return now, trajectory._replace(inputs=())

    _, record = jax.lax.scan(rollout, state.rollout, jnp.arange(rollouts))
    t: Trajectory = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), record)
    if env.spec.continuous:
        action = jnp.where(t.avail, trainer.system.dist.to_env(t.action), 0.0)
    else:
        action = jax.nn.one_hot(t.action, env.spec.n_actions)
    obs, reward = _to_unit(t.obs), _to_unit(t.reward[..., None])
    before = jnp.concatenate([obs, action], axis=-1)
    after = jnp.concatenate([obs[1:], reward[:-1]], axis=-1)
    # After the end of an episode, the next observation belongs to the next episode.
    over = (t.terminated | t.truncated)[:-1, :, None, None]
    is_reward = jnp.arange(after.shape[-1]) == obs.shape[-1]
    return before[:-1], after, is_reward | jnp.broadcast_to(~over, after.shape), t.alive[:-1]


def _to_unit(x: Float[Array, "*rows K"]) -> Float[Array, "*rows K"]:
    """Every column scaled to [0, 1]; a constant column becomes 0."""
    rows = tuple(range(x.ndim - 1))
    low, high = x.min(axis=rows), x.max(axis=rows)
    return (x - low) / jnp.where(high > low, high - low, 1.0)


@partial(jax.jit, static_argnums=(1, 2))
def encode(
    experience: Experience, n_agents: int, fit: Fit, key: PRNGKeyArray
) -> tuple[Float[Array, "N Z"], Float[Array, "N Z"]]:
    """Returns the mean and the standard deviation of every agent's code.

    The encoder maps agent i's one-hot id to q_i = N(mu_i, sigma_i^2). With the decoder f and z ~ q_i, training
    minimises the mean over rows of

        sum over known entries of (f(z, before) - after)^2  +  kl_weight KL(q_i || N(0, 1)).

    Source: SePS (Christianos et al. 2021).
    """
    # The encoder's last layer starts at zero. So codes start equal, and differ only by what was learned.
    zeros = nn.initializers.zeros_init()
    encoder = nn.Sequential([nn.Dense(WIDTH), nn.relu, nn.Dense(2 * CODE, kernel_init=zeros)])
    hidden = [layer for _ in range(2) for layer in (nn.Dense(WIDTH), nn.relu)]
    decoder = nn.Sequential([*hidden, nn.Dense(experience.after.shape[-1])])
    ids, n_rows = jnp.eye(n_agents), len(experience.agent)
    size = min(fit.batch, n_rows)
    batches_per_pass = n_rows // size
    passes = max(fit.passes, math.ceil(fit.steps / batches_per_pass))
    adam = optax.adam(fit.rate(passes * batches_per_pass))
    experience = jax.tree.map(jnp.asarray, experience)

    def codes(params: PyTree) -> tuple[Array, Array]:
        out: Any = encoder.apply(params["encoder"], ids)
        mean, log_var = jnp.split(out, 2, axis=-1)
        return mean, jnp.exp(log_var / 2)

    def loss(params: PyTree, rows: Experience, key: PRNGKeyArray) -> Array:
        mean, deviation = (x[rows.agent] for x in codes(params))
        z = mean + deviation * jax.random.normal(key, mean.shape)
        predicted: Any = decoder.apply(params["decoder"], jnp.concatenate([z, rows.before], axis=-1))
        error = jnp.sum(jnp.where(rows.known, (predicted - rows.after) ** 2, 0.0), axis=-1)
        kl = jnp.sum((mean**2 + deviation**2 - 1) / 2 - jnp.log(deviation), axis=-1)
        return jnp.mean(error + fit.kl_weight * kl)

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        (params, state), (rows, key) = carry, inputs
        grads = jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[rows], experience), key)
        updates, state = adam.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
        order_key, noise_key = jax.random.split(key)
        batches = jax.random.permutation(order_key, n_rows)[: batches_per_pass * size].reshape(-1, size)
        return jax.lax.scan(step, carry, (batches, jax.random.split(noise_key, len(batches))))

    encoder_key, decoder_key, train_key = jax.random.split(key, 3)
    seen = jnp.zeros((1, CODE + experience.before.shape[-1]))
    params = {"encoder": encoder.init(encoder_key, ids), "decoder": decoder.init(decoder_key, seen)}
    (params, _), _ = jax.lax.scan(epoch, (params, adam.init(params)), jax.random.split(train_key, passes))
    return codes(params)


def choose_groups(mean: np.ndarray, deviation: np.ndarray) -> tuple[int, ...]:
    """Returns the cluster of each agent from the codes, [N, Z].

    For N >= 3, these are the k-means clusters of the means, with the k in 2 ... N - 1 of the largest silhouette, as in
    SePS. Silhouettes cannot compare one cluster, or one cluster per agent. For these cases let

        d_ij^2 = sum over z of (mu_i - mu_j)^2 / (sigma_i^2 + sigma_j^2)

    Two agents differ if d_ij > `APART`. If no two agents differ, all form one cluster. If every two agents differ, and
    the silhouette is below `STRUCTURE`, each agent is a cluster. For N = 2 only these two cases exist.
    """
    n = len(mean)
    variance = deviation**2
    gap = np.sqrt(np.sum((mean[:, None] - mean) ** 2 / (variance[:, None] + variance), axis=-1))
    apart = gap[np.triu_indices(n, 1)] > APART
    if not apart.any():
        return (0,) * n
    found = [k_means(mean, k) for k in range(2, n)]
    best = max(found, key=lambda labels: silhouette(mean, labels), default=None)
    if best is None or (apart.all() and silhouette(mean, best) < STRUCTURE):
        return tuple(range(n))
    return tuple(best.tolist())


def k_means(points: np.ndarray, k: int) -> np.ndarray:
    """Returns the labels, [N], of k clusters of points [N, Z], numbered in the order of first appearance.

    This is the best of N deterministic runs of Lloyd's algorithm. The centres of run i start from point i, then the
    point farthest from it, then the one farthest from both, and so on (Gonzalez 1985). If there are fewer than k
    different points, there are fewer clusters.
    """
    runs = [_lloyd(points, _far_apart(points, i, k)) for i in range(len(points))]
    labels, _ = min(runs, key=lambda run: run[1])
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]


def _far_apart(points: np.ndarray, start: int, k: int) -> np.ndarray:
    chosen = [start]
    while len(chosen) < k:
        chosen.append(int(np.argmax(_distances(points, points[chosen]).min(axis=1))))
    return points[chosen]


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """The final labels, and the sum of squared distances to the centres."""
    labels = None
    while True:
        distance = _distances(points, centres)
        new = distance.argmin(axis=1)
        if labels is not None and (new == labels).all():
            return labels, float(np.sum(distance.min(axis=1) ** 2))
        labels = new
        centres = np.stack([points[labels == j].mean(axis=0) if j in labels else c for j, c in enumerate(centres)])


def silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean silhouette of points [N, Z] in two or more clusters, in [-1, 1].

    The silhouette of a point is (b - a) / max(a, b). Here a is the mean distance to the other points of its cluster,
    and b the mean distance to the nearest other cluster. It is 0 for a cluster of one point. Source: Rousseeuw 1987.
    """
    distance, member = _distances(points, points), labels[:, None] == np.unique(labels)
    size, total = member.sum(axis=0), distance @ member
    alone = (member @ size) == 1
    own = total[member] / np.maximum(member @ size - 1, 1)
    other = np.where(member, np.inf, total / size).min(axis=1)
    return float(np.where(alone, 0.0, (other - own) / np.maximum(np.maximum(own, other), 1e-12)).mean())


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None] - b, axis=-1)
