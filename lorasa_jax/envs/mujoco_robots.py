"""The robots of multi-agent MuJoCo, and who moves and sees what of them, without any physics.

Robots, rewards and failures are those of Gymnasium's environments of version 5 (Towers et al., "Gymnasium", 2024).
Agents and what they see are those of MaMuJoCo in Gymnasium-Robotics 1.4 (after Peng et al., "FACMAC", 2021), so that
returns compare with published ones.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from lorasa_jax.config import ConfigError, nearest, require
from lorasa_jax.envs._sealed import sealed

Block = Literal["cinert", "cvel", "qfrc_actuator", "cfrc_ext"]
INF = float("inf")


class Joint(NamedTuple):
    """A joint that a motor drives.

    Attributes:
        name: as in MaMuJoCo; joints that are equally far from an agent are seen in the order of their names.
        slot: its place among the robot's positions, and among its velocities; negative: from the end.
        motor: the entry of the robot's action.
        bodies: the bodies of which those who move the joint see what `Robot.blocks` names.
        velocities: the velocities that those who move the joint see, where it is not its own alone.
    """

    name: str
    slot: int
    motor: int
    bodies: tuple[int, ...] = ()
    velocities: tuple[int, ...] | None = None


class Pay(NamedTuple):
    """What a robot earns in a step, and when it has failed.

    The reward is `speed * v + healthy - control * |action|^2 - min(contact * |f|^2, most_contact)`, with v the
    velocity along the track and f the contact forces on all bodies, each clipped to +-`force`. `healthy` is paid while
    the height and the angle of the trunk, and all other numbers of its state, lie within their ranges. Outside of them
    the robot has failed.

    Attributes:
        control: cost of actions.
        healthy: pay of every step without a failure.
        speed: pay of a metre per second.
        contact: cost of contact forces.
        most_contact: the highest cost of contact forces.
        force: the largest force that counts, and is seen.
        height: range of the trunk's height.
        angle: range of its angle (planar robots).
        bound: the largest size of any other number of the state.
    """

    control: float
    healthy: float = 0.0
    speed: float = 1.0
    contact: float = 0.0
    most_contact: float = INF
    force: float = INF
    height: tuple[float, float] = (-INF, INF)
    angle: tuple[float, float] = (-INF, INF)
    bound: float = INF


class Robot(NamedTuple):
    """A robot, and how a team may share it.

    Attributes:
        file: its description in MuJoCo's format, in the package `gymnasium`; or a maker of it.
        joints: those with motors.
        edges: groups of joints that are neighbours of each other.
        splits: the named splits: the joints of every agent, in the order of its action.
        pay: reward and failure.
        noise: size of the noise of start states.
        normal: the noise of velocities is normal, not uniform.
        frame_skip: steps of the physics in one step of the environment.
        hidden: the leading positions that are not observed: how far it has come.
        trunk: the positions and the velocities that everyone sees.
        clip: the largest velocity that is observed.
        unclipped: agents see velocities as they are; only the whole observation has them clipped.
        blocks: what the observation holds behind positions and velocities, in order.
        place: what moves along the track: the first position, the first body, or the centre of mass.
        sees_all: agents see the whole observation by default, as LoRASA's authors have it for the humanoid.
    """

    file: str | Callable[[], str]
    joints: tuple[Joint, ...]
    edges: tuple[tuple[str, ...], ...]
    splits: Mapping[str, tuple[tuple[str, ...], ...]]
    pay: Pay
    noise: float
    normal: bool = False
    frame_skip: int = 5
    hidden: int = 1
    trunk: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 2), (0, 1, 2))
    clip: float = INF
    unclipped: bool = False
    blocks: tuple[Block, ...] = ()
    place: Literal["position", "body", "mass"] = "position"
    sees_all: bool = False


def _joints(names: str, **more: Any) -> tuple[Joint, ...]:
    """The last joints of a robot, in the order of their positions; `more` gives other fields, one value per joint."""
    words = names.split()
    fields = {"motor": range(len(words)), **more}
    return tuple(
        Joint(name, i - len(words), **{field: values[i] for field, values in fields.items()})
        for i, name in enumerate(words)
    )


def _groups(text: str) -> tuple[tuple[str, ...], ...]:
    """Groups of words: `a b | c` is (a, b), (c)."""
    return tuple(tuple(group.split()) for group in text.split("|"))


def _chain(text: str) -> tuple[tuple[str, ...], ...]:
    """Each word a neighbour of the next one."""
    words = text.split()
    return tuple(pairwise(words))


FREE = (2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5)
"""The positions and velocities of a trunk that moves freely, without its place on the ground."""

_LEGS = "thigh_joint leg_joint foot_joint", "thigh_left_joint leg_left_joint foot_left_joint"
_ABDOMEN, _RIGHT_HIP, _LEFT_HIP, _RIGHT_SHOULDER, _LEFT_SHOULDER = (
    "abdomen_x abdomen_y abdomen_z",
    "right_hip_x right_hip_y right_hip_z",
    "left_hip_x left_hip_y left_hip_z",
    "right_shoulder1 right_shoulder2",
    "left_shoulder1 left_shoulder2",
)

ROBOTS: dict[str, Robot] = {
    "ant": Robot(
        file="ant.xml",
        joints=_joints(
            "hip1 ankle1 hip2 ankle2 hip3 ankle3 hip4 ankle4",
            motor=(2, 3, 4, 5, 6, 7, 0, 1),
            bodies=((1, 2), (2, 3, 4), (1, 5), (5, 6, 7), (1, 8), (8, 9, 10), (1, 11), (11, 12, 13)),
        ),
        edges=_groups("ankle1 hip1 | ankle2 hip2 | ankle3 hip3 | ankle4 hip4 | hip1 hip2 hip3 hip4"),
        splits={
            "2x4": _groups("hip1 ankle1 hip2 ankle2 | hip3 ankle3 hip4 ankle4"),
            "2x4d": _groups("hip1 ankle1 hip4 ankle4 | hip2 ankle2 hip3 ankle3"),
            "4x2": _groups("hip1 ankle1 | hip2 ankle2 | hip3 ankle3 | hip4 ankle4"),
        },
        pay=Pay(control=0.5, healthy=1.0, contact=5e-4, force=1.0, height=(0.2, 1.0)),
        noise=0.1,
        normal=True,
        hidden=2,
        trunk=FREE,
        blocks=("cfrc_ext",),
        place="body",
    ),
    "halfcheetah": Robot(
        file="half_cheetah.xml",
        joints=_joints("bthigh bshin bfoot fthigh fshin ffoot"),
        edges=_chain("bfoot bshin bthigh fthigh fshin ffoot"),
        splits={
            "2x3": _groups("bthigh bshin bfoot | fthigh fshin ffoot"),
            "6x1": _groups("bthigh | bshin | bfoot | fthigh | fshin | ffoot"),
        },
        pay=Pay(control=0.1),
        noise=0.1,
        normal=True,
    ),
    "hopper": Robot(
        file="hopper.xml",
        joints=_joints(_LEGS[0]),
        edges=_chain(_LEGS[0]),
        splits={"3x1": _groups("thigh_joint | leg_joint | foot_joint")},
        pay=Pay(control=1e-3, healthy=1.0, height=(0.7, INF), angle=(-0.2, 0.2), bound=100.0),
        noise=5e-3,
        frame_skip=4,
        clip=10.0,
    ),
    "humanoid": Robot(
        file="humanoid.xml",
        joints=_joints(
            # The first two are named after their motors, which come in the other order than their positions.
            f"abdomen_y abdomen_z abdomen_x {_RIGHT_HIP.replace('y right_hip_z', 'z right_hip_y')} right_knee "
            f"{_LEFT_HIP.replace('y left_hip_z', 'z left_hip_y')} left_knee {_RIGHT_SHOULDER} right_elbow "
            f"{_LEFT_SHOULDER} left_elbow",
            bodies=(
                *[(1, 2, 3)] * 2, (3, 4, 7), *[(4, 5)] * 3, (5, 6), *[(7, 8)] * 3, (8, 9),
                *[(1, 10, 11)] * 2, (11,), *[(1, 12, 13)] * 2, (13,),
            ),
        ),
        edges=_groups(
            f"{_ABDOMEN} | {_RIGHT_HIP} right_knee | {_LEFT_HIP} left_knee | {_LEFT_SHOULDER} left_elbow | "
            f"{_RIGHT_SHOULDER} right_elbow | {_LEFT_SHOULDER} {_ABDOMEN} | {_RIGHT_SHOULDER} {_ABDOMEN} | "
            f"{_ABDOMEN} {_LEFT_HIP} | {_ABDOMEN} {_RIGHT_HIP}"
        ),
        splits={
            "9|8": _groups(
                f"{_ABDOMEN} {_RIGHT_SHOULDER} right_elbow {_LEFT_SHOULDER} left_elbow | "
                f"{_RIGHT_HIP} right_knee {_LEFT_HIP} left_knee"
            )
        },
        pay=Pay(control=0.1, healthy=5.0, speed=1.25, contact=5e-7, most_contact=10.0, height=(1.0, 2.0)),
        noise=1e-2,
        hidden=2,
        trunk=FREE,
        blocks=("cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
        place="mass",
        sees_all=True,
    ),
    "swimmer": Robot(
        file="swimmer.xml",
        joints=_joints("rot2 rot3", velocities=((0, 3), (1, 4))),
        edges=_chain("rot2 rot3"),
        splits={"2x1": _groups("rot2 | rot3")},
        pay=Pay(control=1e-4),
        noise=0.1,
        frame_skip=4,
        hidden=2,
        trunk=((2,), (2,)),
    ),
    "walker2d": Robot(
        file="walker2d_v5.xml",
        joints=_joints(" ".join(_LEGS)),
        edges=(*_chain(_LEGS[0]), *_chain(_LEGS[1]), ("thigh_joint", "thigh_left_joint")),
        splits={
            "2x3": _groups("foot_joint leg_joint thigh_joint | foot_left_joint leg_left_joint thigh_left_joint"),
        },
        pay=Pay(control=1e-3, healthy=1.0, height=(0.8, 2.0), angle=(-1.0, 1.0)),
        noise=5e-3,
        frame_skip=4,
        clip=10.0,
        unclipped=True,
    ),
}  # fmt: skip
"""Robots of one description each, by Gymnasium's names."""


