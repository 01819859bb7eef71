"""Measures the effect of a trained team's adapters: behaviour of agents, swaps, and dropped entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lorasa_jax.analysis import diversity
from lorasa_jax.analysis.corrections import Correction, corrections, effective_rank, entry_sizes, relative_norm, thinned
from lorasa_jax.analysis.diversity import Noise
from lorasa_jax.analysis.statistics import bootstrap_interval
from lorasa_jax.config import Config, ConfigError, require
from lorasa_jax.core.types import Learner, PolicyParams, RolloutState, Trajectory, Weights
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.learning.rollout import collect, initial_state, play_episodes
from lorasa_jax.learning.system import System, alone, is_two_phase, own_weights

DROPPED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Shares of the smallest entries of every correction that are dropped."""
PLAYED = ("return", "win_rate")

Episodes = dict[str, np.ndarray]


class Change(NamedTuple):
    """Change of the mean over episodes, with its 95 % interval; numbers, or arrays of one shape."""

    mean: Any
    low: Any
    high: Any


class Layer(NamedTuple):
    """Corrections of one layer: |delta|_F / |K|_F and effective rank of every owner, [K]; sizes of entries."""

    norm: np.ndarray
    rank: np.ndarray
    entries: dict[str, dict[str, float]]


class Diagnosis(NamedTuple):
    """Diagnosis of a team's adapters. Parts that could not be measured are None; `left_out` gives the reason.

    Attributes:
        agents: names of the agents, [N].
        roles: the role of each agent, if roles are fixed.
        kinds: names of the roles.
        owners: names of the owners of corrections: the agents, or changing roles.
        measure: the distance between action distributions: total variation, or 2-Wasserstein.
        samples: number of alive steps of each agent in the recorded play, [N].
        distance: distance between the agents' networks on the observations (and with the id) of each agent, [N, N].
        distance_with_ids: the same, but every network sees its own agent's id; None without ids.
        gradient: cosine between the agents' policy gradients, [N, N].
        gradient_again: cosine between each agent's gradients on two halves of the rollouts, [N]; 1 without noise.
        noise: signal and noise of the gradient of one rollout: over the samples of all agents, of each fixed role, and
            of one agent (mean over agents).
        played: mean `return`, and `win_rate` if games can be won, of whole episodes of the trained team.
        swap: by the same names, the change if agent i plays with agent j's weights, [N, N].
        layers: corrections of the trunk, by layer.
        dropped: by the same names, the change if the smallest entries are dropped, for each share in `DROPPED`.
        left_out: one line for each part that is None.
    """

    agents: list[str]
    roles: tuple[int, ...] | None
    kinds: list[str]
    owners: list[str]
    measure: str
    samples: np.ndarray | None = None
    distance: np.ndarray | None = None
    distance_with_ids: np.ndarray | None = None
    gradient: np.ndarray | None = None
    gradient_again: np.ndarray | None = None
    noise: dict[str, Noise] | None = None
    played: dict[str, Change] | None = None
    swap: dict[str, Change] | None = None
    layers: dict[str, Layer] | None = None
    dropped: dict[str, Change] | None = None
    left_out: tuple[str, ...] = ()


def kinds_of(spec: EnvSpec) -> list[str]:
    """Returns names of the roles; empty if agents have none."""
    n_roles = spec.n_roles if spec.roles is None else max(spec.roles) + 1
    return list(spec.role_names) or [f"role {k}" for k in range(n_roles)]


def names_of(spec: EnvSpec) -> list[str]:
    """Returns names of the agents, with their numbers and fixed roles."""
    if spec.roles is None:
        return [f"agent {i}" for i in range(spec.n_agents)]
    if spec.role_names:
        return [f"{spec.role_names[role]} {i}" for i, role in enumerate(spec.roles)]
    return [f"agent {i} (role {role})" for i, role in enumerate(spec.roles)]


