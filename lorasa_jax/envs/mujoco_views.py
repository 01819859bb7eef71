"""Actions and observations of the agents of a MuJoCo robot."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lorasa_jax.config import MujocoConfig, require
from lorasa_jax.envs.mabrax_maps import Maps, Skeleton, cannot_split, distances, even_splits, walk_apart
from lorasa_jax.envs.mujoco_robots import Block, Joint, Robot


def agents_of(name: str, robot: Robot, split: str, skeleton: Skeleton) -> tuple[tuple[Joint, ...], ...]:
    """Returns the joints that each agent moves, in the order of its action.

    Splits that MaMuJoCo does not have follow MABrax's rules for the tree of joints.

    Raises:
        ConfigError: there is no such split.
    """
    by_name = {joint.name: joint for joint in robot.joints}
    if split in robot.splits:
        return tuple(tuple(by_name[word] for word in words) for words in robot.splits[split])
    n_joints = len(robot.joints)
    require(split in even_splits(n_joints), cannot_split(name, split, n_joints, robot.splits))
    groups = walk_apart(skeleton, int(split.split("x")[0]))
    behind = len(skeleton.link) - n_joints
    return tuple(tuple(robot.joints[dof - behind] for dof in group) for group in groups)


class Sizes(NamedTuple):
    """Sizes of a robot: numbers of its positions, velocities and bodies (including the world)."""

    positions: int
    velocities: int
    bodies: int


def block_widths(robot: Robot, sizes: Sizes) -> dict[Block, int]:
    """Returns the number of columns of each block of the observation, without the world and the trunk's joint."""
    bodies = sizes.bodies - 1
    widths: dict[Block, int] = {
        "cinert": 10 * bodies,
        "cvel": 6 * bodies,
        "qfrc_actuator": sizes.velocities - 6,
        "cfrc_ext": 6 * bodies,
    }
    return {block: widths[block] for block in robot.blocks}


def obs_width(robot: Robot, sizes: Sizes) -> int:
    """Returns S, the width of the robot's whole observation."""
    return sizes.positions - robot.hidden + sizes.velocities + sum(block_widths(robot, sizes).values())


def told_width(robot: Robot, sizes: Sizes) -> int:
    """Returns the number of observed numbers: the whole observation, and numbers that only agents see."""
    return obs_width(robot, sizes) + robot.unclipped * sizes.velocities


def maps_of(robot: Robot, agents: tuple[tuple[Joint, ...], ...], sizes: Sizes, config: MujocoConfig) -> Maps:
    """Returns actions and observations of the agents.

    An agent sees position, velocity and bodies of its own joints, the positions of joints up to `obsk` steps
    away, and the trunk.
    """
    motors = tuple(tuple(joint.motor for joint in own) for own in agents)
    obsk = config.obsk if config.obsk is not None else "all" if robot.sees_all else 1
    if obsk == "all":
        return Maps(motors, (tuple(range(obs_width(robot, sizes))),) * len(agents))
    near = _steps_away(robot)
    return Maps(motors, tuple(_seen(robot, own, near, obsk, sizes) for own in agents))


def _steps_away(robot: Robot) -> Int[np.ndarray, "J J"]:
    """The distances between the joints of the table."""
    place = {joint.name: i for i, joint in enumerate(robot.joints)}
    near = np.zeros((len(place), len(place)), bool)
    for edge in robot.edges:
        group = [place[name] for name in edge]
        near[np.ix_(group, group)] = True
    return distances(near)


def _seen(
    robot: Robot, own: tuple[Joint, ...], near: Int[np.ndarray, "J J"], obsk: int, sizes: Sizes
) -> tuple[int, ...]:
    """The columns of the observation that an agent sees, in MaMuJoCo's order."""

    def position(i: int) -> int:
        return i % sizes.positions - robot.hidden

    def velocity(i: int) -> int:
        first = obs_width(robot, sizes) if robot.unclipped else sizes.positions - robot.hidden
        return first + i % sizes.velocities

    away = near[[robot.joints.index(joint) for joint in own]].min(axis=0)
    columns: list[int] = []
    told: set[tuple[Block, int]] = set()
    for joint in sorted(own, key=lambda joint: joint.name):
        columns += [position(joint.slot), *map(velocity, joint.velocities or (joint.slot,))]
        start = sizes.positions - robot.hidden + sizes.velocities
        for block, width in block_widths(robot, sizes).items():
            if block == "qfrc_actuator":
                columns.append(start + joint.slot % sizes.velocities - 6)
            else:
                each = width // (sizes.bodies - 1)
                for body in joint.bodies:
                    if (block, body) not in told:
                        columns += range(start + each * (body - 1), start + each * body)
                        told.add((block, body))
            start += width
    for steps in range(1, min(obsk + 1, len(robot.joints))):  # unreachable joints have the largest distance
        ring = [joint for joint, distance in zip(robot.joints, away, strict=True) if distance == steps]
        columns += [position(joint.slot) for joint in sorted(ring, key=lambda joint: joint.name)]
    return *columns, *map(position, robot.trunk[0]), *map(velocity, robot.trunk[1])