def _ants(n_agents: int, n_segments: int) -> Robot:
    """A train of ants of two legs each. MaMuJoCo mixes up its joints and motors; here they are set right."""
    names: list[str] = []
    bodies: list[tuple[int, ...]] = []
    edges: list[tuple[str, ...]] = []
    for i in range(n_agents * n_segments):
        hips = f"hip1_{i} hip2_{i}"
        names.append(f"hip1_{i} ankle1_{i} hip2_{i} ankle2_{i}")
        bodies += [tuple(1 + 7 * i + body for body in part) for part in ((0, 1), (1, 2, 3), (0, 4), (4, 5, 6))]
        before = f"hip1_{i - 1} hip2_{i - 1}" if i else ""
        edges += _groups(f"ankle1_{i} hip1_{i} | ankle2_{i} hip2_{i} | {before} {hips}")
    joints = _joints(" ".join(names), bodies=bodies)
    return ROBOTS["ant"]._replace(
        file=lambda: generated("many_segment_ant", len(names)),
        joints=joints,
        edges=tuple(edges),
        splits={f"{n_agents}x{n_segments}": _dealt(joints, n_agents)},
    )


def _swimmers(n_agents: int, n_segments: int) -> Robot:
    """A swimmer of many segments. As in MaMuJoCo nobody sees the head."""
    names = " ".join(f"rot{i}" for i in range(n_agents * n_segments))
    joints = _joints(names)
    return ROBOTS["swimmer"]._replace(
        file=lambda: generated("many_segment_swimmer", len(joints)),
        joints=joints,
        edges=_chain(names),
        splits={f"{n_agents}x{n_segments}": _dealt(joints, n_agents)},
        trunk=((), ()),
    )


