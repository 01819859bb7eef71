"""When the trunk freezes."""

from __future__ import annotations

import numpy as np
import pytest

from lorasa_jax.learning.switching import (
    COMPETENT,
    EARLIEST,
    LATEST,
    POINTS,
    Evaluation,
    first_switch,
    should_switch,
    slope,
)

BUDGET = 1000
STEPS = [20 * (i + 1) for i in range(50)]
SLOWING = (1 - np.exp(-np.arange(50) / 4)).tolist()  # quick at first, always rising


def evaluated(returns, wins=1.0, steps=STEPS):
    """Evaluations of two rows, of which the first one never earns anything."""
    return [Evaluation(step, (0.0, y), (0.0, wins)) for step, y in zip(steps, returns, strict=False)]


def switch(curve, random_play=-1.0, total=BUDGET, winnable=True) -> int | None:
    """The step at which the second row switches."""
    return first_switch(curve, 1, random_play, total, winnable)


def test_slope_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    x, y = np.cumsum(rng.integers(1, 9, 8)), rng.normal(size=8)
    expected = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert slope(x.tolist(), y.tolist()) == pytest.approx(expected)


def test_it_switches_when_learning_slows_to_half_of_its_best():
    step = switch(evaluated(SLOWING))
    assert step is not None
    now = STEPS.index(step) + 1
    slopes = [slope(STEPS[i - POINTS : i], SLOWING[i - POINTS : i]) for i in range(POINTS, now + 1)]
    assert slopes[-1] < 0.5 * max(slopes)
    assert slopes[-2] >= 0.5 * max(slopes)
    assert EARLIEST * BUDGET < step < LATEST * BUDGET


@pytest.mark.parametrize(
    ("curve", "random_play"),
    [
        (np.arange(50.0), -1.0),
        (np.zeros(50), -1.0),
        (-np.arange(50.0), -100.0),
        (-np.exp(-np.arange(50) / 4.0), 0.0),
    ],
    ids=["as quick as ever", "no longer improving", "falling", "no better than random play"],
)
def test_it_waits_for_the_last_moment(curve, random_play):
    assert switch(evaluated(curve.tolist()), random_play) == LATEST * BUDGET


def test_it_never_switches_early_or_with_too_few_points():
    assert switch(evaluated(SLOWING), total=1600) >= EARLIEST * 1600
    for n in range(1, POINTS):
        points = evaluated(SLOWING[:n], steps=[200 * (i + 1) for i in range(n)])
        assert not should_switch(points, 1, -1.0, 2000, True)


@pytest.mark.parametrize("n", [1, 30])
def test_it_always_switches_at_the_last_moment(n):
    assert should_switch(evaluated([0.0] * n, 0.0, [600] * n), 1, 1.0, BUDGET, True)
    assert not should_switch(evaluated([0.0] * n, 0.0, [599] * n), 1, 1.0, BUDGET, True)


def test_a_team_that_loses_most_of_its_games_is_not_frozen_on_a_plateau():
    assert switch(evaluated(SLOWING, COMPETENT)) == switch(evaluated(SLOWING, 1.0))
    assert switch(evaluated(SLOWING, COMPETENT - 0.01)) == LATEST * BUDGET
    assert switch(evaluated(SLOWING, 0.0), winnable=False) == switch(evaluated(SLOWING))
