"""The parts of documents, each as blocks of Markdown, from records and their tables of runs (`research.runs`)."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorasa_jax.analysis import statistics as stats
from lorasa_jax.cli import paths, saved
from lorasa_jax.config import require
from lorasa_jax.trained import ABOUT, TRAINED

from research.runs import (
    PLAYS,
    SCHEMES,
    Experiment,
    by,
    evaluations,
    everywhere,
    first_adapters,
    overview,
    pairs_of,
    without_flags,
)

Blocks = Iterator[str]
Row = dict[str, str]
NUMERIC = re.compile(r"[-+]?\d|not reached|$")
REACHED = 0.9
"""The level that play should reach in tasks with a known maximum."""
LANDS = 0.005
"""How close to an exact ceiling counts as reaching it."""
DECISIVE_STEPS = 10_000_000
"""Published comparisons train each seed for at least this long."""
RESOLVED = {"win_rate": 0.05, "return": 0.1}
"""Differences worth seeing: of win rates as they are, of returns as a share of those of separate policies."""


def markdown(rows: Sequence[Row], title: str = "") -> Blocks:
    """Yields a title and a table with columns of numbers to the right; nothing if there are no rows."""
    if rows:
        table = pd.DataFrame(rows).replace(r"\|", r"\\|", regex=True)
        sides = ["---:" if all(map(NUMERIC.match, table[name])) else "---" for name in table.columns[1:]]
        head, *lines = (f"| {' | '.join(cells)} |" for cells in (table.columns, *table.itertuples(index=False)))
        if title:
            yield title
        yield "\n".join([head, f"|---|{'|'.join(sides)}|", *lines])


def number(value: float, measure: str = "return", sign: str = "") -> str:
    """Returns a number as it is printed. It is rounded before, so that its last bits make no difference."""
    value = round(value, 9) + 0.0
    if measure == "win_rate":
        return f"{100 * value:{sign}.1f} %"
    digits = 2 if measure == "probability" else 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign},.{digits}f}"


def estimate(measure: str, statistic: Callable, *scores: np.ndarray, sign: str = "") -> str:
    """Returns a statistic of scores [runs, tasks], and its 95 % bootstrap interval unless they are of single runs."""
    interval = stats.interval(statistic, *scores) if max(map(len, scores)) > 1 else ()
    value, *bounds = (number(float(v), measure, sign) for v in (statistic(*scores), *interval))
    return value + (f" [{', '.join(bounds)}]".replace(" %", "") if bounds else "")


def scores(runs: pd.DataFrame, column: str = "score") -> np.ndarray:
    """Returns results of one scheme, [runs, tasks]; every task must have as many runs."""
    return np.array([mine[column] for mine in by("task", runs).values()], float).T


def mean(runs: pd.DataFrame, play: str, measure: str) -> str:
    return estimate(measure, stats.mean, scores(runs, f"{play}_{measure}"))


def above(x: np.ndarray, y: np.ndarray) -> str:
    return estimate("probability", stats.probability_of_improvement, x, y)


def metric_of(runs: pd.DataFrame) -> str:
    return runs["metric"].iloc[0]


def spaced(name: str) -> str:
    return name.replace("_", " ")


def few(values: Iterable[int]) -> str:
    return " or ".join(dict.fromkeys(f"{value:,}" for value in values))


def ranges(values: Iterable[int]) -> str:
    """Returns whole numbers as ranges: 0-4, 7."""
    runs = [[v for _, v in group] for _, group in groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def sources_of(sources: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Returns where runs come from, as text: command, commit, machine, and packages with the machine."""
    rows = []
    for source in sources:
        commit, changed, _ = (source["commit"] or "unknown").partition("-changed")
        devices = ", ".join(f"{n} x {name}" for name, n in Counter(source["devices"]).items())
        machine = f"{re.split('[-.]', source['platform'])[0]}, {source['cpus']} CPUs, devices: {devices}"
        packages = ", ".join(f"{name} {source['packages'][name]}" for name in ("jax", "jaxmarl", "brax", "numpy"))
        row = {"command": f"`{shlex.join(without_flags(source['command'], '--only'))}`", "machine": machine}
        row["commit"] = f"`{commit[:10]}`" + (", with changes" if changed else "")
        rows.append(row | {"with": f"{packages}; Python {source['python']}; {machine}"})
    return pd.DataFrame(rows)


# Parts on one experiment.


