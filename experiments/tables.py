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


def words(name: str) -> str:
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
    for source in {commit_of(s) + machine_of(s): s for s in record["sources"]}.values():
        packages = ", ".join(f"{name} {source['packages'][name]}" for name in ("jax", "jaxmarl", "brax", "numpy"))
        yield f"* commit {commit_of(source)}; {packages}; Python {source['python']}; {machine_of(source)}"
    yield ""


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def few(values: Any) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))


def steps_to(run: Run, name: str, level: float = REACHED) -> float:
    """Returns the first evaluation at which a seed's greedy play was as good; infinity: none was."""
    place = 1 if name == "win_rate" else 2
    return next((float(row[0]) for row in run.curve if row[place] >= level), math.inf)


def schemes(e: Experiment) -> Lines:
    """Every scheme in every task."""
    for task, points in e.by_task.items():
        name, reach = metric(points[0].env), bounded(points[0].env)
        exact = any(point.ceiling for point in points)
        yield f"**{task}**: {words(name)} at the end"
        yield ""
        best = all("best" in run.final for point in points for run in point.runs.values())
        head = ["scheme", "seeds", "greedy, IQM", "greedy, mean", "sampled, mean"] + ["best, mean"] * best
        head += ["ceiling, greedy; sampled", "seeds at it"] if exact else []
        head += [f"steps to {REACHED:.0%}" if name == "win_rate" else f"steps to {REACHED}"] if reach else []
        head += ["actors' parameters", "of `nps`", "optimiser, KiB", "steps/s"]
        yield from table(head, [[*_quality(point, name, best, reach, exact), *_price(point)] for point in points])


def _quality(point: Point, name: str, best: bool, reach: bool, exact: bool) -> Lines:
    greedy, sampled = scores([point]), scores([point], "sampled")
    yield f"`{point.name}`"
    yield str(len(point.runs))
    shown = [(stats.iqm, greedy), (stats.mean, greedy), (stats.mean, sampled)]
    for f, values in [*shown, *([(stats.mean, scores([point], "best"))] if best else [])]:
        yield spread(float(f(values)), stats.interval(f, values), len(values), name)
    if exact:
        known = point.ceiling
        yield f"{number(known['greedy'])}; {number(known['sampled'])}" if known else "not known"
        yield f"{(np.abs(greedy - known['greedy']) <= LANDS).sum()} of {len(greedy)}" if known else ""
    if reach:
        steps = [steps_to(run, name) for run in point.runs.values()]
        count, median = sum(map(math.isfinite, steps)), float(np.median(steps)) if steps else math.inf
        yield (f"{median:,.0f}" if math.isfinite(median) else "not reached") + f" ({count} of {len(steps)})"


def _price(point: Point) -> Lines:
    yield f"{point.params['actors']:,}"
    yield f"{point.params['actors'] / point.params['nps_actors']:.2f}"
    yield ", then ".join(f"{size / 1024:,.1f}" for size in point.optimizer_bytes)
    yield f"{float(f'{point.steps_per_second:.3g}'):,.0f}"


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
    yield f"**All {len(e.by_task)} tasks together**: {words(metric(e.points[0].env))} of greedy play at the end"
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
    listed), and against separate ones."""
    rows = []
    for task, points in e.by_task.items():
        adapting = [point for point in points if point.adapts]
        for adapted in adapting:
            for other in points:
                if other is not adapted and (other is adapting[0] or not other.adapts):
                    rows += [[task, *row] for row in _compare(adapted, other)]
    if rows:
        yield f"**Differences** in {words(metric(e.points[0].env))}, greedy, at the end"
        yield ""
        yield from table(["task", "scheme", "minus", "runs", "difference", "p", "P(above)"], rows)


def _compare(adapted: Point, other: Point) -> Iterator[list[str]]:
    """One row where the two have shared policies in common, or the other keeps policies apart."""
    name = metric(adapted.env)
    pairs = [(run, other.runs[seed]) for seed, run in adapted.runs.items() if _is_pair(run, other.runs.get(seed))]
    if not pairs and not other.separate:
        return
    if pairs:
        x, y = (np.array([run.final["greedy"][name] for run in side], float) for side in zip(*pairs, strict=True))
        found = stats.paired(x, y)
        difference, interval, p, runs = (
            found.mean,
            found.interval,
            f"{found.p:.2g}",
            f"{found.pairs} pair{'s' * (found.pairs > 1)}",
        )
        x, y = x[:, None], y[:, None]
    else:
        x, y = scores([adapted]), scores([other])
        interval = stats.interval(lambda x, y: stats.mean(x) - stats.mean(y), x, y)
        difference, p, runs = float(x.mean() - y.mean()), "", f"{len(x)} and {len(y)}"
    shown = spread(difference, interval, max(len(x), len(y)), name, signed)
    several = len(x) > 1 or len(y) > 1  # of a single run there is nothing to say but the difference
    yield [f"`{adapted.name}`", f"`{other.name}`", runs, shown, *([p, _improvement(x, y)] if several else ["", ""])]


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
                f"{target['task']}: {words(name)} of `{target['scheme']}`{minus}",
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
        yield from table(["play", "return", "win rate", f"{words(name)} by seed"], rows)
        chance = [run.random_return for run in runs]
        seconds = sum(job["wall_seconds"] for job in e.record["jobs"])
        yield (
            f"Uniformly random play returns {min(chance):.2f} to {max(chance):.2f}. The command took {seconds:,.0f} s "
            f"({machine_of(e.record['sources'][0])}). A team's policies hold {point.params['actors']:,} parameters; "
            f"separate networks would hold {point.params['nps_actors']:,}."
        )
        yield ""


def anchors(e: Experiment, known: dict[str, Any]) -> Lines:
    """What others measured in the same tasks, beside what is measured here."""
    rows, cited = [], []
    for entry in known["anchors"]:
        for task, values in entry["values"].items():
            points = [point for point in e.points if (point.env, point.task) == (entry["env"], task)]
            if not points:
                continue
            cited.append(
                f"* {entry['source']}: {known['sources'][entry['source']]} {entry['setting']} {entry['caveat']}"
            )
            steps = max(run.env_steps for point in points for run in point.runs.values())
            play, kind = entry.get("play", "greedy"), entry["quantity"]
            ours = "; ".join(f"`{p.name}` {number(float(scores([p], play, kind).mean()), kind)}" for p in points)
            theirs = "; ".join(
                f"{who} {value if isinstance(value, str) else number(value, kind)}" for who, value in values.items()
            )
            rows.append([task, entry["source"], words(kind), theirs, f"{ours}, {play}, at {steps:,} steps"])
    if not rows:
        return
    yield "**Beside others' numbers**, which were measured otherwise:"
    yield ""
    yield from table(["task", "source", "quantity", "theirs", "here"], rows)
    yield from dict.fromkeys(cited)
    yield ""


def said_by(path: Path) -> Lines:
    """What a diagnosis said, word by word, with its command."""
    kept = json.loads(path.read_text())
    yield "**What the adapters did**"
    yield ""
    for source in filter(None, (kept["trained_with"], kept["versions"])):
        yield f"* `{command_of(source)}`, commit {commit_of(source)}"
    yield ""
    yield "```"
    yield from kept["said"]
    yield "```"
    yield ""