def diagnose(
    system: System,
    learner: Learner,
    key: PRNGKeyArray,
    *,
    episodes: int = 128,
    rollouts: int | None = None,
    greedy: bool = True,
    status: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Returns the diagnosis of one team.

    Args:
        system: the system of the team's phase.
        learner: the team's actor, critic, value statistics and input statistics; optimisers are ignored.
        key: used for all play.
        episodes: episodes per evaluation, with the same start states and random numbers in each.
        rollouts: number of rollouts, of the run's size, for gradients. None: the larger of 32 and four times the number
            of rollouts of the longest episode.
        greedy: evaluations take the most probable actions. Recorded play is always sampled, as in training.
        status: receives progress messages.
    """
    span = _span(system.config, system.env.spec)
    rollouts, least = max(32, 4 * span) if rollouts is None else rollouts, max(8, 2 * span + 2)
    require(rollouts >= least, f"rollouts must be {least} or more, as an episode may take {span}; got {rollouts}")
    spec, sharing = system.env.spec, system.actor.sharing
    names, kinds = names_of(spec), kinds_of(spec)
    measure = "2-Wasserstein" if spec.continuous else "total variation"
    left_out = []
    try:
        layers = corrections(system, learner.actor)
        if not layers:
            left_out.append(f"corrections: {_why_none(system)}")
    except ConfigError as error:
        layers = {}
        left_out.append(f"corrections: {error}")
    found = Diagnosis(names, spec.roles, kinds, kinds if sharing.dynamic_roles else names, measure)
    if layers:
        found = found._replace(layers={name: describe(layer) for name, layer in layers.items()})
    if system.acting.sharing.dynamic_roles:
        left_out.append("all that is played: adapters change hands with roles, and no agent has weights of its own")
        return found._replace(left_out=tuple(left_out))
    team = alone(system._replace(config=_watching(system.config, spec, episodes)))
    learner = learner._replace(actor=own_weights(system, learner.actor), actor_opt={}, critic_opt={})
    watch_key, play_key, gradient_key = jax.random.split(key, 3)
    status("watching the team")
    trajectory = watch(team, learner, watch_key)
    same = diversity.comparable(spec, trajectory.avail)
    if not same.all():
        left_out.append("pairs of agents that see or do unequally much: they are nan in every matrix")
    found = _how_they_act(found, team, learner, trajectory, same, status)
    drawn = draw_gradients(alone(system), learner, gradient_key, rollouts, status)
    found = _how_they_learn(found, *drawn, same, span)
    alike = system.acting.sharing.n_trunks == 1 and not system.acting.sharing.levels
    if alike:
        left_out.append("swaps: all agents have the same weights")
    status("compiling an evaluation")
    play = make_player(team, learner, play_key, greedy)
    known = play(learner.actor)
    before = {name: known[name] for name in (PLAYED if spec.winnable else PLAYED[:1])}
    found = found._replace(played={name: _change(values) for name, values in before.items()})
    if not alike:
        found = found._replace(swap=swap_changes(play, learner.actor, same, before, status))
    if layers:
        found = found._replace(dropped=drop_changes(play, learner.actor, layers, before, status))
    return found._replace(left_out=tuple(left_out))


def _why_none(system: System) -> str:
    if system.actor.sharing.n_trunks == system.actor.sharing.n_agents > 1:
        return f"under {system.config.sharing} every agent has a network of its own, without adapters"
    if is_two_phase(system.config, system.env):
        return f"there are none under {system.config.sharing} before the switch"
    return f"there are none under {system.config.sharing}"


def _watching(config: Config, spec: EnvSpec, episodes: int) -> Config:
    """The settings of a rollout that is long enough for a whole episode."""
    length = config.rollout_length * _span(config, spec)
    return replace(
        config,
        rollout_length=length,
        total_steps=max(config.total_steps, config.n_envs * length),
        switch_step="auto",
        eval_episodes=episodes,
        ppo=replace(config.ppo, minibatches=1),
    )


def watch(team: System, learner: Learner, key: PRNGKeyArray) -> Trajectory:
    """Returns one rollout of sampled play from new start states, with the critic's values."""
    start_key, play_key = jax.random.split(key)

    @jax.jit
    def play(learner: Learner) -> Trajectory:
        weights = Weights(learner.actor, learner.inputs)
        return collect(team, weights, learner.critic, initial_state(team, start_key), play_key)[1]

    return play(learner)


def _how_they_act(
    found: Diagnosis,
    team: System,
    learner: Learner,
    trajectory: Trajectory,
    same: np.ndarray,
    status: Callable[[str], None],
) -> Diagnosis:
    """Adds distances between agents."""
    samples = np.asarray(trajectory.alive.sum(axis=(0, 1)))

    def distance(own_ids: bool) -> np.ndarray:
        between = jax.jit(lambda actors: diversity.stream_distances(team, actors, trajectory, own_ids))
        return diversity.behavioural_distance(np.asarray(between(learner.actor)), samples, same)

    status("comparing what networks do")
    in_place = distance(own_ids=False)
    with_ids = distance(own_ids=True) if team.acting.sharing.agent_id else None
    return found._replace(samples=samples, distance=in_place, distance_with_ids=with_ids)


def _span(config: Config, spec: EnvSpec) -> int:
    """The number of rollouts of the longest episode."""
    return -(-spec.episode_limit // config.rollout_length)


def draw_gradients(
    team: System, learner: Learner, key: PRNGKeyArray, rollouts: int, status: Callable[[str], None] = lambda text: None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the agents' policy gradients, [K, N, P], and numbers of samples, [K, N], of consecutive rollouts.

    Args:
        team: from `alone`, with rollouts of the run's size.
        learner: the learner of that system.
        key: used for all play.
        rollouts: K; the rollouts of the first episodes are not counted.
        status: receives progress messages.
    """
    start_key, play_key = jax.random.split(key)

    @jax.jit
    def next_one(now: RolloutState, learner: Learner, key: PRNGKeyArray) -> tuple[RolloutState, Array, Array]:
        weights = Weights(learner.actor, learner.inputs)
        later, trajectory, _ = collect(team, weights, learner.critic, now, key)
        return later, diversity.gradients(team, learner, trajectory), trajectory.alive.sum(axis=(0, 1))

    first = _span(team.config, team.env.spec)
    now, found = initial_state(team, start_key), []
    for k, rollout_key in enumerate(jax.random.split(play_key, first + rollouts)):
        status(f"gradient {k - first + 1} of {rollouts}" if k >= first else "playing first episodes")
        now, *drawn = next_one(now, learner, rollout_key)
        if k >= first:
            found.append([np.asarray(x) for x in drawn])
    gradients, samples = (np.stack(x) for x in zip(*found, strict=True))
    return gradients, samples


def _how_they_learn(
    found: Diagnosis, gradients: np.ndarray, samples: np.ndarray, same: np.ndarray, span: int
) -> Diagnosis:
    """Adds cosines and noise of gradients."""
    one, other = (half.mean(axis=0) for half in np.array_split(gradients, 2))
    mean = gradients.mean(axis=0)

    def together(chosen: np.ndarray) -> Noise:
        """The noise of the mean gradient over all samples of some agents, which a shared network would follow."""
        share = samples * chosen
        share = share / np.maximum(share.sum(axis=1, keepdims=True), 1)
        return diversity.gradient_noise(np.einsum("kn,knp->kp", share, gradients), span)

    noise = {"all agents": together(np.ones(len(found.agents), bool))}
    if found.roles is not None and len(set(found.roles)) > 1:
        noise |= {f"{kind}, all": together(np.equal(found.roles, k)) for k, kind in enumerate(found.kinds)}
    noise["one agent"] = diversity.gradient_noise(gradients, span)
    return found._replace(
        gradient=np.where(same, diversity.cosines(mean, mean), np.nan),
        gradient_again=np.diagonal(diversity.cosines(one, other)).copy(),
        noise=noise,
    )


# Changed teams


def make_player(team: System, learner: Learner, key: PRNGKeyArray, greedy: bool) -> Callable[[PolicyParams], Episodes]:
    """Returns a compiled function from full weights to episodes with fixed start states and random numbers."""

    @jax.jit
    def play(actors: PolicyParams) -> dict[str, Float[Array, " E"]]:
        return play_episodes(team, Weights(actors, learner.inputs), key, greedy)

    return lambda actors: {name: np.asarray(values) for name, values in play(actors).items()}


def swap_changes(
    play: Callable[[PolicyParams], Episodes],
    actors: PolicyParams,
    same: np.ndarray,
    before: Episodes,
    status: Callable[[str], None] = lambda text: None,
) -> dict[str, Change]:
    """Returns the change, [N, N], if agent i plays with agent j's weights, and all others with their own.

    Ids are not swapped. The change is NaN if the two agents cannot be compared.

    Args:
        play: from `make_player`.
        actors: every agent's full weights.
        same: pairs whose weights can be swapped, [N, N].
        before: result of `play` for the unchanged weights.
        status: receives progress messages.
    """
    n = len(same)
    gather = jax.jit(lambda order: jax.tree.map(lambda leaf: leaf[order], actors))
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and same[i, j]]
    table = {name: np.full((3, n, n), np.nan) for name in before}
    for matrix in table.values():
        matrix[:, range(n), range(n)] = 0.0
    for done, (i, j) in enumerate(pairs):
        status(f"swap {done + 1} of {len(pairs)}")
        after = play(gather(jnp.arange(n).at[i].set(j)))
        for name, matrix in table.items():
            matrix[:, i, j] = _change(after[name] - before[name])
    return {name: Change(*matrix) for name, matrix in table.items()}


def drop_changes(
    play: Callable[[PolicyParams], Episodes],
    actors: PolicyParams,
    layers: dict[str, Correction],
    before: Episodes,
    status: Callable[[str], None] = lambda text: None,
) -> dict[str, Change]:
    """Returns the change if the smallest entries of all corrections are dropped, for every share in `DROPPED`.

    The arguments are those of `swap_changes`, and `layers` from `corrections`.
    """
    table: dict[str, list[Change]] = {name: [] for name in before}
    for share in DROPPED:
        status(f"dropping {share:.0%} of all entries")
        after = before if share == 0 else play(thinned(actors, layers, share))
        for name, changes in table.items():
            changes.append(_change(after[name] - before[name]))
    return {name: Change(*(np.array(x) for x in zip(*changes, strict=True))) for name, changes in table.items()}


def _change(episodes: np.ndarray) -> Change:
    return Change(float(np.mean(episodes)), *bootstrap_interval(episodes))


def describe(layer: Correction) -> Layer:
    """Returns norms, effective ranks and the distribution of entries of a layer's corrections."""
    return Layer(relative_norm(layer), effective_rank(layer.matrices), entry_sizes(layer))
