"""Decides when to switch: when the team is competent and still improves, but more slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

POINTS = 5
"""Number of evaluations per slope."""
EARLIEST, LATEST = 0.1, 0.6
"""Shares of the budget before which a run never switches, and from which on it must switch."""
COMPETENT = 0.5
"""Share of games that a team must win, if games can be won."""


class Evaluation(NamedTuple):
    """A greedy evaluation in the first phase.

    Attributes:
        step: environment steps so far.
        returns: mean return of every row (seed), [K].
        win_rates: win rate of every row, [K].
    """

    step: int
    returns: tuple[float, ...]
    win_rates: tuple[float, ...]


def slope(steps: Sequence[int], curve: Sequence[float]) -> float:
    """Returns the least-squares slope of a curve, per step."""
    return float(np.polyfit(np.asarray(steps, float), np.asarray(curve, float), 1)[0])


def first_switch(
    curve: Sequence[Evaluation], k: int, random_play: float, total_steps: int, winnable: bool
) -> int | None:
    """Returns the first evaluated step at which to switch, or None. Arguments as in `should_switch`."""
    known = range(1, len(curve) + 1)
    return next(
        (curve[n - 1].step for n in known if should_switch(curve[:n], k, random_play, total_steps, winnable)), None
    )


def should_switch(curve: Sequence[Evaluation], k: int, random_play: float, total_steps: int, winnable: bool) -> bool:
    """Returns whether to switch now, from the evaluations so far.

    The result is True if all of these hold: a tenth of the budget is spent; the last return exceeds random play; at
    least half of the games are won (if they can be won); the slope of the last five returns is positive, but less than
    half of the largest slope so far. From 60 % of the budget on it is always True.

    Args:
        curve: evaluations in order, up to now.
        k: index of the row.
        random_play: the row's return with all weights zero.
        total_steps: budget of the whole run.
        winnable: whether games can be won.
    """
    now = curve[-1]
    if now.step >= LATEST * total_steps:
        return True
    if now.step < EARLIEST * total_steps or now.returns[k] <= random_play or len(curve) < POINTS:
        return False
    if winnable and now.win_rates[k] < COMPETENT:  # do not freeze on the plateau before the first wins
        return False
    steps, returns = [point.step for point in curve], [point.returns[k] for point in curve]
    slopes = [slope(steps[i - POINTS : i], returns[i - POINTS : i]) for i in range(POINTS, len(curve) + 1)]
    return 0 < slopes[-1] < 0.5 * max(slopes)
