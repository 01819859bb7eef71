"""MABrax: one robot of brax, moved by several agents, each with some of its joints.

The physics, the reward and the failure are brax's, unchanged. Which joints an agent
moves, and what it sees, is derived from the robot's tree of joints, in the manner of
multi-agent MuJoCo (Peng et al., "FACMAC", 2021): two joints are neighbours where they
hold the same body, and an agent sees its own joints and those up to `obsk` steps away.

Axes, beside those of `lorasa_jax.types`: F degrees of freedom of the robot, the trunk's
first; L links, the trunk first; S columns of brax's observation.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import MabraxConfig, nearest, require
from lorasa_jax.envs._jaxmarl import load_mabrax_maps
from lorasa_jax.envs._sealed import sealed
from lorasa_jax.envs.base import Env, EnvSpec, EnvState, TimeStep

EPISODE_STEPS = 1000
TRUNK = 0
"""The link that all others hang from; it is moved by no motor and seen by everyone."""


class Robot(NamedTuple):
    """What brax's description of a robot does not say.

    Attributes:
        hidden: how many leading positions its observation leaves out: how far it has come.
        blocks: what its observation holds behind positions and velocities, in order: so
            many columns per link, or per degree of freedom.
        obsk: how many joints away an agent sees by default; None: everything.
        splits: splits with a name of their own: the second agent moves the joints below
            this link, the first all others.
    """

    hidden: int
    blocks: tuple[tuple[Literal["link", "dof"], int], ...] = ()
    obsk: int | None = 1
    splits: Mapping[str, str] = MappingProxyType({})


ROBOTS: dict[str, Robot] = {
    "ant": Robot(hidden=2),
    "halfcheetah": Robot(hidden=1),
    "hopper": Robot(hidden=1),
    "humanoid": Robot(
        hidden=2,
        # inertia about the centre of mass, velocity, torque of the motors
        blocks=(("link", 10), ("link", 6), ("dof", 1)),
        obsk=None,
        splits=MappingProxyType({"9|8": "pelvis"}),
    ),
    "walker2d": Robot(hidden=1),
}
"""Robots by brax's names."""


class Skeleton(NamedTuple):
    """A robot's tree of joints.

    Attributes:
        names: of the links, L.
        parent: the link that each link hangs from, [L]; -1 for the trunk.
        link: the link that each degree of freedom moves, [F].
        position: the degree of freedom that each position belongs to. The orientation of
            a trunk that moves freely has four numbers for three degrees: they get the last.
        motors: the degree of freedom that each motor drives, in brax's order.
    """

    names: tuple[str, ...]
    parent: Int[np.ndarray, " L"]
    link: Int[np.ndarray, " F"]
    position: Int[np.ndarray, " Q"]
    motors: Int[np.ndarray, " J"]


class Maps(NamedTuple):
    """Who moves and who sees what.

    Attributes:
        motors: the entries of brax's action that each agent sets, in the order of its own.
        columns: the columns of brax's observation that each agent sees, in its order.
    """

    motors: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[int, ...], ...]


class MabraxState(NamedTuple):
    """A robot: brax's physics state, and the steps of the running episode so far."""

    physics: Any
    steps: Int[Array, ""]