def setting(e: Experiment) -> Blocks:
    """What ran, and with which settings, packages and machines."""
    preset, sources, runs = e.record["preset"], sources_of(e.record["sources"]), e.runs
    changes = ", ".join(f"`{name}` {saved.word(value)}" for name, value in preset["changes"].items())
    said = f"preset `{preset['name']}`{' but for ' if changes else ''}{changes}"
    commits = {where: found["commit"].unique() for where, found in by("with", sources).items()}
    lines = [
        *sources["command"].unique(),
        f"{said}; algorithm {', '.join(runs['algo'].unique())}",
        f"{few(runs['env_steps'])} environment steps of each seed, both phases together; "
        f"seeds {ranges(runs['seed'].unique())}; {few(runs['episodes'])} episodes at the end",
        f"settings were chosen on: {e.notes.get('tuned_on', 'not said')}",
        *(f"commit{'s' * (len(some) > 1)} {', '.join(some)}; {where}" for where, some in commits.items()),
    ]
    yield "\n".join(f"* {line}" for line in lines)


def targets(e: Experiment) -> Blocks:
    """Targets that were set before the runs, and what was measured."""
    rows, measure = [], metric_of(e.runs)
    for target in e.notes.get("targets", []):
        task, scheme, least, other = (target.get(name) for name in ("task", "scheme", "at_least", "minus"))
        means = e.runs[e.runs["task"] == task].groupby("scheme")["score"].mean()
        for name in filter(None, (scheme, other)):
            there = f"a target of {e.name} names {name!r} in {task!r}"
            require(name in means, f"{there}, which its record does not hold")
        minus, sign = (f" minus `{other}`", "+") if other else ("", "")
        found = means[scheme] - means.get(other, 0)
        row = {"target": f"{task}: {spaced(measure)} of `{scheme}`{minus}", "at least": number(least, measure, sign)}
        met = "met" if round(found - least, 9) >= 0 else "**missed**"
        rows.append(row | {"measured": number(found, measure, sign), "": met})
    yield from markdown(rows, "**Targets**, set before the runs: means of greedy play")


def dial(e: Experiment) -> Blocks:
    """Every scheme at every value of the number in which the tasks differ, and how soon it is as good as the first."""
    rows, soon, measure = [], [], metric_of(e.runs)
    for value, mine in by("dial", e.runs).items():
        points = by("scheme", mine)
        row, level = {e.notes["dial"]["name"]: f"{value:g}"}, next(iter(points.values()))["score"].mean()
        rows.append(row | {f"`{name}`": mean(found, "greedy", measure) for name, found in points.items()})
        soon.append(row | {f"`{name}`": steps_to(found, level) for name, found in points.items()})
    sizes = e.runs.drop_duplicates("scheme")
    if rows:
        rows.append({e.notes["dial"]["name"]: f"parameters beside `nps`, at {e.runs['dial'].iloc[0]:g}"})
        rows[-1] |= {f"`{name}`": f"{size:.2f}" for name, size in zip(sizes["scheme"], sizes["of_nps"], strict=True)}
    yield from markdown(rows, f"Greedy {spaced(measure)} at the end")
    first = e.runs["scheme"].iloc[0]
    yield from markdown(soon, f"Steps until greedy play is as good as that of `{first}` at the end, in the mean")


def overall(e: Experiment) -> Blocks:
    """All tasks together, if their results can be put together."""
    whole, measure, rows = everywhere(e.runs), metric_of(e.runs), []
    for scheme, mine in whole.items():
        x = scores(mine)
        row = {"scheme": f"`{scheme}`", "IQM": estimate(measure, stats.iqm, x)}
        row |= {"mean": estimate(measure, stats.mean, x), "gap to 1": number(float(stats.optimality_gap(x)))}
        for name, other in whole.items():
            if other["adapts"].all():
                row[f"P(`{name}` above)"] = "" if name == scheme else above(scores(other), x)
        rows.append(row)
    title = f"**All {e.runs['task'].nunique()} tasks together**"
    yield from markdown(rows, f"{title}: {spaced(measure)} of greedy play at the end")
    left = ", ".join(f"`{scheme}`" for scheme in e.runs["scheme"].unique() if scheme not in whole)
    if whole and left:
        yield f"Left out, since they did not run with as many seeds in every task: {left}."


def schemes(e: Experiment) -> Blocks:
    """Every scheme in every task."""
    for task, mine in by("task", e.runs).items():
        yield from markdown(scheme_rows(mine), f"**{task}**: {spaced(metric_of(mine))} at the end")


