"""Tables of the robots of multi-agent MuJoCo, their agents and observations, without physics.

Robots, rewards and failures are those of Gymnasium's environments of version 5 (Towers et al., "Gymnasium", 2024).
Agents and observations are those of MaMuJoCo in Gymnasium-Robotics 1.4 (after Peng et al., "FACMAC", 2021), so returns
can be compared with published ones.
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
    """A joint with a motor.

    Attributes:
        name: name in MaMuJoCo. Joints at the same distance from an agent are observed in the order of their names.
        slot: index among the robot's positions, and among its velocities; negative: from the end.
        motor: index in the robot's action.
        bodies: bodies whose `Robot.blocks` the joint's agent observes.
        velocities: velocities that the joint's agent observes, if not only the joint's own.
    """

    name: str
    slot: int
    motor: int
    bodies: tuple[int, ...] = ()
    velocities: tuple[int, ...] | None = None


class Pay(NamedTuple):
    """The reward of a robot, and its failure condition.

    The reward is `speed * v + healthy - control * |action|^2 - min(contact * |f|^2, most_contact)`, with v the
    velocity along the track and f the contact forces on all bodies, each clipped to +-`force`. `healthy` is paid while
    the height and the angle of the trunk, and all other numbers of its state, are within their ranges. Outside these
    ranges the robot has failed.

    Attributes:
        control: cost of actions.
        healthy: reward of every step without a failure.
        speed: reward per metre per second.
        contact: cost of contact forces.
        most_contact: maximum cost of contact forces.
        force: clip of contact forces, in rewards and observations.
        height: range of the trunk's height.
        angle: range of its angle (planar robots).
        bound: the largest absolute value of any other number of the state.
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
    """A robot and its splits among agents.

    Attributes:
        file: its description in MuJoCo's format, in the package `gymnasium`; or a function that returns it.
        joints: joints with motors.
        edges: groups of joints that are neighbours of each other.
        splits: the named splits: the joints of every agent, in the order of its action.
        pay: reward and failure.
        noise: size of the noise of start states.
        normal: the noise of velocities is normal, not uniform.
        frame_skip: steps of the physics in one step of the environment.
        hidden: number of leading positions (the distance travelled) that are not observed.
        trunk: positions and velocities that every agent observes.
        clip: clip of observed velocities.
        unclipped: agents observe unclipped velocities; only the whole observation has them clipped.
        blocks: blocks of the observation after positions and velocities, in order.
        place: the point whose distance is measured: the first position, the first body, or the centre of mass.
        sees_all: agents see the whole observation by default, as for the humanoid of LoRASA's authors.
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
    """The last joints of a robot, in the order of their positions; `more` has other fields, one value per joint."""
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
    """Edges between each word and the next one."""
    words = text.split()
    return tuple(pairwise(words))


FREE = (2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5)
"""Positions and velocities of a free trunk, without its horizontal position."""

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
            # The first two are named after their motors, whose order is the reverse of their positions.
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
"""Robots with a fixed description, by Gymnasium's names."""


def _ants(n_agents: int, n_segments: int) -> Robot:
    """A chain of ants with two legs each. MaMuJoCo mixes up its joints and motors; here this is corrected."""
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
    """A swimmer of many segments. As in MaMuJoCo, no agent sees the head."""
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
    """The joints' names, assigned in their order."""
    each = len(joints) // n_agents
    return tuple(tuple(joint.name for joint in joints[i : i + each]) for i in range(0, len(joints), each))


FAMILIES: Mapping[str, Callable[[int, int], Robot]] = MappingProxyType(
    {"manysegmentant": _ants, "manysegmentswimmer": _swimmers}
)
"""Robots whose split sets the number of segments: agents x segments per agent."""


def generated(name: str, n_segments: int) -> str:
    """Returns the description of a robot of many segments from the package gymnasium-robotics.

    Raises:
        ConfigError: the package is not installed.
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
        ConfigError: there is no such robot, or its split does not set the number of segments.
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
