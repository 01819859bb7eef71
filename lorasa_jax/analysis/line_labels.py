"""Names of lines, written beside their right ends. With many lines, a legend remains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 8
"""Maximum number of lines of an axis that are named at their ends."""
SIZE, GAP = 8.0, 1.35
"""Size of the names in points, and the distance between two of them, as a multiple of their size."""


def name_lines(axis: Axes) -> bool:
    """Writes the label of each labelled line right of the axis, at the height of the line's end and in its colour.

    Names do not overlap: they move up or down, as little as possible, and a thin line leads to each end. Call it
    after all data is drawn, because later changes of the limits or the size of the axis move the lines.

    Returns:
        whether the lines are named. If there are more than `MOST`, or their names do not fit, nothing is written.
    """
    from matplotlib.lines import Line2D

    handles, names = axis.get_legend_handles_labels()
    lines = [line for line in handles if isinstance(line, Line2D)]
    ends = [end for line in lines if (end := _end(line)) is not None]
    axis.figure.draw_without_rendering()  # type: ignore[union-attr]  # computes the layout
    height = axis.get_window_extent().height * 72 / axis.figure.dpi
    gap = GAP * SIZE / height
    if not 0 < len(lines) == len(ends) <= MOST or len(ends) * gap > 1:
        return False
    heights = axis.transAxes.inverted().transform(axis.transData.transform(ends))[:, 1]
    for line, name, end, y in zip(lines, names, ends, spread_out(heights, gap), strict=True):
        colour = line.get_color()
        axis.annotate(
            name,
            end,
            (1.03, y),
            textcoords="axes fraction",
            color=colour,
            fontsize=SIZE,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2},
        )
    return True


def _end(line: object) -> tuple[float, float] | None:
    """The last finite point of a line."""
    points = np.column_stack([np.asarray(values, float) for values in line.get_data()])  # type: ignore[attr-defined]
    finite = points[np.isfinite(points).all(axis=1)]
    return (finite[-1, 0], finite[-1, 1]) if len(finite) else None


def spread_out(wanted: Sequence[float] | Float[np.ndarray, " K"], gap: float) -> Float[np.ndarray, " K"]:
    """Returns the positions in [0, 1] nearest to `wanted`, in least squares, that are at least `gap` apart.

    Without the gaps, this is isotonic regression, which pools adjacent violators.

    Args:
        wanted: positions in any order, which the result keeps.
        gap: minimum distance; (K - 1) of them must fit into [0, 1].
    """
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    pools: list[list[float]] = []
    for value in np.asarray(wanted, float)[order] - steps:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    means = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    placed = np.empty(len(wanted))
    placed[order] = np.clip(means, 0, 1 - steps[-1]) + steps
    return placed