def scheme_rows(runs: pd.DataFrame) -> list[Row]:
    """Returns the row of each scheme in one task."""
    measure, exact = metric_of(runs), runs["ceiling_greedy"].notna().any()
    plays = PLAYS if runs[f"best_{measure}"].notna().all() else PLAYS[:2]
    most, rows = runs["scheme"].value_counts().max(), []
    for scheme, mine in by("scheme", runs).items():
        first, row = mine.iloc[0], {"scheme": f"`{scheme}`", "seeds": str(len(mine))}
        if most > 3:  # otherwise it is the mean
            row["greedy, IQM"] = estimate(measure, stats.iqm, scores(mine))
        row |= {f"{play}, mean": mean(mine, play, measure) for play in plays}
        if exact:
            known, apart = pd.notna(first["ceiling_greedy"]), (mine["score"] - first["ceiling_greedy"]).abs()
            pays = f"{number(first['ceiling_greedy'])}; {number(first['ceiling_sampled'])}"
            row["ceiling, greedy; sampled"] = pays if known else "not known"
            row["seeds at it"] = f"{(apart <= LANDS).sum()} of {len(mine)}" if known else ""
        elif runs["since"].notna().any():
            row["lowest after the switch, mean"] = lowest(mine)
        if first["bounded"]:
            row[f"steps to {f'{REACHED:.0%}' if measure == 'win_rate' else REACHED}"] = steps_to(mine)
        row["actors' parameters"] = f"{first['actors']:,}"
        row["of `nps`"] = f"{first['of_nps']:.2f}"
        row["optimiser, KiB"] = ", then ".join(f"{size / 1024:,.1f}" for size in first["optimizer_bytes"])
        rows.append(row)
    return rows


def lowest(runs: pd.DataFrame) -> str:
    """Returns the mean over seeds of the lowest evaluation after the step in column `since`."""
    rows = evaluations(runs).join(runs["since"])
    lows = rows[rows["step"] > rows["since"]].groupby(level=0)["value"].min()
    return number(lows.mean(), metric_of(runs)) if len(lows) else ""


def steps_to(runs: pd.DataFrame, level: float = REACHED) -> str:
    """Returns the median over seeds of the steps until a level, infinite if never, and how many seeds got there."""
    rows = evaluations(runs)
    first = rows[rows["value"] >= level].groupby(level=0)["step"].min()
    median = first.reindex(runs.index).fillna(math.inf).median()
    return f"{f'{median:,.0f}' if math.isfinite(median) else 'not reached'} ({len(first)} of {len(runs)})"


def comparisons(e: Experiment) -> Blocks:
    """Adapters against the schemes that continue the same shared policies, and against separate policies.

    Other adapters are compared with the baseline or the first ones alone, and restarted policies with those of the same
    learning rate.
    Single runs are left out, and so are games whose best result is known.
    """
    rows = []
    for task, mine in by("task", e.runs[e.runs["ceiling_greedy"].isna()]).items():
        points = list(by("scheme", mine).values())
        adapting = [point for point in points if (point["adapts"] | point["joint"]).all() and len(point) > 1]
        reference = next((point for point in adapting if point["baseline"].all()), adapting[0] if adapting else None)
        for adapted, other in product(adapting, points):
            rate, other_rate = (side["point"].iloc[0].get("ppo.adapter_lr") for side in (adapted, other))
            if (other["adapts"] | other["joint"]).all():
                asked = other is reference and other is not adapted
            else:
                asked = rate == other_rate or not other["switches"].any()
            rows += [{"task": task, **row} for row in compare(adapted, other)] if asked else []
    yield from markdown(rows, f"**Differences** in {spaced(metric_of(e.runs))}, greedy, at the end")


def compare(adapted: pd.DataFrame, other: pd.DataFrame) -> Iterator[Row]:
    """Yields one row if the two have shared policies in common, or if one of them is trained without any."""
    pairs, measure = pairs_of(adapted, other), metric_of(adapted)
    if not pairs.empty:
        x, y = pairs[["score"]].to_numpy(float), pairs[["score_other"]].to_numpy(float)
        difference = estimate(measure, stats.mean, x - y, sign="+")
        runs, p = f"{len(pairs)} pairs", f"{stats.sign_flip_p((x - y)[:, 0]):.2g}"
    elif other["separate"].all() or adapted["joint"].all() or other["joint"].all():
        x, y = scores(adapted), scores(other)
        difference = estimate(measure, lambda x, y: stats.mean(x) - stats.mean(y), x, y, sign="+")
        runs, p = f"{len(x)} and {len(y)}", ""
    else:
        return
    names = {name: f"`{side['scheme'].iloc[0]}`" for name, side in (("scheme", adapted), ("minus", other))}
    yield {**names, "runs": runs, "difference": difference, "p": p, "P(above)": above(x, y)}


