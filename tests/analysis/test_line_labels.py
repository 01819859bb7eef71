"""Names of lines stand at their ends, in their colours, and do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lorasa_jax.analysis.line_labels import GAP, MOST, SIZE, name_lines, spread_out


def axes(ends):
    """Two axes with a line to each end, named by its number."""
    figure = Figure(figsize=(8, 3), constrained_layout=True)
    both = figure.subplots(1, 2)
    for axis in both:
        for k, end in enumerate(ends):
            axis.plot([0, 1, 2 + k % 2], [0, end, end], label=f"line {k}")
    return figure, both


@pytest.mark.parametrize("ends", [[1.0] * MOST, [1, 1, 1, 0.99, 0, 0], [0.5], range(MOST)], ids=str)
def test_names_do_not_overlap_and_stand_right_of_the_axis(ends):
    figure, both = axes(ends)
    assert all([name_lines(axis) for axis in both])
    figure.draw_without_rendering()
    for axis in both:
        boxes = [Text.get_window_extent(text) for text in axis.texts]
        assert len(boxes) == len(ends)
        for i, box in enumerate(boxes):
            assert box.x0 > axis.get_window_extent().x1
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert [text.get_color() for text in axis.texts] == [line.get_color() for line in axis.lines]
    # Names of the left axis do not reach the right one.
    left = max(Text.get_window_extent(text).x1 for text in both[0].texts)
    assert left < both[1].get_tightbbox().x0 + 1


def test_names_are_in_the_order_of_the_ends():
    _, (axis, _) = axes([0.2, 1.0, 0.21, 0.19])
    assert name_lines(axis)
    heights = [text.xyann[1] for text in axis.texts]
    assert sorted(range(4), key=heights.__getitem__) == [3, 0, 2, 1]


def test_many_lines_keep_their_legend():
    _, (axis, _) = axes(range(MOST + 1))
    assert not name_lines(axis) and not axis.texts


def test_names_that_do_not_fit_keep_their_legend():
    figure, (axis, _) = axes(range(MOST))
    figure.set_size_inches(8, 1)
    assert MOST * GAP * SIZE > 72 and not name_lines(axis)


def test_a_line_ends_at_its_last_number():
    axis = Figure().subplots()
    axis.plot([0, 1, 2], [0.0, 3.0, np.nan], label="a")
    assert name_lines(axis) and axis.texts[0].xy == (1, 3)


def test_a_line_without_numbers_keeps_the_legend():
    axis = Figure().subplots()
    axis.plot([0, 1], [np.nan, np.nan], label="a")
    assert not name_lines(axis)


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([0.5], [0.5]),
        ([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.55, 0.5, 0.6], [0.55, 0.45, 0.65]),
        ([1.0, 1.0, 0.0], [0.9, 1.0, 0.0]),
        ([-0.3, 0.05], [0.0, 0.1]),
    ],
)
def test_positions_move_as_little_as_possible(wanted, placed):
    np.testing.assert_allclose(spread_out(wanted, 0.1), placed, atol=1e-12)
