"""Particle games: points in a plane that must differ in behaviour, with an adjustable number of roles.

All games share the physics. Each agent chooses one of five moves (stay, right, left, up, down):

    velocity <- 0.75 velocity + 0.05 move        position <- position + velocity

There are no walls and no collisions. Start positions are drawn from [-1, 1]^2. An agent observes its position, its
velocity and the offsets of all landmarks, but not its kind and not the other agents.

* `spread_NxC`: N agents of C colours and C landmarks, one per colour. An agent is paid minus its distance to the
  landmark of its colour. This is blind-particle spread (Christianos et al. 2021, arXiv 2102.07475).
* `roles_NxC`: the same, but with N landmarks for every C. The first C landmarks count. Only the number of roles changes
  with C; observations, states and the return of the best policy do not.
* `dynamics_NxC`: one landmark for all. For kind k of C, moves are rotated by 360 k / C degrees.
* `dispersion_N`: N agents start at the centre, N items lie around. Each item pays the first agent that touches it
  (after Dispersion in VMAS, Bettini et al. 2022, arXiv 2207.03530).

Sizes of unequal groups are given one by one: `spread_4+4+2`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import ParticlesConfig, nearest, require
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep

MOVES = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
DRAG, PUSH = 0.75, 0.05
TOUCH = 0.15
"""Distance at which an agent eats an item."""


class ParticlesState(NamedTuple):
    """The state of an episode.

    Attributes:
        place: positions of the agents.
        velocity: their velocities, per step.
        landmark: positions of the landmarks or items.
        left: items that were not eaten yet; true for landmarks.
        time: steps played.
    """

    place: Float[Array, "N 2"]
    velocity: Float[Array, "N 2"]
    landmark: Float[Array, "L 2"]
    left: Bool[Array, " L"]
    time: Int[Array, ""]


class Rules(NamedTuple):
    """The rules of a game.

    Attributes:
        n_agents: N.
        n_landmarks: L, the number of landmarks or items.
        goal: the landmark of each agent; None: landmarks are items, which are eaten.
        roles: the kind of each agent; None: all are alike.
        role_names: names of the kinds.
        angle: rotation of each agent's moves, in radians; (): none.
        steps: the length of an episode.
    """

    n_agents: int
    n_landmarks: int
    goal: tuple[int, ...] | None
    roles: tuple[int, ...] | None = None
    role_names: tuple[str, ...] = ()
    angle: tuple[float, ...] = ()
    steps: int = 25


def spread(sizes: tuple[int, ...]) -> Rules:
    """Colours with one landmark each."""
    return _coloured(sizes, n_landmarks=len(sizes))


def roles(sizes: tuple[int, ...]) -> Rules:
    """Colours with one landmark each; the number of landmarks is the number of agents."""
    return _coloured(sizes, n_landmarks=sum(sizes))


def _coloured(sizes: tuple[int, ...], n_landmarks: int) -> Rules:
    colours = _kinds(sizes)
    return Rules(len(colours), n_landmarks, colours, colours, tuple(f"colour {k}" for k in range(len(sizes))))


def dynamics(sizes: tuple[int, ...]) -> Rules:
    """Kinds with rotated moves, and one landmark."""
    kinds, count = _kinds(sizes), len(sizes)
    names = tuple(f"turned by {360 * k / count:.0f} degrees" for k in range(count))
    angle = tuple(2 * np.pi * k / count for k in kinds)
    return Rules(len(kinds), 1, (0,) * len(kinds), kinds, names, angle)


def dispersion(n: int) -> Rules:
    """One item per agent; in 16 steps an agent reaches any one item, but not all."""
    return Rules(n, n, None, steps=16)


def _kinds(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(kind for kind, size in enumerate(sizes) for _ in range(size))


GAMES = {"spread": spread, "roles": roles, "dynamics": dynamics}
"""Games of agents in groups, by name."""


def rules_of(task: str) -> Rules:
    """Returns the rules of a game such as `spread_10x5`, `spread_4+4+2` or `dispersion_4`.

    Raises:
        ConfigError: there is no such game, or the team cannot be split this way.
    """
    name, _, team = task.partition("_")
    known = (*GAMES, "dispersion")
    require(
        name in known,
        f"no particle game {task!r}{nearest(name, known)}; games: spread_10x5, roles_10x5, dynamics_8x4, dispersion_4",
    )
    if name == "dispersion":
        require(bool(re.fullmatch("[1-9][0-9]*", team)), f"{task!r} must name the number of agents: dispersion_4")
        return dispersion(int(team))
    return GAMES[name](_sizes(task, name, team))


def _sizes(task: str, name: str, team: str) -> tuple[int, ...]:
    """Returns the size of each group."""
    even = re.fullmatch("([1-9][0-9]*)x([1-9][0-9]*)", team)
    if even:
        n, count = map(int, even.groups())
        require(
            n % count == 0,
            f"{task!r}: {n} agents do not fall into {count} equal groups; write the sizes of the groups, as in "
            f"{name}_4+4+2",
        )
        return (n // count,) * count
    require(
        bool(re.fullmatch(r"[1-9][0-9]*(\+[1-9][0-9]*)+", team)),
        f"{task!r} must name agents and groups ({name}_10x5), or the sizes of the groups ({name}_4+4+2)",
    )
    return tuple(map(int, team.split("+")))


def make_particles(task: str, config: ParticlesConfig) -> Env:
    """Returns a particle game.

    Args:
        task: the game and its team, such as `spread_10x5`.
        config: settings of the reward.

    Raises:
        ConfigError: there is no such game, or the team cannot be split this way.
    """
    rules = rules_of(task)
    n, n_marks, eaten = rules.n_agents, rules.n_landmarks, rules.goal is None
    moves = jnp.asarray(_turned_moves(rules))
    goal = None if rules.goal is None else jnp.array(rules.goal)

    def show(state: ParticlesState, reward: Float[Array, " N"]) -> TimeStep:
        offset = (state.landmark - state.place[:, None]) * state.left[:, None]
        items = [jnp.broadcast_to(state.left, (n, n_marks))] if eaten else []
        done = ~state.left.any()
        return TimeStep(
            obs=jnp.concatenate([state.place, state.velocity, offset.reshape(n, -1), *items], axis=-1),
            state=jnp.concatenate([x.reshape(-1) for x in (*state[:3], *([state.left] if eaten else []))]),
            avail=jnp.ones((n, len(MOVES)), bool),
            alive=jnp.ones(n, bool),
            reward=jnp.full(n, reward.mean()) if config.reward == "team" else reward,
            terminated=done,
            truncated=(state.time >= rules.steps) & ~done,
            won=done,
        )

    def reset(key: PRNGKeyArray) -> tuple[ParticlesState, TimeStep]:
        place_key, mark_key = jax.random.split(key)
        place = jnp.zeros((n, 2)) if eaten else jax.random.uniform(place_key, (n, 2), minval=-1.0)
        landmark = jax.random.uniform(mark_key, (n_marks, 2), minval=-1.0)
        state = ParticlesState(place, jnp.zeros((n, 2)), landmark, jnp.ones(n_marks, bool), jnp.int32(0))
        return state, show(state, jnp.zeros(n))

    def step(key: PRNGKeyArray, state: ParticlesState, action: Int[Array, " N"]) -> tuple[ParticlesState, TimeStep]:
        velocity = DRAG * state.velocity + PUSH * moves[jnp.arange(n), action]
        place = state.place + velocity
        distance = jnp.linalg.norm(place[:, None] - state.landmark, axis=-1)
        if goal is None:
            reward, left = eat(distance, state.left)
        else:
            reward, left = -distance[jnp.arange(n), goal], state.left
        state = ParticlesState(place, velocity, state.landmark, left, state.time + 1)
        return state, show(state, reward)

    def draw(states: ParticlesState) -> list[Any]:
        """Returns one picture per state of an episode; the states are stacked along a leading axis."""
        from lorasa_jax.envs.particles_drawing import draw_particles  # Pillow is needed here only

        return draw_particles(jax.device_get(states), rules, task)

    width = 4 + (3 if eaten else 2) * n_marks
    spec = EnvSpec(
        name=task,
        n_agents=n,
        obs_dim=width,
        state_dim=width - 4 + 4 * n,
        n_actions=len(MOVES),
        episode_limit=rules.steps,
        team_reward=config.reward == "team",
        roles=rules.roles,
        role_names=rules.role_names,
        winnable=eaten,
    )
    return Env(spec, reset, step, draw)


def eat(distance: Float[Array, "N L"], left: Bool[Array, " L"]) -> tuple[Float[Array, " N"], Bool[Array, " L"]]:
    """Returns the items that each agent eats, and the remaining items.

    An item goes to the nearest agent that touches it. Equally near agents share it, so no agent has an advantage.
    """
    gone = left & (distance <= TOUCH).any(axis=0)
    nearest = distance == distance.min(axis=0)
    return jnp.sum(nearest / nearest.sum(axis=0) * gone, axis=1), left & ~gone


def _turned_moves(rules: Rules) -> Float[np.ndarray, "N A 2"]:
    """Returns the moves of each agent."""
    angle = np.array(rules.angle or (0.0,) * rules.n_agents)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return np.einsum("ai,ijn->naj", MOVES, turn).astype(np.float32)
