"""When to freeze the trunk: while it is competent and still improving, but no longer quickly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

POINTS = 5
"""Evaluations behind one slope."""
EARLIEST, LATEST = 0.1, 0.6
"""Shares of the budget before which a run never switches, and at which it must."""
COMPETENT = 0.5
"""Share of the games that a team must win, where there is something to win."""


class Evaluation(NamedTuple):
    """Greedy play at one moment of the first phase.

    Attributes:
        step: environment steps so far.
        returns: of every row (seed), [K]; likewise `win_rates`.
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
    """Returns the first of the evaluated steps at which to switch; None: not yet. Arguments as in `should_switch`."""
    known = range(1, len(curve) + 1)
    return next(
        (curve[n - 1].step for n in known if should_switch(curve[:n], k, random_play, total_steps, winnable)), None
    )


def should_switch(curve: Sequence[Evaluation], k: int, random_play: float, total_steps: int, winnable: bool) -> bool:
    """Says whether to switch now, from the evaluations so far.

    True once a tenth of the budget is spent, the last return beats random play, at least half of the games are won
    where they can be, and the slope of the last five returns is positive but under half of the largest so far;
    and in any case from 60 % of the budget on.

    Args:
        curve: evaluations, in order; the last one is now.
        k: the row that is asked about.
        random_play: its return of random play, all weights zero.
        total_steps: budget of the whole run.
        winnable: whether the task has games that are won or lost.
    """
    now = curve[-1]
    if now.step >= LATEST * total_steps:
        return True
    if now.step < EARLIEST * total_steps or now.returns[k] <= random_play or len(curve) < POINTS:
        return False
    if winnable and now.win_rates[k] < COMPETENT:  # a plateau before the first victories is no time to freeze
        return False
    steps, returns = [point.step for point in curve], [point.returns[k] for point in curve]
    slopes = [slope(steps[i - POINTS : i], returns[i - POINTS : i]) for i in range(POINTS, len(curve) + 1)]
    return 0 < slopes[-1] < 0.5 * max(slopes)
