"""Pictures of SMAX battles."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw

from lorasa_jax.envs.drawing import SHARP, write

WIDTH, HEADER, ARENA, FOOTER = 420, 34, 356, 30
"""Pixels of a picture: its width, and the heights of its three bands."""

PAPER, BEYOND, GROUND, GRID, BORDER = "#0e1320", "#0a0e18", "#151c2d", "#1c2539", "#3c4965"
TEXT, FAINT, INK = "#e8ecf4", "#8b97ae", "#0a0e18"
TEAMS = ("ours", "#58a6ff"), ("enemy", "#ff8552")
RESULTS = {(True, False): "won", (False, True): "lost", (False, False): "draw", (True, True): "time is up"}


class Shots(NamedTuple):
    """Attacks in each frame, [T, U]: T states of a battle, U units.

    Attributes:
        target: the attacked unit; undefined if neither mask is set.
        fired: the unit fired in the half second before this state.
        aimed: the unit did not fire, but aims at a living target within range.
    """

    target: Int[np.ndarray, "T U"]
    fired: Bool[np.ndarray, "T U"]
    aimed: Bool[np.ndarray, "T U"]


class View(NamedTuple):
    """The shown part of the map: pixels per unit of length, and its centre."""

    scale: float
    centre: Float[np.ndarray, " 2"]

    def __call__(self, position: Float[np.ndarray, "*K 2"]) -> Float[np.ndarray, "*K 2"]:
        """Returns the pixels of a place on the large picture, with y upwards."""
        middle = np.array([WIDTH / 2, HEADER + ARENA / 2]) * SHARP
        return middle + (position - self.centre) * self.scale * np.array([1, -1])


def draw_battle(units: Any, game: Any, title: str) -> list[Image.Image]:
    """Returns one picture per state of a battle.

    Args:
        units: SMAX states of one episode as numpy arrays, [T, ...].
        game: the SMAX environment, for its tables.
        title: what to write at the top.
    """
    shots = find_shots(units, game)
    view = _fit(units)
    stage = _stage(view, units, game, title)
    return [_frame(stage.copy(), t, units, shots, view, game) for t in range(len(units.step))]


def find_shots(units: Any, game: Any) -> Shots:
    """Returns the attacks, [T, U].

    Shots are found from the cooldown, which falls by half a second per step unless the unit fires.
    For the first state there is no previous cooldown, so every attack in range counts as a shot.
    """
    attack = units.prev_attack_actions
    n_allies, unit = game.num_allies, np.arange(units.unit_alive.shape[1])
    choice = attack - game.num_movement_actions
    # The enemy's targets, our units, are numbered from the last to the first.
    target = np.where(unit < n_allies, n_allies + choice, n_allies - 1 - choice)
    attacks = choice >= 0
    target = np.where(attacks, target, unit)

    there = np.take_along_axis(units.unit_positions, target[..., None], axis=1)
    distance = np.linalg.norm(there - units.unit_positions, axis=-1)
    in_range = distance < np.asarray(game.unit_type_attack_ranges)[units.unit_types]
    alive = units.unit_alive & np.take_along_axis(units.unit_alive, target, axis=1)
    aimed = attacks & in_range & alive

    fall = -np.diff(units.unit_weapon_cooldowns, axis=0)
    went_off = fall < game.world_steps_per_env_step * game.time_per_step / 2
    fired = attacks & np.concatenate([aimed[:1], went_off])
    return Shots(target, fired, aimed & ~fired)


def _fit(units: Any) -> View:
    """Returns the closest view that shows every unit during the whole battle."""
    places = units.unit_positions.reshape(-1, 2)
    margin = 1.8
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin
    span = np.maximum(high - low, 10.0)
    return View(SHARP * float(min(WIDTH / span[0], ARENA / span[1])), (low + high) / 2)


def _stage(view: View, units: Any, game: Any, title: str) -> Image.Image:
    """Returns the constant part of all pictures: the ground, the title and the legend."""
    picture = Image.new("RGB", (WIDTH * SHARP, (HEADER + ARENA + FOOTER) * SHARP), BEYOND)
    pen = ImageDraw.Draw(picture)
    size = np.array([game.map_width, game.map_height], float)
    (left, bottom), (right, top) = view(np.zeros(2)), view(size)
    pen.rectangle((left, top, right, bottom), fill=GROUND)
    for k in range(0, int(size.max()) + 1, 2):
        x, y = view(np.array([k, k], float))
        if k < size[0]:
            pen.line((x, top, x, bottom), fill=GRID, width=SHARP)
        if k < size[1]:
            pen.line((left, y, right, y), fill=GRID, width=SHARP)
    pen.rectangle((left, top, right, bottom), outline=BORDER, width=2 * SHARP)

    bottom_band = (HEADER + ARENA) * SHARP
    pen.rectangle((0, 0, picture.width, HEADER * SHARP), fill=PAPER)
    pen.rectangle((0, bottom_band, picture.width, picture.height), fill=PAPER)
    write(pen, 12, HEADER / 2, title, 15, TEXT, "lm")
    x, middle = 12.0, HEADER + ARENA + FOOTER / 2
    for kind in np.unique(units.unit_types):
        letter, name = game.unit_type_shorthands[kind], game.unit_type_names[kind]
        x = write(pen, x, middle, letter, 12, TEXT, "lm") + 4
        x = write(pen, x, middle, name, 11, FAINT, "lm") + 11
    return picture


def _frame(picture: Image.Image, t: int, units: Any, shots: Shots, view: View, game: Any) -> Image.Image:
    """Returns the picture of state `t`, drawn over `picture`."""
    pen = ImageDraw.Draw(picture, "RGBA")
    place = view(units.unit_positions[t])
    team = units.unit_teams[t].astype(int)
    colour = [TEAMS[k][1] for k in team]
    alive, kind = units.unit_alive[t], units.unit_types[t]
    # Units are drawn enlarged, so that letters fit.
    radius = 1.3 * view.scale * np.asarray(game.unit_type_radiuses, float)[kind]
    health = units.unit_health[t] / np.asarray(game.unit_type_health, float)[kind]
    hurt = units.unit_health[t] < units.unit_health[max(t - 1, 0)]

    for i in np.flatnonzero(~alive):
        arm = 0.45 * radius[i] * np.array([[-1, -1, 1, 1], [-1, 1, 1, -1]])
        for stroke in arm:
            pen.line(tuple(np.tile(place[i], 2) + stroke), fill=colour[i] + "70", width=2 * SHARP)
    for i in np.flatnonzero(shots.aimed[t]):
        pen.line((*place[i], *place[shots.target[t, i]]), fill=colour[i] + "48", width=SHARP)
    for i in np.flatnonzero(alive):
        _unit(pen, place[i], radius[i], health[i], colour[i], game.unit_type_shorthands[kind[i]], bool(hurt[i]))
    # Shots are drawn over units, because in close combat there is no space between them.
    reach = np.where(alive, radius, 0.0)
    for i in np.flatnonzero(shots.fired[t]):
        j = shots.target[t, i]
        _shot(pen, place[i], place[j], reach[i], reach[j], colour[i])

    _header(pen, t, units, game)
    return picture.reduce(SHARP)


def _unit(
    pen: ImageDraw.ImageDraw,
    place: Float[np.ndarray, " 2"],
    radius: float,
    health: float,
    colour: str,
    letter: str,
    hurt: bool,
) -> None:
    """Draws a living unit: its letter on a disc, and its health as the length of a ring."""
    if hurt:
        _disc(pen, place, 1.35 * radius, fill="#ffffff38")
    _disc(pen, place, radius, fill=INK)
    _disc(pen, place, 0.72 * radius, fill=colour)
    edge = (*(place - radius), *(place + radius))
    pen.arc(edge, 0, 360, fill=colour + "40", width=round(0.2 * radius))
    pen.arc(edge, -90, -90 + 360 * float(health), fill=colour, width=round(0.2 * radius))
    x, y = place / SHARP
    write(pen, x, y, letter, 1.1 * radius / SHARP, INK, "mm")


def _shot(
    pen: ImageDraw.ImageDraw,
    source: Float[np.ndarray, " 2"],
    target: Float[np.ndarray, " 2"],
    source_radius: float,
    target_radius: float,
    colour: str,
) -> None:
    """Draws a shot from edge to edge, so letters stay legible, and a spark at its target."""
    distance = max(float(np.hypot(*(target - source))), 1e-6)
    # If the discs overlap, only the spark is drawn, between the two.
    begin = min(source_radius, distance * source_radius / max(source_radius + target_radius, 1e-6))
    end = max(distance - target_radius, begin)
    start, hit = (source + (target - source) * length / distance for length in (begin, end))
    pen.line((*start, *hit), fill=colour + "70", width=4 * SHARP)
    pen.line((*start, *hit), fill="#ffffffd0", width=round(1.3 * SHARP))
    _disc(pen, hit, 2.4 * SHARP, fill="#fff3c4")


def _header(pen: ImageDraw.ImageDraw, t: int, units: Any, game: Any) -> None:
    """Writes the living units of both sides and the step; at the end also the result."""
    middle = HEADER / 2
    sides = units.unit_alive[t, : game.num_allies], units.unit_alive[t, game.num_allies :]
    x = 165.0
    for (name, colour), alive in zip(TEAMS, sides, strict=True):
        _disc(pen, np.array([x, middle]) * SHARP, 5 * SHARP, fill=colour)
        x = write(pen, x + 10, middle, f"{name} {alive.sum()}/{alive.size}", 12, TEXT, "lm") + 18
    write(pen, WIDTH - 12, middle, f"step {units.step[t]}", 12, FAINT, "rm")
    if units.done[t]:
        box = np.array([WIDTH / 2 - 62, HEADER + 14, WIDTH / 2 + 62, HEADER + 50]) * SHARP
        pen.rounded_rectangle(tuple(box), 18 * SHARP, fill=PAPER + "e8", outline=BORDER, width=SHARP)
        result = RESULTS[bool(sides[0].any()), bool(sides[1].any())]
        write(pen, WIDTH / 2, HEADER + 32, result, 19, TEXT, "mm")


def _disc(pen: ImageDraw.ImageDraw, place: Float[np.ndarray, " 2"], radius: float, fill: str) -> None:
    """Draws a filled circle."""
    pen.ellipse((*(place - radius), *(place + radius)), fill=fill)
