"""Differences between the agents of a team: in their actions and gradients, and the noise of gradients.

All functions take teams in which every agent has its own plain network (`system.alone`), from any
scheme. Full weights have a leading axis of agents, so a swap of agents is an index.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lorasa_jax.core.losses import masked_mean
from lorasa_jax.core.types import Learner, PolicyParams, Trajectory
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.learning.system import System
from lorasa_jax.learning.update import policy_gradient


def stream_distances(
    system: System, actors: PolicyParams, trajectory: Trajectory, own_ids: bool
) -> Float[Array, "N N N"]:
    """Returns the distance of networks i and j on agent k's observations, the mean over its alive steps, at [k, i, j].

    Every network processes all observations of agent k, episode by episode, with its own recurrent state, starting from
    zero, and with agent k's mask of available actions. The distance of equal networks is exactly 0.

    Args:
        system: from `alone`.
        actors: every agent's full weights.
        trajectory: a rollout that began with new episodes.
        own_ids: in schemes with ids, network i sees its own id. Otherwise all networks see agent k's id, and only their
            weights differ.
    """
    policy, everyone = system.acting, jnp.arange(system.acting.sharing.n_agents)
    opens = system.actor_first(trajectory.first, trajectory.alive)
    start = policy.initial_carry(trajectory.first.shape[1])[:, :1]

    def on_stream(k: Array) -> Float[Array, "N N"]:
        met = trajectory.obs, opens, trajectory.avail, trajectory.alive
        obs, first, avail, alive = (jnp.take(x, k[None], axis=2) for x in met)

        def act(i: Array) -> Float[Array, "T E 1 P"]:
            everywhere = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[i], leaf.shape), actors)
            _, output = policy.unroll(everywhere, start, obs, first, (i if own_ids else k)[None])
            return system.dist.mask(output, avail)

        params = jax.lax.map(act, everyone)

        def between(pair: Array) -> Float[Array, ""]:
            return masked_mean(system.dist.distance(params[pair[0]], params[pair[1]]), alive)

        pairs = jnp.stack(jnp.meshgrid(everyone, everyone, indexing="ij"), axis=-1).reshape(-1, 2)
        return jax.lax.map(between, pairs).reshape(len(everyone), -1)

    return jax.lax.map(on_stream, everyone)


def comparable(spec: EnvSpec, avail: Bool[Array, "T E N A"]) -> np.ndarray:
    """Returns which pairs of agents have equal observation widths and action dimensions, [N, N]."""
    width = np.array(spec.obs_widths or (spec.obs_dim,) * spec.n_agents)
    same = width[:, None] == width
    if spec.continuous:
        there = np.asarray(avail[0, 0])
        same &= (there[:, None] == there).all(axis=-1)
    return same


def behavioural_distance(streams: np.ndarray, samples: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Returns the mean distance of agents i and j over all samples, [N, N]; NaN if they cannot be compared.

        d(i, j) = sum_k samples_k streams[k, i, j] / sum_k samples_k

    The sums are over the agents k that can be compared with both.

    Args:
        streams: from `stream_distances`.
        samples: alive steps of each agent, [N].
        same: from `comparable`.

    Source: Bettini et al. 2023, "System Neural Diversity".
    """
    weight = samples[:, None, None] * (same[:, :, None] & same[:, None, :])
    total = weight.sum(axis=0)
    return np.where(same & (total > 0), (weight * streams).sum(axis=0) / np.maximum(total, 1), np.nan)


def mean_over_pairs(matrix: np.ndarray) -> float:
    """Returns the mean of a matrix over all finite pairs of different agents; NaN if there are none.

    For behavioural distances it is System Neural Diversity (Bettini et al. 2023).
    """
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan")


def within_and_between(matrix: np.ndarray, roles: tuple[int, ...]) -> tuple[float, float]:
    """Returns the mean of a matrix over pairs of agents of the same role, and over pairs of different roles."""
    one_role = np.equal.outer(roles, roles)
    others, known = ~np.eye(len(roles), dtype=bool), np.isfinite(matrix)
    chosen = [matrix[pairs & known] for pairs in (one_role & others, ~one_role)]
    within, between = (float(x.mean()) if x.size else float("nan") for x in chosen)
    return within, between


def gradients(system: System, learner: Learner, trajectory: Trajectory) -> Float[Array, "N P"]:
    """Returns every agent's policy gradient with respect to all weights of its network.

    It is the gradient of the loss at the first step of an update, the mean over the agent's own samples.

    Args:
        system: from `alone`.
        learner: the learner of that system.
        trajectory: a rollout of the team.
    """
    found = policy_gradient(system, learner, trajectory._replace(inputs=()))["shared"]
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(found)], axis=-1)


class Noise(NamedTuple):
    """Signal and noise of the gradient of one rollout.

    Attributes:
        signal: an unbiased estimate of S = |E g|^2, which may be negative.
        error: the standard error of the signal.
        variance: V = E |g - E g|^2, the trace of the covariance.
    """

    signal: float
    error: float
    variance: float

    @property
    def scale(self) -> float:
        """V / S: the number of rollouts whose mean has as much noise as signal; inf if S is not positive."""
        return self.variance / self.signal if self.signal > 0 else float("inf")

    @property
    def at_least(self) -> float:
        """The scale with a signal two standard errors larger than the estimate."""
        return self._replace(signal=self.signal + 2 * self.error).scale


def gradient_noise(gradients: np.ndarray, span: int = 0) -> Noise:
    """Returns signal and noise of the gradients of K rollouts, [K, P]; for M agents, [K, M, P], their mean over agents.

        S = mean over |a - b| > span of g_a . g_b        V = mean over a of |g_a|^2  -  S

    V / S is the gradient noise scale, in rollouts. The error of S is a jackknife over rollouts.

    Args:
        gradients: gradients of rollouts in the order of play.
        span: number of following rollouts in which an episode of one rollout may continue.

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training".
    """
    k, agents = len(gradients), gradients[0, ..., 0].size
    flat = gradients.reshape(k, -1).astype(float)
    products = flat @ flat.T / agents
    apart = np.abs(np.subtract.outer(range(k), range(k))) > span
    sums, counts = (products * apart).sum(axis=1), apart.sum(axis=1)
    signal = sums.sum() / counts.sum()
    without = (sums.sum() - 2 * sums) / (counts.sum() - 2 * counts)
    error = np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum())
    return Noise(float(signal), float(error), float(np.diagonal(products).mean() - signal))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the cosine between rows i of `one` and j of `other`, both [N, P], at [i, j]; NaN for a row of zeros."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit, unit_ = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one.astype(float), other.astype(float)))
    return np.clip(unit @ unit_.T, -1.0, 1.0)
