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


@dataclass(frozen=True)
class EnvSpec:
    """What is fixed about an environment.

    Attributes:
        name: the task, as on the command line.
        n_agents: N.
        obs_dim: width of one agent's observation.
        state_dim: width of the global state.
        n_actions: number of discrete actions of each agent.
        episode_limit: no episode is longer than this many steps.
        team_reward: every agent is always paid the same, so one value per
            environment is enough.
    """

    name: str
    n_agents: int
    obs_dim: int
    state_dim: int
    n_actions: int
    episode_limit: int
    team_reward: bool


class TimeStep(NamedTuple):
    """What an environment shows after a reset or a step.

    Attributes:
        obs: one observation per agent.
        state: the global state, scaled to about [-1, 1], for a centralised critic.
        avail: the actions each agent may take now; at least one is true for every
            agent, dead ones included.
        alive: the agents that can still act.
        reward: what the last joint action earned; zero after a reset.
        terminated: the episode is over by itself.
        truncated: the episode is over because time ran out; never together with
            `terminated`.
        won: the episode ended with the goal reached; false before the end.
    """

    obs: Float[Array, "N D"]
    state: Float[Array, " S"]
    avail: Bool[Array, "N A"]
    alive: Bool[Array, " N"]
    reward: Float[Array, " N"]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    won: Bool[Array, ""]


class Env(NamedTuple):
    """A multi-agent environment as pure functions.

    Attributes:
        spec: what is fixed about it.
        reset: `reset(key) -> (state, timestep)`, a fresh start state.
        step: `step(key, state, action) -> (state, timestep)` with `action` an integer
            per agent, [N]. It never resets: after the end of an episode the
            time step still shows where it ended.
        draw: `draw(states) -> frames`: one picture per state of an episode (states
            stacked along a leading axis), or None where there is nothing to see.
    """

    spec: EnvSpec
    reset: Callable[[PRNGKeyArray], tuple[EnvState, TimeStep]]
    step: Callable[[PRNGKeyArray, EnvState, Int[Array, " N"]], tuple[EnvState, TimeStep]]
    draw: Callable[[EnvState], list[Any]] | None = None
