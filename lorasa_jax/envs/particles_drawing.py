"""Pictures of particle games: agents as discs with a trail, landmarks as rings in the colour of their agents."""

from __future__ import annotations

from colorsys import hls_to_rgb
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from lorasa_jax.envs.drawing import SHARP, write

WIDTH, HEADER = 420, 34
"""Pixels of a picture: the side of its square arena, and the height of the band above."""
AGENT, RING, ITEM = 6, 12, 5
"""Radii, in pixels."""
PAPER, GROUND, BORDER = "#0e1320", "#151c2d", "#3c4965"
TEXT, FAINT, ITEMS = "#e8ecf4", "#8b97ae", "#e8ecf4"


def draw_particles(states: Any, rules: Any, title: str) -> list[Image.Image]:
    """Returns one picture per state of an episode.

    Args:
        states: the states of one episode as numpy arrays, [T, ...].
        rules: the rules of the game (`lorasa_jax.envs.particles.Rules`).
        title: what to write at the top.
    """
    kinds = rules.roles or tuple(range(rules.n_agents))
    colours = palette(max(kinds) + 1)
    reach = max(1.1, 1.05 * float(np.abs(states.place).max()))

    def pixels(position: Float[np.ndarray, "*K 2"]) -> Float[np.ndarray, "*K 2"]:
        """The pixels of a position on the large picture, with y upwards."""
        middle = np.array([WIDTH / 2, HEADER + WIDTH / 2])
        return (middle + position * np.array([1, -1]) * WIDTH / (2 * reach)) * SHARP

    return [_frame(t, states, rules, [colours[k] for k in kinds], pixels, title) for t in range(len(states.time))]


def palette(count: int) -> list[str]:
    """Returns colours with evenly spaced hues."""
    wheel = [hls_to_rgb((0.58 + k / count) % 1, 0.66, 0.8) for k in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in wheel]


def _frame(t: int, states: Any, rules: Any, colours: list[str], pixels: Any, title: str) -> Image.Image:
    """Returns the picture of state `t`."""
    picture = Image.new("RGB", (WIDTH * SHARP, (HEADER + WIDTH) * SHARP), GROUND)
    pen = ImageDraw.Draw(picture, "RGBA")
    (left, bottom), (right, top) = pixels(np.array([[-1.0, -1.0], [1.0, 1.0]]))
    pen.rectangle((left, top, right, bottom), outline=BORDER, width=SHARP)
    _landmarks(pen, pixels(states.landmark[t]), states.left[t], rules, colours)
    trail = pixels(states.place[max(t - 5, 0) : t + 1])
    for i, colour in enumerate(colours):
        pen.line([tuple(point) for point in trail[:, i]], fill=colour + "70", width=2 * SHARP)
    for i, colour in enumerate(colours):
        _disc(pen, trail[-1, i], AGENT, fill=colour, outline=PAPER)
    pen.rectangle((0, 0, picture.width, HEADER * SHARP), fill=PAPER)
    write(pen, 12, HEADER / 2, title, 15, TEXT, "lm")
    eaten = f"eaten {(~states.left[t]).sum()}/{rules.n_landmarks}   " if rules.goal is None else ""
    write(pen, WIDTH - 12, HEADER / 2, f"{eaten}step {states.time[t]}", 12, FAINT, "rm")
    return picture.reduce(SHARP)


def _landmarks(
    pen: ImageDraw.ImageDraw, places: Float[np.ndarray, "L 2"], left: Any, rules: Any, colours: list[str]
) -> None:
    """Draws landmarks as rings, in the agents' colour if only one kind goes there, and items as dots."""
    for j, place in enumerate(places):
        if rules.goal is None:
            if left[j]:
                _disc(pen, place, ITEM, fill=ITEMS)
            continue
        owners = {colour for colour, goal in zip(colours, rules.goal, strict=True) if goal == j}
        ring = owners.pop() if len(owners) == 1 else TEXT if owners else BORDER
        _disc(pen, place, RING, outline=ring)
        _disc(pen, place, 2, fill=ring)


def _disc(pen: ImageDraw.ImageDraw, place: Float[np.ndarray, " 2"], radius: float, **paint: str) -> None:
    """Draws a circle, filled or not."""
    r = radius * SHARP
    pen.ellipse((*(place - r), *(place + r)), width=2 * SHARP, **paint)
