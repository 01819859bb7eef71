"""Pictures of records. Each is drawn from plain data, whose digest it carries: whether it is up to date can be seen
without drawing it again, which on another machine gives other bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorasa_jax import stats

from across import overview
from records import Experiment, Point
from tables import everywhere, metric, scores, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Data = dict[str, Any]


def curves(e: Experiment) -> Data:
    """Returns the greedy curves of every scheme in every task."""
    return {task: {point.name: _curve(point) for point in points} for task, points in e.by_task.items()}


def beside(experiments: Iterable[Experiment]) -> Data:
    """Returns the greedy curves of adapters, shared and separate policies, in every task that has them all."""
    return {
        task: {scheme: _curve(point) for scheme, point in points.items()}
        for task, points in overview(experiments).items()
    }


def _curve(point: Point) -> Data:
    """Steps and value of every evaluation, for each seed, and where seeds switched."""
    place = {"win_rate": 1, "return": 2}[metric(point.env)]
    return {
        "metric": metric(point.env),
        "switches": sorted({run.switch_step for run in point.runs.values() if run.switch_step}),
        "seeds": [[[row[0], row[place]] for row in run.curve] for run in point.runs.values()],
    }


def profile(e: Experiment) -> Data:
    """Returns the final greedy results of every scheme, in all tasks; nothing where they cannot be put together."""
    return {name: scores(points).tolist() for name, points in everywhere(e).items()}


FIGURES = {"curves": curves, "profile": profile}


def digest(data: Data) -> str:
    """Returns what says whether two figures are drawn from the same data."""
    return f"sha256:{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()}"


def is_current(path: Path, data: Data) -> bool:
    """Says whether a figure was drawn from these data."""
    return path.exists() and digest(data).encode() in path.read_bytes()


def draw(kind: str, data: Data, path: Path) -> None:
    """Draws a figure into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = len(data) if kind == "curves" else 1
    columns = 2 if panels == 4 else min(panels, 3)
    lines = -(-panels // columns)
    names = list(dict.fromkeys(name for schemes in data.values() for name in schemes) if kind == "curves" else data)
    beside = 0.6 + 0.065 * max(map(len, names))  # inches that the legend takes
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns + beside, 3.1 * lines), constrained_layout=True, squeeze=False
    )
    used = list(axes.flat)[:panels]
    for axis in list(axes.flat)[panels:]:
        axis.set_axis_off()
    if kind == "curves":
        # A scheme looks the same in all panels, whoever is missing there.
        for axis, (task, schemes) in zip(used, data.items(), strict=True):
            _draw_curves(axis, task, schemes, _styles(names))
    else:
        _draw_profile(used[0], data, _styles(names))
    for axis in used:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    labelled = {label: line for axis in used for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), frameon=False, fontsize=8, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Comment": digest(data)})
    plt.close(figure)


def _styles(names: Sequence[str]) -> dict[str, Data]:
    """Returns how the line of each name is drawn."""
    return {
        name: {"color": f"C{i % 10}", "ls": "-" if i < 10 else "--", "lw": 1.4, "label": name}
        for i, name in enumerate(names)
    }


def _draw_curves(axis: Axes, task: str, schemes: Data, styles: dict[str, Data]) -> None:
    """Means over seeds, with 95 % bootstrap intervals, where all seeds were evaluated; dotted, where seeds switched."""
    from matplotlib.ticker import EngFormatter

    for name, found in schemes.items():
        by_step: dict[int, list[float]] = {}
        for step, value in (row for seed in found["seeds"] for row in seed):
            by_step.setdefault(step, []).append(value)
        steps = [step for step, values in sorted(by_step.items()) if len(values) == len(found["seeds"])]
        low, high = (
            zip(*(stats.bootstrap_interval(by_step[step]) for step in steps), strict=True) if steps else ((), ())
        )
        axis.plot(steps, [float(np.mean(by_step[step])) for step in steps], **styles[name])
        axis.fill_between(steps, low, high, color=styles[name]["color"], alpha=0.15, lw=0)
        for step in found["switches"]:
            axis.axvline(step, color="0.5", lw=0.7, ls=":")
        axis.set_ylabel(f"greedy {spaced(found['metric'])}")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(title=task, xlabel="environment steps")


def _draw_profile(axis: Axes, data: Data, styles: dict[str, Data]) -> None:
    thresholds = np.linspace(0, 1, 201)
    for name, found in data.items():
        axis.plot(thresholds, stats.performance_profile(np.array(found), thresholds), **styles[name])
    axis.set(xlabel="greedy result", ylabel="share of runs above", ylim=(-0.03, 1.03))
