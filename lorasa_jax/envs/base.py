"""The environment every part of the library talks to: pure functions over arrays.

An environment is a record of two functions. Agents are an axis, never keys of a
dictionary; the end of an episode comes in two kinds; nothing resets by itself, so
there is one reset policy, in `lorasa_jax.rollout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

EnvState = Any
Action = Int[Array, " N"] | Float[Array, "N A"]


@dataclass(frozen=True)
class EnvSpec:
    """What is fixed about an environment.

    Attributes:
        name: the task, as on the command line.
        n_agents: N.
        obs_dim: width of one agent's observation.
        state_dim: width of the global state.
        n_actions: A: number of discrete actions of each agent; where actions are
            continuous, of dimensions of the widest agent's action.
        episode_limit: no episode is longer than this many steps.
        team_reward: every agent is always paid the same, so one value per
            environment is enough.
        continuous: an action is a vector in [-1, 1]^A, and `TimeStep.avail` says,
            always the same, which of its dimensions an agent has.
        obs_widths: how many leading columns of `TimeStep.obs` each agent owns, where
            agents see unequally much; the columns behind are zeros. None: all own all.
        roles: the role of each agent, a type of unit say, numbered from 0 without a gap.
            None: agents have none, or they change.
        role_names: what the roles are called, in the order of their numbers; may be left out.
        n_roles: how many roles there are where they change, which `TimeStep.role` then says; else 0.
        winnable: an episode can end with a goal reached; where none can, win rates, always 0, are not shown.
    """

    name: str
    n_agents: int
    obs_dim: int
    state_dim: int
    n_actions: int
    episode_limit: int
    team_reward: bool
    continuous: bool = False
    obs_widths: tuple[int, ...] | None = None
    roles: tuple[int, ...] | None = None
    n_roles: int = 0
    role_names: tuple[str, ...] = ()
    winnable: bool = True


class TimeStep(NamedTuple):
    """What an environment shows after a reset or a step.

    Attributes:
        obs: one observation per agent.
        state: the global state, for a centralised critic: scaled to about [-1, 1] where
            its range is known, in the simulator's units where it is not (MABrax).
        avail: the actions each agent may take now, or its dimensions of a continuous
            action; at least one is true for every agent, dead ones included.
        alive: the agents that can still act.
        reward: what the last joint action earned; zero after a reset.
        terminated: the episode is over by itself.
        truncated: the episode is over because time ran out; never together with
            `terminated`.
        won: the episode ended with the goal reached; false before the end.
        role: the role of each agent, [N] integers, where roles change; left out elsewhere.
    """

    obs: Float[Array, "N D"]
    state: Float[Array, " S"]
    avail: Bool[Array, "N A"]
    alive: Bool[Array, " N"]
    reward: Float[Array, " N"]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    won: Bool[Array, ""]
    role: Any = ()


class Env(NamedTuple):
    """A multi-agent environment as pure functions.

    Attributes:
        spec: what is fixed about it.
        reset: `reset(key) -> (state, timestep)`, a fresh start state.
        step: `step(key, state, action) -> (state, timestep)` with `action` an integer
            per agent, [N], or a vector, [N, A]; dimensions that an agent does not have
            are ignored. It never resets: after the end of an episode the
            time step still shows where it ended.
        draw: `draw(states) -> frames`: pictures of an episode (its states stacked along
            a leading axis) in order, or None where there is nothing to see.
        fps: pictures that should be shown per second.
    """

    spec: EnvSpec
    reset: Callable[[PRNGKeyArray], tuple[EnvState, TimeStep]]
    step: Callable[[PRNGKeyArray, EnvState, Action], tuple[EnvState, TimeStep]]
    draw: Callable[[EnvState], list[Any]] | None = None
    fps: float = 8.0
