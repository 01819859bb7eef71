"""What a record says, as text: each function returns the lines of one part of a document."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lorasa_jax import stats
from lorasa_jax.config import require

from records import PLAYS, Experiment, Point, Run

Lines = Iterator[str]
NUMERIC = re.compile(r"[-+]?\d|not reached|$")
REACHED = 0.9
"""What is asked for where results have a most."""
LANDS = 0.005
"""How near to an exact ceiling counts as there."""


def metric(env: str) -> str:
    """Returns what runs of an environment are compared by."""
    return "win_rate" if env == "smax" else "return"


def bounded(env: str) -> bool:
    """Says whether that lies between 0 and 1, so that tasks can be put together."""
    return env in ("smax", "toy")


def spaced(name: str) -> str:
    return name.replace("_", " ")


def number(value: float, name: str = "return") -> str:
    """Returns a number as it is printed; the last bits do not decide how it is rounded."""
    value = round(value, 9) + 0.0
    if name == "win_rate":
        return f"{100 * value:.1f} %"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float, name: str) -> str:
    found = number(value, name)
    return found if found.startswith("-") else f"+{found}"


def spread(
    value: float, interval: tuple[float, float], runs: int, name: str, form: Callable[[float, str], str] = number
) -> str:
    """Returns a value and its interval, which a single run does not have."""
    if runs == 1:
        return form(value, name)
    low, high = (form(bound, name).removesuffix(" %") for bound in interval)
    return f"{form(value, name)} [{low}, {high}]"


def scores(points: Sequence[Point], play: str = "greedy", name: str | None = None) -> np.ndarray:
    """Returns final results of one scheme, [runs, tasks], in tasks that it ran in with as many seeds."""
    found = [[run.final[play][name or metric(point.env)] for run in point.runs.values()] for point in points]
    return np.array(found, float).T


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """Yields a table, its columns of numbers to the right."""
    if rows:
        yield f"| {' | '.join(head)} |"
        _, *columns = zip(*rows, strict=True)
        yield f"|---|{'|'.join('---:' if all(map(NUMERIC.match, column)) else '---' for column in columns)}|"
        for row in rows:
            cells = (cell.replace("|", "\\|") for cell in row)  # which stands in names of robots' splits
            yield f"| {' | '.join(cells)} |"
        yield ""


def numbers_of(values: Sequence[int]) -> str:
    """Returns whole numbers in few words: 0-4, 7."""
    runs = [[v for _, v in group] for _, group in groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def command_of(source: dict[str, Any]) -> str:
    """Returns the command of a run, or of the sweep that it was a job of."""
    words = list(source["command"])
    if "--only" in words:
        del words[words.index("--only") : words.index("--only") + 2]
    return shlex.join(words)


def machine_of(source: dict[str, Any]) -> str:
    """Returns what a command ran on, in words."""
    devices = ", ".join(f"{n} x {name}" for name, n in Counter(source["devices"]).items())
    system = re.split("[-.]", source["platform"])[0]
    return f"{system}, {source['cpus']} CPUs, devices: {devices}"


def commit_of(source: dict[str, Any]) -> str:
    commit, changed, _ = (source["commit"] or "unknown").partition("-changed")
    return f"`{commit[:10]}`" + (", with changes" if changed else "")


def setting(e: Experiment) -> Lines:
    """What was run, with what."""
    record = e.record
    for command in dict.fromkeys(map(command_of, record["sources"])):
        yield f"* `{command}`"
    changes = record["preset"]["changes"]
    yield (
        f"* preset `{record['preset']['name']}`"
        + (" but for " + ", ".join(f"`{name}` {_value(value)}" for name, value in changes.items()) if changes else "")
        + f"; algorithm {', '.join(dict.fromkeys(p.algo for p in e.points))}"
    )
    runs = [run for point in e.points for run in point.runs.values()]
    seeds = numbers_of(list({run.seed for run in runs}))
    yield (
        f"* {few(f'{run.env_steps:,}' for run in runs)} environment steps of each seed, both phases together; "
        f"seeds {seeds}; {few(run.episodes for run in runs)} episodes at the end"
    )
    yield f"* settings were chosen on: {e.notes.get('tuned_on', 'not said')}"
    commits: dict[str, dict[str, None]] = {}
    for source in record["sources"]:
        packages = ", ".join(f"{name} {source['packages'][name]}" for name in ("jax", "jaxmarl", "brax", "numpy"))
        where = f"{packages}; Python {source['python']}; {machine_of(source)}"
        commits.setdefault(where, {})[commit_of(source)] = None
    for where, some in commits.items():
        yield f"* {'commit' if len(some) == 1 else 'commits'} {', '.join(some)}; {where}"
    yield ""


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def few(values: Any) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))


def steps_to(run: Run, name: str, level: float = REACHED) -> float:
    """Returns the first evaluation at which a seed's greedy play was as good; infinity: none was."""
    place = 1 if name == "win_rate" else 2
    return next((float(row[0]) for row in run.curve if row[place] >= level), math.inf)