def seeds(e: Experiment) -> Blocks:
    """Every scheme by itself, seed by seed."""
    source = sources_of(e.record["sources"]).iloc[0]
    seconds = e.runs.drop_duplicates(["source", "name"])["wall_seconds"].sum()
    for _, mine in e.runs.groupby(["task", "scheme"], sort=False):
        first, measure, rows = mine.iloc[0], metric_of(mine), []
        yield (
            f"{source['command']}: {first['task']}, preset `{e.record['preset']['name']}`, {few(mine['env_steps'])} "
            f"steps of each of the seeds {ranges(mine['seed'])}{switches_of(e.record['config'], mine)}. "
            f"At the end, over {few(mine['episodes'])} episodes per seed, with 95 % bootstrap intervals of the means "
            "over seeds:"
        )
        for play in (play for play in PLAYS if mine[f"{play}_return"].notna().all()):
            means = {spaced(kind): mean(mine, play, kind) for kind in ("return", "win_rate")}
            each = (number(v, measure).removesuffix(" %") for v in mine.sort_values("seed")[f"{play}_{measure}"])
            rows.append({"play": play, **means, f"{spaced(measure)} by seed": ", ".join(each)})
        yield from markdown(rows)
        yield (
            f"Uniformly random play returns {mine['random_return'].min():.2f} to {mine['random_return'].max():.2f}. "
            f"The command took {seconds:,.0f} s ({source['machine']}). A team's policies hold {first['actors']:,} "
            f"parameters; separate networks would hold {first['nps_actors']:,}."
        )


def switches_of(config: dict[str, Any], runs: pd.DataFrame) -> str:
    """Returns when the second phase of runs of one scheme began, in brackets; nothing if they have none."""
    first, counts = runs.iloc[0], runs["switch_step"].value_counts().sort_index()
    free = first["sharing"] == "lorasa_joint" or {**config, **first["point"]}.get("freeze_trunk") is False
    frozen = first["adapts"] and not free
    how = " by each seed's own curve" if config["switch_step"] == "auto" else ""
    steps = "; ".join(f"{n} at {step:,}" for step, n in counts.items())
    return f" ({'trunks frozen' if frozen else 'second phase'}{how}: {steps})" if steps else ""


def diagnosis(path: Path) -> Blocks:
    """What a diagnosis printed, word by word, with its command."""
    kept = paths.read_json(path)
    sources = sources_of(filter(None, (kept["trained_with"], kept["versions"])))
    yield "**What a diagnosis found**"
    yield "\n".join("* " + sources["command"] + ", commit " + sources["commit"])
    yield "\n".join(["```", *kept["said"], "```"])


# Parts on all experiments together.


def beside(runs: pd.DataFrame) -> Blocks:
    """Adapters beside shared and separate policies: means of greedy play at the end."""
    rows = []
    for title, points in overview(runs).items():
        adapters = first_adapters(points)
        measure, start = metric_of(adapters), adapters["switch_step"].fillna(0)
        row = {"task": f"{title}, {spaced(measure)}", "steps": few(pd.concat(points.values())["env_steps"])}
        row["adapters from"] = " to ".join(dict.fromkeys(f"{step:,}" for step in (start.min(), start.max())))
        row["seeds"] = few(map(len, points.values()))
        row |= {f"`{name}`": mean(points[name], "greedy", measure) if name in points else "" for name in SCHEMES}
        rows.append(row | {"parameters, adapters / `nps`": f"{adapters['of_nps'].iloc[0]:.2f}"})
    yield from markdown(rows)


