"""Pictures of particle games: agents as discs, landmarks as rings. Those of this library's games have trails."""

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
MPE_REACH = 2.0
"""Half the width of the largest view of a particle world, as in JaxMARL's own pictures. Agents may leave it."""
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
    pixels = _pixels_of(states.place)
    return [_frame(t, states, rules, [colours[k] for k in kinds], pixels, title) for t in range(len(states.time))]


def draw_mpe(places: Float[np.ndarray, "T K 2"], game: Any, title: str) -> list[Image.Image]:
    """Returns one picture per state of an episode of JaxMARL's particle worlds.

    Agents are discs, landmarks rings, in the colours and sizes of the game. Its dark landmarks are light here.

    Args:
        places: positions of agents, then of landmarks.
        game: an instance of `jaxmarl.environments.mpe.SimpleMPE`.
        title: what to write at the top.
    """
    n, pixels = game.num_agents, _pixels_of(places, MPE_REACH)
    sizes = np.asarray(game.rad) * (pixels(np.array([1.0, 0.0])) - pixels(np.zeros(2)))[0] / SHARP
    colours: list[Any] = [tuple(map(int, colour)) for colour in game.colour]
    colours[n:] = [FAINT if max(colour) < 100 else colour for colour in colours[n:]]
    frames = []
    for t in range(len(places)):
        picture, pen = _ground(pixels)
        for k in [*range(n, len(sizes)), *range(n)]:  # agents above landmarks
            paint = {"fill": colours[k], "outline": PAPER} if k < n else {"outline": colours[k]}
            _disc(pen, pixels(places[t, k]), sizes[k], **paint)
        frames.append(_with_header(picture, pen, title, f"step {t}"))
    return frames


def _pixels_of(places: Float[np.ndarray, "T K 2"], most: float = np.inf) -> Any:
    """Returns the function from positions to pixels of the large picture, with y upwards.

    The picture shows all places, unless they are farther than `most` from the middle.
    """
    reach = min(max(1.1, 1.05 * float(np.abs(places).max())), most)

    def pixels(position: Float[np.ndarray, "*K 2"]) -> Float[np.ndarray, "*K 2"]:
        middle = np.array([WIDTH / 2, HEADER + WIDTH / 2])
        return (middle + position * np.array([1, -1]) * WIDTH / (2 * reach)) * SHARP

    return pixels


def palette(count: int) -> list[str]:
    """Returns colours with evenly spaced hues."""
    wheel = [hls_to_rgb((0.58 + k / count) % 1, 0.66, 0.8) for k in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in wheel]


def _frame(t: int, states: Any, rules: Any, colours: list[str], pixels: Any, title: str) -> Image.Image:
    """Returns the picture of state `t`."""
    picture, pen = _ground(pixels)
    _landmarks(pen, pixels(states.landmark[t]), states.left[t], rules, colours)
    trail = pixels(states.place[max(t - 5, 0) : t + 1])
    for i, colour in enumerate(colours):
        pen.line([tuple(point) for point in trail[:, i]], fill=colour + "70", width=2 * SHARP)
    for i, colour in enumerate(colours):
        _disc(pen, trail[-1, i], AGENT, fill=colour, outline=PAPER)
    eaten = f"eaten {(~states.left[t]).sum()}/{rules.n_landmarks}   " if rules.goal is None else ""
    return _with_header(picture, pen, title, f"{eaten}step {states.time[t]}")


def _ground(pixels: Any) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns an empty large picture with the border of [-1, 1]^2, and its pen."""
    picture = Image.new("RGB", (WIDTH * SHARP, (HEADER + WIDTH) * SHARP), GROUND)
    pen = ImageDraw.Draw(picture, "RGBA")
    (left, bottom), (right, top) = pixels(np.array([[-1.0, -1.0], [1.0, 1.0]]))
    pen.rectangle((left, top, right, bottom), outline=BORDER, width=SHARP)
    return picture, pen


def _with_header(picture: Image.Image, pen: ImageDraw.ImageDraw, title: str, status: str) -> Image.Image:
    """Returns the reduced picture with a title on the left and a status on the right."""
    pen.rectangle((0, 0, picture.width, HEADER * SHARP), fill=PAPER)
    write(pen, 12, HEADER / 2, title, 15, TEXT, "lm")
    write(pen, WIDTH - 12, HEADER / 2, status, 12, FAINT, "rm")
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


def _disc(pen: ImageDraw.ImageDraw, place: Float[np.ndarray, " 2"], radius: float, **paint: Any) -> None:
    """Draws a circle, filled or not."""
    r = radius * SHARP
    pen.ellipse((*(place - r), *(place + r)), width=2 * SHARP, **paint)
