"""Joints that each agent moves and observes, derived from a robot's tree of joints, without physics.

The rules follow multi-agent MuJoCo (Peng et al., "FACMAC", 2021): two joints are neighbours if they
hold the same body, and an agent sees its own joints and those up to `obsk` steps away.

Axes, in addition to those of `lorasa_jax.core.types`: F degrees of freedom of the robot, the trunk's
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
"""The root link. No motor moves it, and every agent sees it."""


class Robot(NamedTuple):
    """Properties of a robot that brax's description does not contain.

    Attributes:
        hidden: number of leading positions (the distance travelled) that the observation
            leaves out.
        blocks: blocks of the observation after positions and velocities, in order: numbers of
            columns per link, or per degree of freedom.
        obsk: default distance, in joints, up to which an agent sees; None: everything.
        splits: named splits: the second agent moves the joints below this link, the first
            agent all others.
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
        # inertia about the centre of mass, velocity, motor torque
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
        names: names of the links, L.
        parent: the parent of each link, [L]; -1 for the trunk.
        link: the link that each degree of freedom moves, [F].
        position: the degree of freedom of each position. The orientation of a free trunk has
            four numbers for three degrees of freedom; the fourth gets the last of these.
        motors: the degree of freedom that each motor drives, in brax's order.
    """

    names: tuple[str, ...]
    parent: Int[np.ndarray, " L"]
    link: Int[np.ndarray, " F"]
    position: Int[np.ndarray, " Q"]
    motors: Int[np.ndarray, " J"]


class Maps(NamedTuple):
    """Actions and observations of the agents.

    Attributes:
        motors: the entries of brax's action that each agent sets, in the order of its action.
        columns: the columns of brax's observation that each agent sees, in order.
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
    """Returns actions and observations of the agents in a task.

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

    A split `KxM` assigns the joints, M at a time, along a walk over the robot: the first
    limb from its tip to the trunk, every other limb from the trunk to its tip. So groups stay
    on one limb if possible. If a robot has two limbs, the group that spans both contains
    neighbours. Joints within an agent, and agents, are then ordered limb by limb, outwards
    from the trunk.

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
    """Returns the splits in which every agent has the same number of joints."""
    return [f"{k}x{n_joints // k}" for k in range(1, n_joints + 1) if n_joints % k == 0]


def cannot_split(name: str, split: str, n_joints: int, named: Iterable[str]) -> str:
    """Returns the message for a split that a robot does not have."""
    splits = list(dict.fromkeys([*named, *even_splits(n_joints)]))
    return (
        f"{name} cannot be split into {split!r}: it has {n_joints} joints; splits (agents x "
        f"joints each): {', '.join(splits)}"
    )


def walk_apart(skeleton: Skeleton, n_agents: int) -> tuple[tuple[int, ...], ...]:
    """Returns the degrees of freedom of each agent, from the walk over the robot that `agents_of` describes."""
    joints = sorted(map(int, skeleton.motors))
    first = _below(skeleton, TRUNK + 1) | {TRUNK + 1}
    limb = [dof for dof in joints if skeleton.link[dof] in first]
    walk = limb[::-1] + [dof for dof in joints if skeleton.link[dof] not in first]
    each = len(joints) // n_agents
    return tuple(sorted(tuple(sorted(walk[i : i + each])) for i in range(0, len(walk), each)))


def kinematic_maps(skeleton: Skeleton, robot: Robot, agents: tuple[tuple[int, ...], ...], obsk: int | None) -> Maps:
    """Returns the maps derived from the tree of joints.

    An agent sees the trunk, the positions and velocities of joints up to `obsk` steps from
    one of its own (None: of all joints), and the columns about the links that these joints
    move. Nearer joints come first, so agents with similar bodies have corresponding columns.
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
    """Returns JaxMARL's tables for one of its five tasks, for comparison with published results.

    Their faults are kept: an index beyond the observation shows its last column.

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
    """Returns the distance in joints between degrees of freedom; those that hold the same link are neighbours.

    The trunk's degrees of freedom are not joints, so no path leads over them.
    """
    ends = np.stack([skeleton.link, skeleton.parent[skeleton.link]])
    near = (ends[:, None, :, None] == ends[None, :, None, :]).any(axis=(0, 1))
    joint = skeleton.link != TRUNK
    near &= joint[:, None] & joint
    return distances(near)


def distances(near: Bool[np.ndarray, "K K"]) -> Int[np.ndarray, "K K"]:
    """Returns the lengths of the shortest paths over neighbours; K if there is no path."""
    n = len(near)
    reached, distance = np.eye(n, dtype=bool), np.where(np.eye(n, dtype=bool), 0, n)
    for steps in range(1, n):
        reached = reached | (reached @ near)
        distance = np.where(reached & (distance == n), steps, distance)
    return distance


def _below(skeleton: Skeleton, link: int) -> set[int]:
    """Returns the descendants of a link."""
    found: set[int] = set()
    for child, parent in enumerate(skeleton.parent):  # parents precede children
        if parent == link or int(parent) in found:
            found.add(child)
    return found


def tells(skeleton: Skeleton, robot: Robot) -> Bool[np.ndarray, "S F"]:
    """Returns the degrees of freedom that each column of brax's observation describes.

    A column about a link describes all degrees of freedom that move it.
    """
    each = np.eye(len(skeleton.link), dtype=bool)
    of_link = skeleton.link == np.arange(len(skeleton.parent))[:, None]
    blocks = [np.repeat({"link": of_link, "dof": each}[kind], width, axis=0) for kind, width in robot.blocks]
    return np.concatenate([each[skeleton.position[robot.hidden :]], each, *blocks])


def movers(skeleton: Skeleton, maps: Maps) -> list[int | None]:
    """Returns the agent that moves each link; None: no agent. A link of two agents goes to the first."""
    agent = {int(skeleton.motors[m]): i for i, motors in enumerate(maps.motors) for m in motors}
    movers: list[int | None] = [None] * len(skeleton.parent)
    for dof in sorted(agent, reverse=True):
        movers[skeleton.link[dof]] = agent[dof]
    return movers