def anchors(runs: pd.DataFrame, known: dict[str, Any]) -> Blocks:
    """What others measured, beside plain schemes and the first adapters of a task's first experiment."""
    rows, cited = [], {}
    first = runs["experiment"] == runs.groupby("title")["experiment"].transform("first")
    for title, mine in by("title", runs[first]).items():
        env, task = mine.iloc[0][["env", "task"]]
        adapters = mine[mine["adapts"]]["scheme"].head(1)
        shown = mine[(mine["scheme"] == mine["sharing"]) | mine["scheme"].isin(adapters)]
        for i, entry in enumerate(known["anchors"]):
            if entry["env"] != env or task not in entry["values"]:
                continue
            play, kind = entry.get("play", "greedy"), entry["quantity"]
            theirs = {who: v if isinstance(v, str) else number(v, kind) for who, v in entry["values"][task].items()}
            means = shown.groupby("scheme", sort=False)[f"{play}_{kind}"].mean()
            ours = "; ".join(f"`{scheme}` {number(value, kind)}" for scheme, value in means.items())
            row = {"task": title, "source": entry["source"], "quantity": spaced(kind)}
            row["theirs"] = "; ".join(map(" ".join, theirs.items()))
            rows.append(row | {"here": f"{ours}, {play}, at {shown['env_steps'].max():,} steps"})
            about = f"{known['sources'][entry['source']]} {entry['setting']} {entry['caveat']}"
            cited[i] = f"* {entry['source']}, {spaced(kind)} in `{env}`: {about}"
    yield from markdown(rows)
    yield "\n".join(cited[i] for i in sorted(cited))


def plan(runs: pd.DataFrame) -> Blocks:
    """What it would take to see a difference, at the spread and the speed that were measured."""
    rows = []
    for title, points in overview(runs).items():
        if "nps" not in points:
            continue
        adapters = first_adapters(points)
        pairs = pairs_of(adapters, points["ps_restart"]) if "ps_restart" in points else pd.DataFrame()
        separate, measure = points["nps"]["score"], metric_of(points["nps"])
        if min(len(pairs), len(separate)) < 2:
            continue
        difference = RESOLVED[measure] * (1 if measure == "win_rate" else abs(separate.mean()))
        paired = stats.runs_needed((pairs["score"] - pairs["score_other"]).var(), difference)
        unpaired = stats.runs_needed(adapters["score"].var() + separate.var(), difference)
        first = pd.concat([point.head(1) for point in points.values()])
        # The steps of a shared policy count once, for itself.
        shared = first["origin"].isin(points["ps_id"]["origin"]) * first["switch_step"].fillna(0) / first["env_steps"]
        speed = (first["steps"] / first["train_seconds"]).median()
        hours = DECISIVE_STEPS * (1 - shared).sum() / speed / 3600
        row = {"task": title, "difference": number(difference, measure).replace(" %", " points")}
        row |= {"seeds, to `ps_restart`": str(paired), "seeds, to `nps`": str(unpaired)}
        row |= {"hours a seed": f"{hours:.1f}", "hours in all": f"{max(paired, unpaired) * hours:,.0f}"}
        rows.append(row)
    yield from markdown(rows)


def teams() -> Blocks:
    """The trained teams of the library, with what each took and how well it plays."""
    rows = []
    for folder in sorted(path.parent for path in TRAINED.glob(f"*/{ABOUT}")):
        config, about = (paths.read_json(folder / name) for name in ("config.json", ABOUT))
        greedy, size = about["greedy"], sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        results = []
        for measure, found in ((name, greedy[name]) for name in ("win_rate", "return") if name in greedy):
            mean, *bounds = (number(value, measure) for value in (found["mean"], *found["interval"]))
            results.append(f"{spaced(measure)} {mean} [{', '.join(bounds).replace(' %', '')}]")
        row = {"name": f"`{folder.name}`", "game": f"{config['env']} {config['task']}", "scheme": config["sharing"]}
        row |= {"steps": f"{config['total_steps']:,}", "greedy play": ", ".join(results)}
        row |= {"episodes": str(greedy["episodes"]), "size": f"{size / 1000:.0f} KB"}
        rows.append(row | {"command": f"`{shlex.join(without_flags(about['command'], '--out'))}`"})
    yield from markdown(rows)


def cost(experiments: Iterable[Experiment]) -> Blocks:
    """What every experiment took."""
    rows = []
    for e in experiments:
        jobs, sources = e.runs.drop_duplicates(["source", "name"]), sources_of(e.record["sources"])
        steps, seconds, wall = jobs[["steps", "train_seconds", "wall_seconds"]].sum()
        row = {"experiment": e.name, "commands": "<br>".join(sources["command"].unique())}
        row |= {"commit": "<br>".join(sources["commit"].unique()), "runs": str(len(e.runs)), "programs": str(len(jobs))}
        row |= {"steps in all": f"{steps:,.0f}", "steps/s": f"{steps / seconds:,.0f}", "hours": f"{wall / 3600:.2f}"}
        rows.append(row | {"machine": "<br>".join(sources["machine"].unique())})
    yield from markdown(rows)