def lowest(run: Run, name: str, since: int | None) -> float | None:
    """Returns a seed's lowest evaluation after a step; None: there is none."""
    place = 1 if name == "win_rate" else 2
    return min((row[place] for row in run.curve if since is not None and row[0] > since), default=None)


def schemes(e: Experiment) -> Lines:
    """Every scheme in every task."""
    for task, points in e.by_task.items():
        yield f"**{task}**: {spaced(metric(points[0].env))} at the end"
        yield ""
        columns = columns_of(points)
        yield from table(list(columns), [[cell(point) for cell in columns.values()] for point in points])


def columns_of(points: Sequence[Point]) -> dict[str, Callable[[Point], str]]:
    """Returns what is said of each scheme in a task: heads, and what gives the cell below."""
    name, runs = metric(points[0].env), [run for point in points for run in point.runs.values()]
    exact = any(point.ceiling for point in points)

    def final(f: Callable, play: str) -> Callable[[Point], str]:
        def cell(point: Point) -> str:
            values = scores([point], play)
            return spread(float(f(values)), stats.interval(f, values), len(values), name)

        return cell

    columns = {"scheme": lambda point: f"`{point.name}`", "seeds": lambda point: str(len(point.runs))}
    if max(len(point.runs) for point in points) > 3:  # otherwise it is the mean
        columns["greedy, IQM"] = final(stats.iqm, "greedy")
    columns |= {"greedy, mean": final(stats.mean, "greedy"), "sampled, mean": final(stats.mean, "sampled")}
    if all("best" in run.final for run in runs):
        columns["best, mean"] = final(stats.mean, "best")
    switches = {run.origin: run.switch_step for run in reversed(runs) if run.switch_step is not None}
    if switches and not exact:
        columns["lowest after the switch, mean"] = lambda point: _lowest(point, name, switches)
    if exact:
        columns["ceiling, greedy; sampled"] = _ceiling
        columns["seeds at it"] = _landed
    if bounded(points[0].env):
        columns[f"steps to {f'{REACHED:.0%}' if name == 'win_rate' else REACHED}"] = lambda point: _steps_to(
            point, name
        )
    return columns | {
        "actors' parameters": lambda point: f"{point.params['actors']:,}",
        "of `nps`": lambda point: f"{point.params['actors'] / point.params['nps_actors']:.2f}",
        "optimiser, KiB": lambda point: ", then ".join(f"{size / 1024:,.1f}" for size in point.optimizer_bytes),
    }


def _lowest(point: Point, name: str, switches: dict[tuple[str, int], int]) -> str:
    """Where a run has no switch, from the first one that goes on from the same shared policy."""
    since = [switches.get(run.origin) if run.switch_step is None else run.switch_step for run in point.runs.values()]
    found = [lowest(run, name, step) for run, step in zip(point.runs.values(), since, strict=True)]
    values = [value for value in found if value is not None]
    return number(sum(values) / len(values), name) if values else ""


def _ceiling(point: Point) -> str:
    return f"{number(point.ceiling['greedy'])}; {number(point.ceiling['sampled'])}" if point.ceiling else "not known"


def _landed(point: Point) -> str:
    if not point.ceiling:
        return ""
    greedy = scores([point])
    return f"{(np.abs(greedy - point.ceiling['greedy']) <= LANDS).sum()} of {len(greedy)}"