def make_mabrax(task: str, config: MabraxConfig, time_limit: str) -> Env:
    """Returns a robot that a team moves.

    Args:
        task: robot and split, such as `ant_4x2`: four agents with two joints each.
        config: settings of the physics, and of who sees what.
        time_limit: `bootstrap`: running out of time truncates; `terminal`: it terminates.

    Raises:
        ConfigError: there is no such robot, or it cannot be split this way.
    """
    game = load_robot(_robot_name(task), config.backend)
    skeleton = skeleton_of(game.sys)
    maps = maps_of(task, skeleton, config)
    width = len(_tells(skeleton, ROBOTS[_robot_name(task)]))
    columns, sees = _padded(maps.columns)
    motors, moves = _padded(maps.motors)
    # Where in the joint action, agents side by side, each motor finds its torque.
    source = np.argsort(np.where(moves, motors, len(skeleton.motors)).reshape(-1), kind="stable")[: moves.sum()]
    spec = EnvSpec(
        name=task,
        n_agents=len(maps.columns),
        obs_dim=columns.shape[1],
        state_dim=width,
        n_actions=motors.shape[1],
        episode_limit=EPISODE_STEPS,
        team_reward=True,
        continuous=True,
        obs_widths=tuple(map(len, maps.columns)),
    )

    def show(
        obs: Float[Array, " S"], reward: Float[Array, ""], failed: Bool[Array, ""], steps: Int[Array, ""]
    ) -> TimeStep:
        """Returns what the robot looks like to us."""
        timeout = (steps >= EPISODE_STEPS) & ~failed
        terminal = time_limit == "terminal"
        return TimeStep(
            obs=jnp.where(sees, obs[columns], 0.0),
            state=obs,
            avail=jnp.asarray(moves),
            alive=jnp.ones(spec.n_agents, bool),
            reward=jnp.full(spec.n_agents, reward, jnp.float32),
            terminated=failed | timeout if terminal else failed,
            truncated=jnp.zeros((), bool) if terminal else timeout,
            won=jnp.zeros((), bool),
        )

    def reset(key: PRNGKeyArray) -> tuple[EnvState, TimeStep]:
        """Returns the robot near its rest pose."""
        fresh = game.reset(key)
        # A weakly typed leaf would make whoever jits `step` compile it twice.
        physics, obs = jax.tree.map(
            lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), (fresh.pipeline_state, fresh.obs)
        )
        steps = jnp.zeros((), jnp.int32)
        return MabraxState(physics, steps), show(obs, jnp.zeros(()), jnp.zeros((), bool), steps)

    def step(key: PRNGKeyArray, state: EnvState, action: Float[Array, "N A"]) -> tuple[EnvState, TimeStep]:
        """Returns the robot one step of control later."""
        after = _advance(game, state.physics, jnp.clip(action.reshape(-1)[source], -1.0, 1.0))
        # Physics that has blown up is a failure too, and must not reach whoever learns.
        sound = jnp.isfinite(after.obs).all() & jnp.isfinite(after.reward)
        obs, reward = jnp.where(sound, after.obs, 0.0), jnp.where(sound, after.reward, 0.0)
        steps = state.steps + 1
        return MabraxState(after.pipeline_state, steps), show(obs, reward, (after.done > 0) | ~sound, steps)

    def draw(states: EnvState) -> list[Any]:
        """Returns pictures of an episode; the states are stacked along a leading axis."""
        from lorasa_jax.envs.mabrax_drawing import draw_robot  # Pillow is needed here only

        return draw_robot(
            jax.device_get(states.physics.q), game.sys.mj_model, _movers(skeleton, maps), float(game.dt), task
        )

    return Env(spec, reset, step, draw, fps=20.0)


def _advance(game: Any, physics: Any, torque: Float[Array, " J"]) -> Any:
    """Returns brax's state after one step; of the one before, brax reads the physics alone."""
    from brax.envs import State

    nothing = jnp.zeros(())
    return game.step(State(physics, None, nothing, nothing), torque)


def _padded(rows: tuple[tuple[int, ...], ...]) -> tuple[Int[np.ndarray, "N K"], Bool[np.ndarray, "N K"]]:
    """Returns the rows with zeros behind the short ones, and where they hold entries of their own."""
    owned = np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])
    padded = np.zeros(owned.shape, int)
    padded[owned] = np.concatenate(rows)
    return padded, owned


# Who moves what, and who sees what


def maps_of(task: str, skeleton: Skeleton, config: MabraxConfig) -> Maps:
    """Returns who moves and who sees what in a task.

    Raises:
        ConfigError: the robot cannot be split this way.
    """
    if config.maps == "upstream":
        return upstream_maps(task, skeleton)
    name, _, split = task.partition("_")
    robot = ROBOTS[name]
    return kinematic_maps(
        skeleton, robot, agents_of(skeleton, name, split), robot.obsk if config.obsk is None else config.obsk
    )


