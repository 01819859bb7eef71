"""Figures of the table of runs.

A figure is drawn from plain data, and its file holds the digest of these data. So it can be checked without drawing it
again, which would give other bytes on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lorasa_jax.analysis import statistics as stats
from lorasa_jax.analysis.line_labels import name_lines
from lorasa_jax.cli.saved import word
from lorasa_jax.config import require
from lorasa_jax.files import whole

from research.runs import SCHEMES, WHERE, by, everywhere, overview
from research.tables import metric_of, scores, spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Data = dict[str, Any]


def figures_of(runs: pd.DataFrame) -> Iterator[tuple[str, str, Data]]:
    """Yields name, kind and data of every figure."""
    for experiment, mine in by("experiment", runs).items():
        panels = {task: _curves(by("scheme", found)) for task, found in by("task", mine).items()}
        yield f"{experiment}-curves", "curves", panels
        if mine["dial"].notna().all():
            shares = {name: _shares(found) for name, found in _with_share(mine).items()}
            yield f"{experiment}-dial", "dial", {"": shares}
        if found := _ablations(mine):
            yield f"{experiment}-ablations", "ablations", found
        if whole := everywhere(mine):
            yield f"{experiment}-profile", "profile", {name: scores(found).tolist() for name, found in whole.items()}
    if panels := {title: _curves(points) for title, points in overview(runs).items()}:
        yield "beside", "curves", panels
    if panels := {title: _first_shares(mine) for title, mine in by("dial_title", runs[runs["dial"].notna()]).items()}:
        yield "dials", "dial", panels


def _curves(schemes: dict[str, pd.DataFrame]) -> Data:
    """Returns steps and value of every evaluation, for each seed, and where seeds switched."""
    return {
        scheme: {
            "metric": metric_of(runs),
            "switches": sorted({step for step in runs["switch_step"].dropna().tolist() if step}),
            "seeds": runs["curve"].tolist(),
        }
        for scheme, runs in schemes.items()
    }


def _with_share(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the schemes with a column `share`: the way from random play (0) to the task's best scheme (1)."""
    tasks = runs.groupby("task")
    best = runs["task"].map(runs.groupby(["task", "scheme"])["score"].mean().groupby("task").max())
    random = tasks["random_return"].transform("mean")
    return by("scheme", runs.assign(share=(runs["score"] - random) / (best - random)))


def _shares(runs: pd.DataFrame) -> Data:
    """Returns the share of every seed, by the number on the dial."""
    return {f"{dial:g}": found.round(9).tolist() for dial, found in runs.groupby("dial")["share"]}


def _first_shares(runs: pd.DataFrame) -> Data:
    """Returns the shares of the first point of every sharing scheme that the overview has, by sharing scheme."""
    firsts = runs.drop_duplicates("sharing")["scheme"].tolist()
    found = {found["sharing"].iloc[0]: found for name, found in _with_share(runs).items() if name in firsts}
    return {sharing: _shares(found[sharing]) for sharing in SCHEMES if sharing in found}


def _ablations(runs: pd.DataFrame) -> dict[str, Data]:
    """Returns, for every setting that one scheme changes, the results of its values, and those of other schemes.

    There are none if the experiment has no baseline.
    """
    baseline = runs[runs["baseline"]]
    panels: dict[str, Data] = {}
    mine = runs["sharing"].isin(baseline["sharing"])
    others = {name: found["score"].tolist() for name, found in by("scheme", runs[~mine]).items()}
    for point in by("scheme", runs[mine]).values():
        changed = {name: value for name, value in point["point"].iloc[0].items() if name not in WHERE}
        if len(changed) == 1:
            ((setting, value),) = changed.items()
            panel = panels.setdefault(setting, {"values": {}, "others": others, "metric": metric_of(runs)})
            known = baseline["unchanged"].iloc[0]
            require(setting in known, f"notes.yaml of {runs['experiment'].iloc[0]} must say the baseline's {setting}")
            panel["baseline"] = word(known[setting])
            panel["values"][panel["baseline"]] = baseline["score"].tolist()
            panel["values"][word(value)] = point["score"].tolist()
    return panels


def digest(data: Data) -> str:
    """Returns the digest that identifies the data of a figure."""
    return f"sha256:{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()}"


def is_current(path: Path, data: Data) -> bool:
    """Returns whether a figure was drawn from these data."""
    return path.exists() and digest(data).encode() in path.read_bytes()


