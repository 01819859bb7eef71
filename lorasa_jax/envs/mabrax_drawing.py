"""Pictures of robots from the side and slightly above, with each limb in the colour of its agent.

MuJoCo places the parts and Pillow draws them. This needs no display and no graphics driver, and
pictures are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageColor, ImageDraw

from lorasa_jax.envs.drawing import SHARP, write

WIDTH, HEADER, ARENA, FOOTER = 420, 34, 236, 30
"""Pixels of a picture: its width, and the heights of its three bands."""
FPS, LONGEST = 20, 300
"""Pictures per second of the robot's time, and the maximum number of pictures: 15 seconds."""
METRES = 4.2
"""Width of the view in metres."""
PITCH = 0.30
"""Angle of the view from above, in radians."""
LANE = 1.5
"""Half the width of the track, in metres."""

SPHERE, CAPSULE = int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)

PAPER, SKY, FLOOR, TILE, SHADE, EDGE = "#0e1320", "#151c2d", "#232d44", "#29344e", "#161d2f", "#0a0e18"
TEXT, FAINT, BODY = "#e8ecf4", "#8b97ae", "#a9b4c8"
AGENTS = (
    "#58a6ff", "#ff8552", "#6fd08c", "#e8c547", "#c58af9", "#ff6f91", "#4fd1c5", "#d08770", "#9db4ff",
)  # fmt: skip


class Part(NamedTuple):
    """A sphere or capsule of the robot, in world coordinates.

    Attributes:
        ends: the centres of its two caps, [2, 3]; equal for a sphere.
        radius: its radius, in metres.
        colour: colour of its agent.
    """

    ends: Float[np.ndarray, "2 3"]
    radius: float
    colour: str