def agents_of(skeleton: Skeleton, name: str, split: str) -> tuple[tuple[int, ...], ...]:
    """Returns the degrees of freedom that each agent moves.

    A split `KxM` deals the joints out, M at a time, along a walk over the robot: the first
    limb from its tip to the trunk, every other from the trunk to its tip. So groups keep to
    a limb where they can, and where a robot has two limbs, the one group that spans both
    holds neighbours. Within an agent, and from agent to agent, joints then go outwards from
    the trunk, limb by limb.

    Raises:
        ConfigError: there is no such split.
    """
    named, motors = ROBOTS[name].splits, len(skeleton.motors)
    size = re.fullmatch(r"(\d+)x(\d+)", split)
    even = [f"{k}x{motors // k}" for k in range(1, motors + 1) if motors % k == 0]
    require(
        split in named or (size is not None and split in even),
        f"{name} cannot be split into {split!r}: it has {motors} joints; splits (agents x joints each): "
        f"{', '.join([*named, *even])}",
    )
    joints = sorted(map(int, skeleton.motors))
    if split in named:
        below = _below(skeleton, skeleton.names.index(named[split]))
        return (
            tuple(dof for dof in joints if skeleton.link[dof] not in below),
            tuple(dof for dof in joints if skeleton.link[dof] in below),
        )
    first = _below(skeleton, TRUNK + 1) | {TRUNK + 1}
    limb = [dof for dof in joints if skeleton.link[dof] in first]
    walk = limb[::-1] + [dof for dof in joints if skeleton.link[dof] not in first]
    each = len(joints) // int(split.split("x")[0])
    return tuple(sorted(tuple(sorted(walk[i : i + each])) for i in range(0, len(walk), each)))


def kinematic_maps(skeleton: Skeleton, robot: Robot, agents: tuple[tuple[int, ...], ...], obsk: int | None) -> Maps:
    """Returns the maps that follow from the tree of joints.

    An agent sees the trunk, the positions and velocities of joints up to `obsk` steps from
    one of its own (None: of all), and what the observation tells of the links that these
    joints move. Nearer things come first, so that agents with like bodies find like things
    in like columns.
    """
    distance, tells = hops(skeleton), _tells(skeleton, robot)
    far = len(skeleton.link)
    columns = []
    for own in agents:
        away = distance[list(own)].min(axis=0)
        away[skeleton.link == TRUNK] = -1
        nearest_told = np.where(tells, away, far).min(axis=1)
        order = np.argsort(nearest_told, kind="stable")
        columns.append(tuple(int(c) for c in order if obsk is None or nearest_told[c] <= obsk))
    motor = {int(dof): i for i, dof in enumerate(skeleton.motors)}
    return Maps(tuple(tuple(motor[dof] for dof in own) for own in agents), tuple(columns))


def upstream_maps(task: str, skeleton: Skeleton) -> Maps:
    """Returns JaxMARL's tables for one of its five tasks, for comparison with what was published.

    Their faults are kept: an index past the end of the observation shows its last column.

    Raises:
        ConfigError: JaxMARL has no table for the task.
    """
    tables = load_mabrax_maps()
    motors, columns = tables._agent_action_mapping, tables._agent_observation_mapping
    require(
        task in columns,
        f"mabrax.maps upstream has no table for {task!r}{nearest(task, columns)}; tables: {', '.join(columns)}; "
        "all others need mabrax.maps kinematic",
    )
    last = len(_tells(skeleton, ROBOTS[_robot_name(task)])) - 1
    rows = [tuple(min(int(c), last) for c in columns[task][agent]) for agent in columns[task]]
    return Maps(tuple(tuple(map(int, motors[task][agent])) for agent in columns[task]), tuple(rows))