def _steps_to(point: Point, name: str) -> str:
    steps = [steps_to(run, name) for run in point.runs.values()]
    count, median = sum(map(math.isfinite, steps)), float(np.median(steps)) if steps else math.inf
    return (f"{median:,.0f}" if math.isfinite(median) else "not reached") + f" ({count} of {len(steps)})"


def everywhere(e: Experiment) -> dict[str, list[Point]]:
    """Returns the schemes that ran in every task with as many seeds; none where tasks cannot be put together."""
    if len(e.by_task) < 2 or not all(bounded(point.env) for point in e.points):
        return {}
    by_name = {name: [p for p in e.points if p.name == name] for name in dict.fromkeys(p.name for p in e.points)}
    n_tasks = len(e.by_task)
    return {
        name: points
        for name, points in by_name.items()
        if len(points) == n_tasks and len({len(point.runs) for point in points}) == 1
    }


def overall(e: Experiment) -> Lines:
    """All tasks together, where results can be put together."""
    whole = everywhere(e)
    if not whole:
        return
    yield f"**All {len(e.by_task)} tasks together**: {spaced(metric(e.points[0].env))} of greedy play at the end"
    yield ""
    adapted = [name for name, points in whole.items() if all(point.adapts for point in points)]
    rows = []
    for name, points in whole.items():
        mine, kind = scores(points), metric(points[0].env)
        aggregates: list[Callable] = [stats.iqm, stats.mean]
        row = [f"`{name}`", *(spread(float(f(mine)), stats.interval(f, mine), len(mine), kind) for f in aggregates)]
        row.append(number(float(stats.optimality_gap(mine))))
        rows.append([*row, *("" if other == name else _improvement(scores(whole[other]), mine) for other in adapted)])
    yield from table(["scheme", "IQM", "mean", "gap to 1", *(f"P(`{name}` above)" for name in adapted)], rows)
    left = [f"`{name}`" for name in dict.fromkeys(p.name for p in e.points) if name not in whole]
    if left:
        yield f"Left out, since they did not run with as many seeds in every task: {', '.join(left)}."
        yield ""


def _improvement(x: np.ndarray, y: np.ndarray) -> str:
    f = stats.probability_of_improvement
    low, high = stats.interval(f, x, y)
    return f"{round(float(f(x, y)), 9):.2f} [{low:.2f}, {high:.2f}]"


def comparisons(e: Experiment) -> Lines:
    """Adapters against what else goes on from the same shared policies (of other adapters the first ones that are
    listed, of restarted policies those with the same learning rate), and against separate ones; neither of single runs,
    nor of games whose best result is known."""
    rows = []
    for task, points in e.by_task.items():
        adapting = [p for p in points if p.adapts and len(p.runs) > 1 and not p.ceiling]
        for adapted in adapting:
            for other in points:
                first = other is adapting[0] and other is not adapted
                alike = not other.switches or other.adapter_lr == adapted.adapter_lr
                if first or (alike and not other.adapts):
                    rows += [[task, *row] for row in _compare(adapted, other)]
    if rows:
        yield f"**Differences** in {spaced(metric(e.points[0].env))}, greedy, at the end"
        yield ""
        yield from table(["task", "scheme", "minus", "runs", "difference", "p", "P(above)"], rows)


def _compare(adapted: Point, other: Point) -> Iterator[list[str]]:
    """One row where the two have shared policies in common, or the other keeps policies apart."""
    name, pairs = metric(adapted.env), pairs_of(adapted, other)
    if not pairs and not other.separate:
        return
    if pairs:
        x, y = (np.array([run.final["greedy"][name] for run in side], float) for side in zip(*pairs, strict=True))
        found = stats.paired(x, y)
        difference, interval, p, runs = found.mean, found.interval, f"{found.p:.2g}", f"{found.pairs} pairs"
        x, y = x[:, None], y[:, None]
    else:
        x, y = scores([adapted]), scores([other])
        interval = stats.interval(lambda x, y: stats.mean(x) - stats.mean(y), x, y)
        difference, p, runs = float(x.mean() - y.mean()), "", f"{len(x)} and {len(y)}"
    shown = spread(difference, interval, max(len(x), len(y)), name, signed)
    yield [f"`{adapted.name}`", f"`{other.name}`", runs, shown, p, _improvement(x, y)]


