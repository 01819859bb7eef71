"""The protocol of environments: pure functions over arrays.

An environment is a record of two functions. Agents are an axis, never keys of a
dictionary. Episodes end in two ways, by termination or truncation. Environments do not
reset themselves; the only reset policy is in `lorasa_jax.learning.rollout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.checks import conform, require

EnvState = Any
Action = Int[Array, " N"] | Float[Array, "N A"]


@dataclass(frozen=True)
class EnvSpec:
    """The fixed properties of an environment.

    Attributes:
        name: the task, as on the command line.
        n_agents: N.
        obs_dim: width of one agent's observation.
        state_dim: width of the global state.
        n_actions: A: number of discrete actions of each agent; for continuous actions, the
            number of dimensions of the widest action.
        episode_limit: maximum number of steps of an episode.
        team_reward: all agents always receive the same reward, so one value per
            environment is enough.
        continuous: an action is a vector in [-1, 1]^A. `TimeStep.avail` marks the dimensions
            that each agent has, and never changes.
        obs_widths: number of leading columns of `TimeStep.obs` of each agent, if they differ.
            The other columns are zeros. None: all agents have all columns.
        roles: the role of each agent, such as a type of unit, numbered from 0 without a gap.
            None: no roles, or changing roles.
        role_names: names of the roles in the order of their numbers; optional.
        n_roles: number of changing roles, which `TimeStep.role` gives; otherwise 0.
        winnable: episodes can be won. Otherwise win rates, which are always 0, are not shown.
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

    def __post_init__(self) -> None:
        conform(self, "EnvSpec.", as_flags=False)
        for name in ("n_agents", "obs_dim", "state_dim", "n_actions", "episode_limit"):
            value = getattr(self, name)
            require(value > 0, f"EnvSpec.{name} of {self.name} must be positive, got {value}")
        n = self.n_agents
        require(
            self.obs_widths is None
            or (len(self.obs_widths) == n and all(0 < width <= self.obs_dim for width in self.obs_widths)),
            f"EnvSpec.obs_widths of {self.name} must be {n} numbers between 1 and obs_dim {self.obs_dim}, one per "
            f"agent; got {self.obs_widths}",
        )
        require(
            self.roles is None or (len(self.roles) == n and set(self.roles) == set(range(max(self.roles) + 1))),
            f"EnvSpec.roles of {self.name} must number the roles 0, 1, ... without a gap, one number per agent; "
            f"got {self.roles}",
        )
        require(
            self.n_roles >= 0 and (self.roles is None or not self.n_roles),
            f"EnvSpec.n_roles of {self.name} is for roles that change, and roles for those that do not; "
            f"got n_roles {self.n_roles} with roles {self.roles}",
        )
        known = max(self.roles) + 1 if self.roles else self.n_roles
        require(
            len(self.role_names) in (0, known),
            f"EnvSpec.role_names of {self.name} must be {known} names, or be left out; got {self.role_names}",
        )


class TimeStep(NamedTuple):
    """The result of a reset or a step.

    Attributes:
        obs: one observation per agent.
        state: the global state for a centralised critic. It is scaled to about [-1, 1] if
            its range is known, and otherwise in the simulator's units (robots).
        avail: the available actions of each agent, or the dimensions of its continuous
            action. At least one is true for every agent, dead ones included.
        alive: the agents that can still act.
        reward: the reward of the last joint action; zero after a reset.
        terminated: the episode is over by itself.
        truncated: the episode is over because of the time limit; never together with
            `terminated`.
        won: the episode was won; false before the end.
        role: the role of each agent, [N] integers, if roles change; otherwise empty.
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
        spec: its fixed properties.
        reset: `reset(key) -> (state, timestep)`, a new start state.
        step: `step(key, state, action) -> (state, timestep)` with `action` an integer
            per agent, [N], or a vector, [N, A]. Dimensions that an agent does not have
            are ignored. It never resets: after the end of an episode the time step
            still shows the last state.
        draw: `draw(states) -> frames`: pictures of an episode, whose states are stacked along
            a leading axis; None: the environment cannot be drawn.
        fps: pictures per second.
    """

    spec: EnvSpec
    reset: Callable[[PRNGKeyArray], tuple[EnvState, TimeStep]]
    step: Callable[[PRNGKeyArray, EnvState, Action], tuple[EnvState, TimeStep]]
    draw: Callable[[EnvState], list[Any]] | None = None
    fps: float = 8.0
