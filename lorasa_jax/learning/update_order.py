"""Algorithms as data: schedules of agents that are updated together, in what order, with which clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lorasa_jax.config import PPOConfig, require
from lorasa_jax.core.types import Schedule
from lorasa_jax.registries import register

Scheduler = Callable[[PRNGKeyArray, Float[Array, " N"]], Schedule]
"""`(key, score [N]) -> Schedule`, called in every update; the score is each agent's mean |A|."""


def mappo(n_agents: int, ppo: PPOConfig, team_value: bool) -> Scheduler:
    """Returns MAPPO: a single stage updates all agents at once.

    Source: Yu et al. 2022.
    """
    everyone = jnp.arange(n_agents)[None]
    always = jnp.ones((1, ppo.epochs), bool)
    schedule = Schedule(everyone, jnp.full(1, ppo.clip_eps), jnp.zeros(1, bool), always, always)
    return lambda key, score: schedule


def a2po(n_agents: int, ppo: PPOConfig, team_value: bool) -> Scheduler:
    """Returns A2PO: one agent after another, in semi-greedy order, corrected for the agents before.

    The k-th agent's clip is eps (1/2 + k / 2n), so early agents change less.

    Source: Wang et al. 2023.
    """
    room = 0.5 + 0.5 * jnp.arange(1, n_agents + 1) / n_agents
    return _one_by_one(semi_greedy, ppo.clip_eps * room, True, ppo, team_value)


def sequential(n_agents: int, ppo: PPOConfig, team_value: bool) -> Scheduler:
    """Returns PPO for one agent after another, in random order, without the correction of advantages.

    The updates of earlier agents enter only through the surrogate's preceding factor, as in HAPPO
    (Kuba et al. 2022). The factor is clipped, as in A2PO.
    """
    return _one_by_one(shuffled, jnp.full(n_agents, ppo.clip_eps), False, ppo, team_value)


def shuffled(key: PRNGKeyArray, score: Float[Array, " N"]) -> Int[Array, " N"]:
    """Returns the agents in random order."""
    return jax.random.permutation(key, score.shape[0])


def semi_greedy(key: PRNGKeyArray, score: Float[Array, " N"]) -> Int[Array, " N"]:
    """Returns an order of the agents that alternates between the highest remaining score and a random remaining agent.

    Equal scores are in random order. Source: A2PO (Wang et al. 2023).
    """
    n_agents = score.shape[0]
    shuffle_key, pick_key = jax.random.split(key)
    agents = shuffled(shuffle_key, score)
    chance = jax.random.uniform(pick_key, (n_agents,))

    def pick(left: Array, k: Array) -> tuple[Array, Array]:
        appeal = jnp.where(k % 2 == 0, score[agents], chance)
        chosen = jnp.argmax(jnp.where(left, appeal, -jnp.inf))
        return left.at[chosen].set(False), agents[chosen]

    return jax.lax.scan(pick, jnp.ones(n_agents, bool), jnp.arange(n_agents))[1]


def _one_by_one(
    order: Callable, clip_eps: Float[Array, " N"], trace: bool, ppo: PPOConfig, team_value: bool
) -> Scheduler:
    """One agent per stage, with all its epochs (loop order `agent`) or one epoch in every round (`epoch`)."""
    n_agents = clip_eps.shape[0]
    rounds, epochs = (1, ppo.epochs) if ppo.loop_order == "agent" else (ppo.epochs, 1)
    stages = rounds * n_agents
    with_actor = jnp.array([False, True] if ppo.two_stage else [True])
    train_actor = jnp.tile(with_actor, (stages, epochs))
    # A value per agent is trained in the agent's own stage. A team value is trained in the last agent's stage,
    # so it sees the rollout as often as under MAPPO.
    last = jnp.tile(jnp.arange(n_agents) == n_agents - 1, rounds)
    train_critic = jnp.broadcast_to(last[:, None] | (not team_value), train_actor.shape)

    def schedule(key: PRNGKeyArray, score: Float[Array, " N"]) -> Schedule:
        orders = jax.vmap(order, in_axes=(0, None))(jax.random.split(key, rounds), score)
        return Schedule(
            block=orders.reshape(stages, 1),
            clip_eps=jnp.tile(clip_eps, rounds),
            trace=jnp.full(stages, trace),
            train_actor=train_actor,
            train_critic=train_critic,
        )

    return schedule


Algorithm = Callable[[int, PPOConfig, bool], Scheduler]
"""`(n_agents, ppo, team_value) -> Scheduler`; `team_value`: one value for the team, not one per agent."""

ALGORITHMS: dict[str, Algorithm] = {
    "mappo": mappo,
    "a2po": a2po,
    "sequential": sequential,
}
"""Algorithms by name: functions of the number of agents, the settings, and whether the team has one value."""


def register_algorithm(name: str, algorithm: Algorithm) -> None:
    """Registers an algorithm for `Config(algo=name)` and `--algo name`.

    Args:
        name: a word that no other algorithm uses.
        algorithm: a function of the number of agents, the settings, and whether the team has one value. It returns a
            scheduler, `(key, score [N]) -> Schedule`.

    Raises:
        ConfigError: the name is invalid or taken, or a schedule of two agents does not have the shapes of `Schedule`.
    """

    def trial() -> None:
        ppo, score = PPOConfig(), jax.ShapeDtypeStruct((2,), jnp.float32)
        for team_value in (False, True):
            # Traced, not run, so JAX's devices are not initialised.
            found = jax.eval_shape(
                lambda score, team=team_value: algorithm(2, ppo, team)(jax.random.key(0), score), score
            )
            _require_schedule(name, found)

    register("algo", name, algorithm, ALGORITHMS, trial)


def _require_schedule(name: str, found: Any) -> None:
    require(isinstance(found, Schedule), f"algo {name!r} must schedule a Schedule, got a {type(found).__name__}")
    stages, members = found.block.shape if found.block.ndim == 2 else (0, 0)
    passes = found.train_actor.shape[1:]
    wanted = {
        "block": ((stages, members), jnp.integer),
        "clip_eps": ((stages,), jnp.floating),
        "trace": ((stages,), jnp.bool_),
        "train_actor": ((stages, *passes[:1]), jnp.bool_),
        "train_critic": ((stages, *passes[:1]), jnp.bool_),
    }
    for field, (shape, kind) in wanted.items():
        array = getattr(found, field)
        require(
            array.shape == shape and len(shape) == (1 if field in ("clip_eps", "trace") else 2)
            and jnp.issubdtype(array.dtype, kind) and stages > 0,
            f"algo {name!r}: {field} of its Schedule is {array.dtype}{list(array.shape)}, which does not fit block "
            f"{list(found.block.shape)}; see lorasa_jax.Schedule",
        )  # fmt: skip