def pairs_of(adapted: Point, other: Point) -> list[tuple[Run, Run]]:
    """Returns the runs of two schemes that go on from the same shared policies."""
    return [(run, other.runs[seed]) for seed, run in adapted.runs.items() if _is_pair(run, other.runs.get(seed))]


def _is_pair(adapted: Run, other: Run | None) -> bool:
    """Both go on from the same shared policy, from the same step where the other has one."""
    return other is not None and adapted.origin == other.origin and other.switch_step in (None, adapted.switch_step)


def targets(e: Experiment) -> Lines:
    """What was asked for before, and what came of it."""
    rows = []
    for target in e.notes.get("targets", []):
        name, least = target.get("metric") or metric(e.points[0].env), target["at_least"]
        values = [
            _mean(e, target["task"], scheme, name) for scheme in (target["scheme"], target.get("minus")) if scheme
        ]
        found = values[0] - sum(values[1:])
        form = signed if len(values) > 1 else number
        minus = f" minus `{target['minus']}`" if len(values) > 1 else ""
        met = "met" if round(found - least, 9) >= 0 else "**missed**"
        rows.append(
            [
                f"{target['task']}: {spaced(name)} of `{target['scheme']}`{minus}",
                form(least, name),
                form(found, name),
                met,
            ]
        )
    if rows:
        yield "**Targets**, set before the runs: means of greedy play"
        yield ""
        yield from table(["target", "at least", "measured", ""], rows)


def _mean(e: Experiment, task: str, scheme: str, name: str) -> float:
    points = [point for point in e.by_task.get(task, []) if point.name == scheme]
    require(bool(points), f"a target of {e.name} names {scheme!r} in {task!r}, which its record does not hold")
    return float(scores(points, name=name).mean())


def by_seed(e: Experiment) -> Lines:
    """A single scheme, seed by seed."""
    for point in e.points:
        runs, name = [point.runs[seed] for seed in sorted(point.runs)], metric(point.env)
        where = Counter(run.switch_step for run in runs if run.switch_step is not None)
        by_itself = " by each seed's own curve" if e.record["config"]["switch_step"] == "auto" else ""
        frozen = "; ".join(f"{n} at {step:,}" for step, n in sorted(where.items()))
        yield (
            f"`{command_of(e.record['sources'][0])}`: {point.task}, preset `{e.record['preset']['name']}`, "
            f"{few(f'{run.env_steps:,}' for run in runs)} steps of each of the seeds {numbers_of(list(point.runs))}"
            + (f" (trunks frozen{by_itself}: {frozen})." if frozen else ".")
            + f" At the end, over {few(run.episodes for run in runs)} episodes per seed, with 95 % bootstrap intervals"
            " of the means over seeds:"
        )
        yield ""
        rows = []
        for play in (play for play in PLAYS if all(play in run.final for run in runs)):
            cells = []
            for kind in ("return", "win_rate"):
                values = scores([point], play, kind)
                cells.append(spread(float(values.mean()), stats.interval(stats.mean, values), len(values), kind))
            each = ", ".join(number(run.final[play][name], name).removesuffix(" %") for run in runs)
            rows.append([play, *cells, each])
        yield from table(["play", "return", "win rate", f"{spaced(name)} by seed"], rows)
        chance = [run.random_return for run in runs]
        seconds = sum(job["wall_seconds"] for job in e.record["jobs"])
        yield (
            f"Uniformly random play returns {min(chance):.2f} to {max(chance):.2f}. The command took {seconds:,.0f} s "
            f"({machine_of(e.record['sources'][0])}). A team's policies hold {point.params['actors']:,} parameters; "
            f"separate networks would hold {point.params['nps_actors']:,}."
        )
        yield ""


def said_by(path: Path) -> Lines:
    """What a diagnosis said, word by word, with its command."""
    kept = json.loads(path.read_text())
    yield "**What a diagnosis found**"
    yield ""
    for source in filter(None, (kept["trained_with"], kept["versions"])):
        yield f"* `{command_of(source)}`, commit {commit_of(source)}"
    yield ""
    yield "```"
    yield from kept["said"]
    yield "```"
    yield ""
