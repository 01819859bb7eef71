"""What all records say together, as text: each function returns the lines of one part of a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median, variance
from typing import Any

from lorasa_jax import stats

from records import Experiment, Point
from tables import (
    Lines,
    command_of,
    commit_of,
    few,
    machine_of,
    metric,
    number,
    pairs_of,
    scores,
    spaced,
    spread,
    table,
)

SCHEMES = ("ps_id", "ps_restart", "nps", "lorasa")
"""What is asked of every task: one shared policy, the same with a fresh optimiser, separate ones, adapters."""
DECISIVE_STEPS = 10_000_000
"""What published comparisons train each seed for, at the least."""
RESOLVED = {"win_rate": 0.05, "return": 0.1}
"""Differences worth seeing: of win rates as they are, of returns as a share of separate policies'."""


def overview(experiments: Iterable[Experiment]) -> dict[str, dict[str, Point]]:
    """Returns those schemes in every task where adapters were run beside shared and separate policies.

    Of a scheme with several settings it is the first one. Games whose best result is known exactly are left out.
    """
    found = {}
    for e in experiments:
        for task, points in e.by_task.items():
            first = {point.scheme: point for point in reversed(points)}
            if {"ps_id", "nps", "lorasa"} <= first.keys() and not any(point.ceiling for point in points):
                found[_named(task, points)] = {scheme: first[scheme] for scheme in SCHEMES if scheme in first}
    return found


def beside(experiments: Iterable[Experiment]) -> Lines:
    """Adapters beside shared and separate policies: means of greedy play at the end."""
    rows = []
    for task, points in overview(experiments).items():
        of_all = [run for point in points.values() for run in point.runs.values()]
        steps, seeds = few(f"{run.env_steps:,}" for run in of_all), few(len(p.runs) for p in points.values())
        cells = [_mean(points[scheme]) if scheme in points else "" for scheme in SCHEMES]
        size = points["lorasa"].params["actors"] / points["nps"].params["actors"]
        frozen = sorted(run.switch_step or 0 for run in points["lorasa"].runs.values())
        switch = " to ".join(dict.fromkeys(f"{step:,}" for step in (frozen[0], frozen[-1])))
        rows.append([f"{task}, {spaced(metric(points['nps'].env))}", steps, switch, seeds, *cells, f"{size:.2f}"])
    names = [f"`{scheme}`" for scheme in SCHEMES]
    yield from table(["task", "steps", "adapters from", "seeds", *names, "parameters, `lorasa` / `nps`"], rows)


def _mean(point: Point) -> str:
    found = scores([point])
    return spread(float(found.mean()), stats.interval(stats.mean, found), len(found), metric(point.env))


def anchors(experiments: Iterable[Experiment], known: dict[str, Any]) -> Lines:
    """What others measured in the same tasks, beside plain schemes and the first adapters of a task's first experiment.

    Args:
        experiments: all of them.
        known: `anchors`, each with a source, an environment and what was measured in its tasks, and `sources`.
    """
    tasks: dict[tuple[str, str], list[Point]] = {}
    for e in experiments:
        for task, points in e.by_task.items():
            tasks.setdefault((task, points[0].algo), points)
    rows, cited = [], []
    for (task, _), points in tasks.items():
        first = next((point for point in points if point.adapts), None)
        shown = [point for point in points if point is first or point.name == point.scheme]
        steps = max(run.env_steps for point in shown for run in point.runs.values())
        for entry in known["anchors"]:
            values = entry["values"].get(task) if entry["env"] == points[0].env else None
            if values is None:
                continue
            cited.append(entry)
            play, kind = entry.get("play", "greedy"), entry["quantity"]
            ours = "; ".join(f"`{p.name}` {number(float(scores([p], play, kind).mean()), kind)}" for p in shown)
            theirs = "; ".join(
                f"{who} {value if isinstance(value, str) else number(value, kind)}" for who, value in values.items()
            )
            name = _named(task, points)
            rows.append([name, entry["source"], spaced(kind), theirs, f"{ours}, {play}, at {steps:,} steps"])
    yield from table(["task", "source", "quantity", "theirs", "here"], rows)
    for entry in known["anchors"]:
        if entry in cited:
            yield (
                f"* {entry['source']}, {spaced(entry['quantity'])} in `{entry['env']}`: "
                f"{known['sources'][entry['source']]} {entry['setting']} {entry['caveat']}"
            )
    yield ""


def _named(task: str, points: Sequence[Point]) -> str:
    return task if points[0].algo == "mappo" else f"{task}, {points[0].algo}"


def plan(experiments: Iterable[Experiment]) -> Lines:
    """What it would take to see a difference, at the spread and the speed that were measured."""
    rows = []
    for task, points in overview(experiments).items():
        paired = pairs_of(points["lorasa"], points["ps_restart"]) if len(points) == len(SCHEMES) else []
        if min(len(paired), len(points["nps"].runs)) < 2:
            continue
        kind = metric(points["nps"].env)
        x, apart = scores([points["lorasa"]]), scores([points["nps"]])
        difference = RESOLVED[kind] * (1 if kind == "win_rate" else abs(float(apart.mean())))
        apart_by = [run.final["greedy"][kind] - control.final["greedy"][kind] for run, control in paired]
        pairs = stats.runs_needed(variance(apart_by), difference)
        runs = stats.runs_needed(float(x.var(ddof=1) + apart.var(ddof=1)), difference)
        steps = DECISIVE_STEPS * sum(_own_share(point, points["ps_id"]) for point in points.values())
        hours = steps / median(point.steps_per_second for point in points.values()) / 3600
        shown = number(difference, kind).replace(" %", " points")
        rows.append([task, shown, str(pairs), str(runs), f"{hours:.1f}", f"{max(pairs, runs) * hours:,.0f}"])
    head = ["task", "difference", "seeds, to `ps_restart`", "seeds, to `nps`", "hours a seed", "hours in all"]
    yield from table(head, rows)


def _own_share(point: Point, shared: Point) -> float:
    """Returns the share of a run that the shared policy did not do for it."""
    (seed, run), *_ = point.runs.items()
    continued = point is not shared and seed in shared.runs and run.origin == shared.runs[seed].origin
    return 1 - (run.switch_step or 0) / run.env_steps if continued else 1.0


def cost(experiments: Sequence[Experiment]) -> Lines:
    """What every experiment took."""
    rows = []
    for e in experiments:
        jobs = e.record["jobs"]
        steps, seconds = sum(job["steps"] for job in jobs), sum(job["wall_seconds"] for job in jobs)
        said = (lambda source: f"`{command_of(source)}`"), commit_of, machine_of
        commands, commits, machine = ("<br>".join(dict.fromkeys(map(say, e.record["sources"]))) for say in said)
        rate = steps / sum(job["train_seconds"] for job in jobs)
        row = [e.name, commands, commits, str(sum(len(p.runs) for p in e.points)), str(len(jobs)), f"{steps:,}"]
        rows.append([*row, f"{rate:,.0f}", f"{seconds / 3600:.2f}", machine])
    head = ["experiment", "commands", "commit", "runs", "programs", "steps in all", "steps/s", "hours", "machine"]
    yield from table(head, rows)
