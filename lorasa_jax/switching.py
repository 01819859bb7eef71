"""When to freeze the trunk: while it is competent and still improving, but no longer quickly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POINTS = 5
"""Evaluations behind one slope."""
EARLIEST, LATEST = 0.1, 0.6
"""Shares of the budget before which a run never switches, and at which it must."""


def slope(steps: Sequence[int], curve: Sequence[float]) -> float:
    """Returns the least-squares slope of a curve, per step."""
    return float(np.polyfit(np.asarray(steps, float), np.asarray(curve, float), 1)[0])


def first_switch(steps: Sequence[int], curve: Sequence[float], random_play: float, total_steps: int) -> int | None:
    """Returns the first of the evaluated steps at which to switch; None: not yet. Arguments as in `should_switch`."""
    known = range(1, len(steps) + 1)
    return next((steps[n - 1] for n in known if should_switch(steps[:n], curve[:n], random_play, total_steps)), None)


def should_switch(steps: Sequence[int], curve: Sequence[float], random_play: float, total_steps: int) -> bool:
    """Says whether to switch now, from the evaluations so far.

    True once a tenth of the budget is spent, the last return beats random play, and the
    slope of the last five points is positive but under half of the largest so far; and in
    any case from 60 % of the budget on.

    Args:
        steps: environment steps of the evaluations, ascending; the last one is now.
        curve: greedy returns at those steps.
        random_play: return of uniformly random play.
        total_steps: budget of the whole run.
    """
    if steps[-1] >= LATEST * total_steps:
        return True
    if steps[-1] < EARLIEST * total_steps or curve[-1] <= random_play or len(curve) < POINTS:
        return False
    slopes = [slope(steps[i - POINTS : i], curve[i - POINTS : i]) for i in range(POINTS, len(curve) + 1)]
    return 0 < slopes[-1] < 0.5 * max(slopes)