def hops(skeleton: Skeleton) -> Int[np.ndarray, "F F"]:
    """Returns how many joints lie between two degrees of freedom; those that hold the same link are neighbours.

    What moves the trunk is no joint of the robot: no way leads over it.
    """
    ends = np.stack([skeleton.link, skeleton.parent[skeleton.link]])
    near = (ends[:, None, :, None] == ends[None, :, None, :]).any(axis=(0, 1))
    joint = skeleton.link != TRUNK
    near &= joint[:, None] & joint
    n = len(joint)
    reached, distance = np.eye(n, dtype=bool), np.where(np.eye(n, dtype=bool), 0, n)
    for steps in range(1, n):
        reached = reached | (reached @ near)
        distance = np.where(reached & (distance == n), steps, distance)
    return distance


def _below(skeleton: Skeleton, link: int) -> set[int]:
    """Returns the links that hang from a link, directly or not."""
    found: set[int] = set()
    for child, parent in enumerate(skeleton.parent):  # parents come first
        if parent == link or int(parent) in found:
            found.add(child)
    return found


def _tells(skeleton: Skeleton, robot: Robot) -> Bool[np.ndarray, "S F"]:
    """Returns of which degrees of freedom each column of brax's observation tells.

    A column about a link tells of all that move it.
    """
    each = np.eye(len(skeleton.link), dtype=bool)
    of_link = skeleton.link == np.arange(len(skeleton.parent))[:, None]
    blocks = [np.repeat({"link": of_link, "dof": each}[kind], width, axis=0) for kind, width in robot.blocks]
    return np.concatenate([each[skeleton.position[robot.hidden :]], each, *blocks])


def _movers(skeleton: Skeleton, maps: Maps) -> list[int | None]:
    """Returns the agent that moves each link; None: nobody. A link that two agents share goes to the first."""
    agent = {int(skeleton.motors[m]): i for i, motors in enumerate(maps.motors) for m in motors}
    movers: list[int | None] = [None] * len(skeleton.parent)
    for dof in sorted(agent, reverse=True):
        movers[skeleton.link[dof]] = agent[dof]
    return movers


# brax


def _robot_name(task: str) -> str:
    """Returns the robot of a task.

    Raises:
        ConfigError: there is no such robot.
    """
    name = task.partition("_")[0]
    require(
        name in ROBOTS,
        f"unknown robot {name!r} in {task!r}{nearest(name, ROBOTS)}; a task is a robot and a split, "
        f"such as ant_4x2; robots: {', '.join(ROBOTS)}",
    )
    return name


def skeleton_of(system: Any) -> Skeleton:
    """Returns the tree of joints of a system of brax."""
    kinds = system.link_types  # per link: f, moves freely, or its number of degrees of freedom
    degrees = [6 if kind == "f" else int(kind) for kind in kinds]
    link = np.repeat(np.arange(len(kinds)), degrees)
    position = [
        int(dof)
        for i, kind in enumerate(kinds)
        for dof in [*np.flatnonzero(link == i), *([np.flatnonzero(link == i)[-1]] if kind == "f" else [])]
    ]
    return Skeleton(
        names=tuple(system.link_names),
        parent=np.asarray(system.link_parents, int),
        link=link,
        position=np.asarray(position, int),
        motors=np.asarray(system.actuator.qd_id, int),
    )


@cache
def load_robot(name: str, backend: str) -> Any:
    """Returns brax's environment of a robot, which neither resets by itself nor counts steps."""
    with _still():
        return _load_brax().get_environment(name, backend=backend)


@cache
def _load_brax() -> ModuleType:
    """Returns the module `brax.envs`; the first call takes seconds."""
    with sealed():
        from brax import envs
    return envs


@contextmanager
def _still() -> Iterator[None]:
    """Keeps in what reading a robot says: that brax is in maintenance only, and that its files are of an old kind.

    MuJoCo would write the latter to the terminal and into a file in the working directory. Its log
    goes to the root logger, which gets a handler for good where it has none.
    """
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    log = logging.NullHandler()
    logging.root.addHandler(log)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Brax System, piplines and environments", UserWarning)
            yield
    finally:
        logging.root.removeHandler(log)
        mujoco.set_mju_user_warning(before)
