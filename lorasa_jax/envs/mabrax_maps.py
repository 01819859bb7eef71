"""Who moves what and who sees what of a robot, derived from its tree of joints, without any physics.

In the manner of multi-agent MuJoCo (Peng et al., "FACMAC", 2021): two joints are neighbours where they
hold the same body, and an agent sees its own joints and those up to `obsk` steps away.

Axes, beside those of `lorasa_jax.core.types`: F degrees of freedom of the robot, the trunk's
first; L links, the trunk first; Q positions; J motors; S columns of brax's observation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from lorasa_jax.config import MabraxConfig, nearest, require
from lorasa_jax.envs._jaxmarl import load_mabrax_maps

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


def robot_name(task: str) -> str:
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
    named, even = ROBOTS[name].splits, even_splits(len(skeleton.motors))
    require(split in named or split in even, cannot_split(name, split, len(skeleton.motors), named))
    if split in named:
        joints, below = sorted(map(int, skeleton.motors)), _below(skeleton, skeleton.names.index(named[split]))
        return (
            tuple(dof for dof in joints if skeleton.link[dof] not in below),
            tuple(dof for dof in joints if skeleton.link[dof] in below),
        )
    return walk_apart(skeleton, int(split.split("x")[0]))


def even_splits(n_joints: int) -> list[str]:
    """Returns the splits of so many joints in which every agent has equally many."""
    return [f"{k}x{n_joints // k}" for k in range(1, n_joints + 1) if n_joints % k == 0]


def cannot_split(name: str, split: str, n_joints: int, named: Iterable[str]) -> str:
    """Returns the message for a split that a robot does not have."""
    splits = list(dict.fromkeys([*named, *even_splits(n_joints)]))
    return (
        f"{name} cannot be split into {split!r}: it has {n_joints} joints; splits (agents x "
        f"joints each): {', '.join(splits)}"
    )


def walk_apart(skeleton: Skeleton, n_agents: int) -> tuple[tuple[int, ...], ...]:
    """Returns the degrees of freedom of agents that share a walk over the robot, which `agents_of` describes."""
    joints = sorted(map(int, skeleton.motors))
    first = _below(skeleton, TRUNK + 1) | {TRUNK + 1}
    limb = [dof for dof in joints if skeleton.link[dof] in first]
    walk = limb[::-1] + [dof for dof in joints if skeleton.link[dof] not in first]
    each = len(joints) // n_agents
    return tuple(sorted(tuple(sorted(walk[i : i + each])) for i in range(0, len(walk), each)))


def kinematic_maps(skeleton: Skeleton, robot: Robot, agents: tuple[tuple[int, ...], ...], obsk: int | None) -> Maps:
    """Returns the maps that follow from the tree of joints.

    An agent sees the trunk, the positions and velocities of joints up to `obsk` steps from
    one of its own (None: of all), and what the observation tells of the links that these
    joints move. Nearer things come first, so that agents with like bodies find like things
    in like columns.
    """
    distance, told = hops(skeleton), tells(skeleton, robot)
    far = len(skeleton.link)
    columns = []
    for own in agents:
        away = distance[list(own)].min(axis=0)
        away[skeleton.link == TRUNK] = -1
        nearest_told = np.where(told, away, far).min(axis=1)
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
    last = len(tells(skeleton, ROBOTS[robot_name(task)])) - 1
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
    return distances(near)


def distances(near: Bool[np.ndarray, "K K"]) -> Int[np.ndarray, "K K"]:
    """Returns the lengths of the shortest ways over neighbours; K where there is none."""
    n = len(near)
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


def tells(skeleton: Skeleton, robot: Robot) -> Bool[np.ndarray, "S F"]:
    """Returns of which degrees of freedom each column of brax's observation tells.

    A column about a link tells of all that move it.
    """
    each = np.eye(len(skeleton.link), dtype=bool)
    of_link = skeleton.link == np.arange(len(skeleton.parent))[:, None]
    blocks = [np.repeat({"link": of_link, "dof": each}[kind], width, axis=0) for kind, width in robot.blocks]
    return np.concatenate([each[skeleton.position[robot.hidden :]], each, *blocks])


def movers(skeleton: Skeleton, maps: Maps) -> list[int | None]:
    """Returns the agent that moves each link; None: nobody. A link that two agents share goes to the first."""
    agent = {int(skeleton.motors[m]): i for i, motors in enumerate(maps.motors) for m in motors}
    movers: list[int | None] = [None] * len(skeleton.parent)
    for dof in sorted(agent, reverse=True):
        movers[skeleton.link[dof]] = agent[dof]
    return movers