class View(NamedTuple):
    """An orthographic view that follows the trunk; its centre in metres along and across the track."""

    x: float
    y: float

    def __call__(self, places: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 2"]:
        """Returns the pixels of places on the large picture."""
        right = places[:, 0] - self.x
        up = places[:, 2] * math.cos(PITCH) + (places[:, 1] - self.y) * math.sin(PITCH)
        scale = WIDTH * SHARP / METRES
        base = (HEADER + ARENA) * SHARP - 0.55 * scale
        return np.stack([WIDTH * SHARP / 2 + right * scale, base - up * scale], axis=-1)


def draw_robot(
    positions: Float[np.ndarray, "T Q"], model: Any, movers: Sequence[int | None], dt: float, title: str
) -> list[Image.Image]:
    """Returns pictures of an episode, `FPS` per second of the robot's time, `LONGEST` at most.

    Args:
        positions: the robot's joint positions in each state of the episode.
        model: MuJoCo's model of the robot.
        movers: the agent that moves each link, or None.
        dt: seconds between two states.
        title: what to write at the top.
    """
    stride = max(1, round(1 / (FPS * dt)))
    times = range(0, len(positions), stride)[:LONGEST]
    return [_frame(_parts(model, positions[t], movers), t, movers, title) for t in times]


def _colour(agent: int | None) -> str:
    return BODY if agent is None else AGENTS[agent % len(AGENTS)]


def _parts(model: Any, position: Float[np.ndarray, " Q"], movers: Sequence[int | None]) -> list[Part]:
    """Returns the parts of the robot in one pose, the trunk's first."""
    data = mujoco.MjData(model)
    data.qpos = position
    mujoco.mj_kinematics(model, data)
    parts = []
    for i in range(model.ngeom):
        kind, body = model.geom_type[i], model.geom_bodyid[i]
        if kind not in (SPHERE, CAPSULE):
            continue  # the floor
        half = model.geom_size[i, 1] if kind == CAPSULE else 0.0
        axis = data.geom_xmat[i].reshape(3, 3)[:, 2] * half
        centre = data.geom_xpos[i]
        parts.append(
            Part(np.stack([centre - axis, centre + axis]), float(model.geom_size[i, 0]), _colour(movers[body - 1]))
        )
    return parts


def _frame(parts: list[Part], t: int, movers: Sequence[int | None], title: str) -> Image.Image:
    """Returns the picture of one pose, `t` steps into the episode."""
    picture = Image.new("RGB", (WIDTH * SHARP, (HEADER + ARENA + FOOTER) * SHARP), SKY)
    pen = ImageDraw.Draw(picture)
    centre = parts[0].ends.mean(axis=0)
    view = View(float(centre[0]), float(centre[1]))
    _floor(pen, view)
    for part in parts:
        on_floor = part.ends * np.array([1.0, 1.0, 0.0])
        _capsule(pen, view(on_floor), part.radius, SHADE, flat=math.sin(PITCH))
    # Far parts first.
    for part in sorted(parts, key=lambda part: -part.ends[:, 1].mean()):
        place = view(part.ends)
        _capsule(pen, place, part.radius + 0.012, EDGE)
        _capsule(pen, place, part.radius, part.colour)
        light = np.array([0.0, -0.42 * part.radius * WIDTH * SHARP / METRES])
        _capsule(pen, place + light, 0.3 * part.radius, _lighter(part.colour))
    _captions(pen, t, centre[0], movers, title)
    return picture.reduce(SHARP)


def _floor(pen: ImageDraw.ImageDraw, view: View) -> None:
    """Draws the track as tiles of half a metre, with a post and the distance at every metre."""
    left, near, far = view.x - METRES / 2, view.y - LANE, view.y + LANE
    for k in range(math.floor(2 * left), math.ceil(2 * (left + METRES))):
        for row in range(math.floor(2 * near), math.ceil(2 * far)):
            y = np.clip([row / 2, row / 2 + 0.5], near, far)
            corners = [[k / 2, y[0], 0], [k / 2 + 0.5, y[0], 0], [k / 2 + 0.5, y[1], 0], [k / 2, y[1], 0]]
            pen.polygon([tuple(place) for place in view(np.array(corners))], fill=TILE if (k + row) % 2 else FLOOR)
        if k % 2 == 0:
            foot, top = view(np.array([[k / 2, far, 0.0], [k / 2, far, 0.12]]))
            pen.line((*foot, *top), fill=FAINT, width=SHARP)
            write(pen, top[0] / SHARP, top[1] / SHARP - 2, f"{k // 2}", 9, FAINT, "mb")


def _capsule(
    pen: ImageDraw.ImageDraw, place: Float[np.ndarray, "2 2"], radius: float, fill: str, flat: float = 1.0
) -> None:
    """Draws a thick line with round ends; `flat` compresses it vertically, for shadows on the floor."""
    width = radius * WIDTH * SHARP / METRES
    (ax, ay), (bx, by) = place
    for x, y in place:
        pen.ellipse((x - width, y - width * flat, x + width, y + width * flat), fill=fill)
    length = math.hypot(bx - ax, by - ay)
    if length > 0:
        across = width / length * np.array([ay - by, (bx - ax) * flat])
        pen.polygon(
            [tuple(place[0] + across), tuple(place[1] + across), tuple(place[1] - across), tuple(place[0] - across)],
            fill=fill,
        )


def _captions(pen: ImageDraw.ImageDraw, t: int, distance: float, movers: Sequence[int | None], title: str) -> None:
    """Writes the task, the distance and the step at the top, and the colours of agents below."""
    bottom = (HEADER + ARENA) * SHARP
    pen.rectangle((0, 0, WIDTH * SHARP, HEADER * SHARP), fill=PAPER)
    pen.rectangle((0, bottom, WIDTH * SHARP, bottom + FOOTER * SHARP), fill=PAPER)
    write(pen, 12, HEADER / 2, title, 15, TEXT, "lm")
    write(pen, WIDTH - 92, HEADER / 2, f"{distance:+.1f} m", 12, TEXT, "rm")
    write(pen, WIDTH - 12, HEADER / 2, f"step {t}", 12, FAINT, "rm")
    x, middle = 12.0, HEADER + ARENA + FOOTER / 2
    x = write(pen, x, middle, "agents", 11, FAINT, "lm") + 10
    for agent in sorted({agent for agent in movers if agent is not None}):
        pen.ellipse([c * SHARP for c in (x, middle - 5, x + 10, middle + 5)], fill=_colour(agent))
        x = write(pen, x + 14, middle, f"{agent}", 11, FAINT, "lm") + 9


@cache
def _lighter(colour: str) -> str:
    """Returns a colour halfway to white."""
    red, green, blue = ((value + 255) // 2 for value in ImageColor.getrgb(colour)[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"