def _dealt(joints: Any, n_agents: int) -> tuple[tuple[str, ...], ...]:
    """The joints' names, dealt out in their order."""
    each = len(joints) // n_agents
    return tuple(tuple(joint.name for joint in joints[i : i + each]) for i in range(0, len(joints), each))


FAMILIES: Mapping[str, Callable[[int, int], Robot]] = MappingProxyType(
    {"manysegmentant": _ants, "manysegmentswimmer": _swimmers}
)
"""Robots of as many segments as the split says: agents x segments of each."""


def generated(name: str, n_segments: int) -> str:
    """Returns the description of a robot of many segments, which the package gymnasium-robotics writes.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with sealed():
            maker = importlib.import_module(f"gymnasium_robotics.envs.multiagent_mujoco.{name}")
    except ImportError as error:
        raise ConfigError(
            f"robots of many segments need the package gymnasium-robotics ({error}): pip install 'lorasa-jax[mujoco]'"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "robot.xml")
        maker.gen_asset(n_segs=n_segments, asset_path=str(path))
        return path.read_text()


def robot_of(task: str) -> tuple[str, Robot, str]:
    """Returns name, robot and split of a task.

    Raises:
        ConfigError: there is no such robot, or its split says nothing about its segments.
    """
    name, _, split = task.partition("_")
    known = [*ROBOTS, *FAMILIES]
    require(
        name in known,
        f"unknown robot {name!r} in {task!r}{nearest(name, known)}; a task is a robot and a split, "
        f"such as halfcheetah_2x3; robots: {', '.join(known)}",
    )
    if name in ROBOTS:
        return name, ROBOTS[name], split
    size = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", split)
    counts = [int(number) for number in size.groups()] if size else [0, 0]
    require(
        2 <= counts[0] * counts[1] <= 99,
        f"{name} cannot be split into {split!r}; write agents x segments of each, from 2 to 99 segments, such as "
        f"{name}_2x3",
    )
    return name, FAMILIES[name](*counts), split