def draw(kind: str, data: Data, path: Path) -> None:
    """Draws a figure into a PNG file. A scheme has the same colour in all panels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = data if kind in ("curves", "ablations", "dial") else {"": data}
    schemes = [panel["others"] if kind == "ablations" else panel for panel in panels.values()]
    names = list(dict.fromkeys(name for found in schemes for name in found))
    styles = {
        name: {"color": f"C{i % 10}", "ls": "-" if i < 10 else "--", "lw": 1.4, "label": name}
        for i, name in enumerate(names)
    }
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    lines = -(-len(panels) // columns)
    legend = 0.6 + 0.065 * max(map(len, names), default=0)  # its width in inches
    size = (4.2 * columns + legend, 3.1 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, constrained_layout=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        DRAWN[kind](axis, title, panel, styles)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    named = kind == "dial" and len(panels) == 1 and name_lines(axes.flat[0])
    if named:
        figure.set_layout_engine("none")  # the names lie outside of the axis
    else:
        labelled = {line.get_label(): line for axis in axes.flat for line in axis.get_legend_handles_labels()[0]}
        figure.legend(labelled.values(), labelled.keys(), frameon=False, fontsize=8, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        figure.savefig(
            file,
            format="png",
            dpi=90 if len(panels) <= 6 else 75,
            bbox_inches="tight" if named else None,
            metadata={"Comment": digest(data)},
        )
    plt.close(figure)


def _draw_curves(axis: Axes, title: str, schemes: Data, styles: dict[str, Data]) -> None:
    """Draws means over seeds with 95 % bootstrap intervals, at steps where all seeds were evaluated, and switches."""
    from matplotlib.ticker import EngFormatter

    for name, found in schemes.items():
        rows = pd.DataFrame((row for seed in found["seeds"] for row in seed), columns=["step", "value"])
        values = rows.groupby("step")["value"].apply(list)
        values = values[values.map(len) == len(found["seeds"])]
        low, high = np.array([stats.bootstrap_interval(each) for each in values]).reshape(-1, 2).T
        axis.plot(values.index, values.map(np.mean), **styles[name])
        axis.fill_between(values.index, low, high, color=styles[name]["color"], alpha=0.15, lw=0)
        for step in found["switches"]:
            axis.axvline(step, color="0.5", lw=0.7, ls=":")
        axis.set_ylabel(f"greedy {spaced(found['metric'])}")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(title=title, xlabel="environment steps")


def _draw_dial(axis: Axes, title: str, schemes: Data, styles: dict[str, Data]) -> None:
    """Draws means over seeds with 95 % bootstrap intervals, over the numbers on the dial, at equal distances."""
    for name, found in schemes.items():
        values = [np.array(seeds) for seeds in found.values()]
        low, high = np.array([stats.bootstrap_interval(each) for each in values]).T
        style = styles[name] | {"label": name.partition(",")[0]}
        axis.plot(range(len(found)), [each.mean() for each in values], marker="o", ms=3, **style)
        axis.fill_between(range(len(found)), low, high, color=styles[name]["color"], alpha=0.15, lw=0)
        axis.set_xticks(range(len(found)), list(found))
    axis.set(title=title, xlabel="number of roles", ylabel="share of the best scheme's gain", ylim=(0, 1.05))


def _draw_ablations(axis: Axes, title: str, panel: Data, styles: dict[str, Data]) -> None:
    """Draws means over seeds with 95 % bootstrap intervals, at equal distances, and lines of the other schemes."""
    numbers = sorted((value for value in panel["values"] if value.isdecimal()), key=int)
    values = numbers + [value for value in panel["values"] if value not in numbers]
    for x, value in enumerate(values):
        results = np.array(panel["values"][value])
        low, high = stats.bootstrap_interval(results)
        axis.plot([x, x], [low, high], color="black", lw=1.2)
        face = "black" if value == panel["baseline"] else "white"
        axis.plot(x, results.mean(), marker="o", color="black", mfc=face, ms=5)
    for name, results in panel["others"].items():
        axis.axhline(np.mean(results), **styles[name])
    axis.set_xticks(range(len(values)), values, rotation=30 if max(map(len, values)) > 4 else 0)
    axis.set(title=title.replace("_", " "), ylabel=f"greedy {spaced(panel['metric'])}", xlim=(-0.5, len(values) - 0.5))


def _draw_profile(axis: Axes, title: str, schemes: Data, styles: dict[str, Data]) -> None:
    thresholds = np.linspace(0, 1, 201)
    for name, found in schemes.items():
        axis.plot(thresholds, stats.performance_profile(np.array(found), thresholds), **styles[name])
    axis.set(title=title, xlabel="greedy result", ylabel="share of runs above", ylim=(-0.03, 1.03))


DRAWN = {"curves": _draw_curves, "dial": _draw_dial, "ablations": _draw_ablations, "profile": _draw_profile}
"""What draws one panel of each kind of figure."""
