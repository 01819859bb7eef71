"""The table of all runs in the records, and what is taken from it.

The table has one row per run, with all that the record says of the run, its point and its job, and:

* `title`: the task and any algorithm other than MAPPO; `scheme`: the sharing scheme and all settings that vary.
* `origin`: job and seed of the shared policy that the run continues; of the run itself if it continues none.
* `greedy_return`, ...: results at the end, each of `PLAYS` in each of `MEASURES`; NaN: not measured.
* `metric`, `score`: the measure that runs are compared by, and its greedy value at the end.
* `curve`: greedy evaluations (steps, value of the metric), with those of the shared policy before the switch.
* `since`: the step of the switch; of a shared policy, the first switch of a run that continues it.
* `of_nps`: the share of parameters that actors have beside those of separate networks.
* `ceiling_greedy`, `ceiling_sampled`: what the scheme can earn, exactly; NaN: not known.
* `dial`: the number that sets the task apart from the others of its experiment, as its notes say; NaN: none.
* `bounded`: results lie between 0 and 1, so that tasks can be put together.
* `switches`, `adapts`, `separate`: the scheme has a second phase; it trains what agents own; agents share nothing.
* `baseline`: in the other adapters of its experiment one setting is changed; `unchanged` has the values that it has.
* `joint`: trunk and adapters are trained together in a single phase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lorasa_jax import yaml_reader
from lorasa_jax.cli import paths, plan, saved
from lorasa_jax.config import ConfigError, changed_settings, require

Record = dict[str, Any]
RECORD = "record.json"
PLAYS = ("greedy", "sampled", "best")
"""How teams play at the end: the last team in two ways, and the best team greedily (`Best` in `running/state.py`)."""
MEASURES = ("win_rate", "return", "length")
WHERE = ("env", "task", "n_agents", "sharing")
"""Settings of a point that its scheme does not repeat."""
OF_ROWS = ("sharing", "groups", *(name.replace("_", "-") for name in plan.ADAPTERS_ONLY))
"""Settings in which the rows of one program may differ, or that follow from its scheme."""
SCHEMES = ("ps_id", "ps_restart", "nps", "lorasa", "lorasa_joint")
"""What is compared in every task: a shared policy, the same with a fresh optimiser, separate policies, and adapters on
a frozen trunk or beside a free one."""


class Experiment(NamedTuple):
    """A record with its table, and the notes beside it."""

    name: str
    record: Record
    notes: dict[str, Any]
    runs: pd.DataFrame


def read_experiments(folder: Path) -> dict[str, Experiment]:
    """Returns all experiments in a folder, by name.

    Raises:
        ConfigError: there is none, a record is damaged, or its runs do not fit together.
    """
    found = {}
    for path in sorted(folder.glob(f"*/{RECORD}")):
        name, record, notes = path.parent.name, paths.read_json(path), read_notes(path.with_name("notes.yaml"))
        runs = table_of(name, record)
        runs["dial"] = runs["task"].map(notes.get("dial", {}).get("tasks", {})).astype(float)
        runs["dial_title"] = notes.get("dial", {}).get("title", name)
        runs = runs.sort_values("dial", ascending=False, kind="stable", ignore_index=True)  # also if it grew
        baseline = notes.get("baseline", {})
        runs["baseline"] = runs["scheme"] == baseline.get("scheme")
        runs["unchanged"] = [baseline] * len(runs)
        require(not baseline or runs["baseline"].any(), f"no run of {name} has the scheme {baseline.get('scheme')}")
        require(not baseline or runs["task"].nunique() == 1, f"{name} has a baseline, so it must have a single task")
        found[name] = Experiment(name, record, notes, runs)
    require(bool(found), f"there is no {RECORD} in any folder of {folder}; add finished runs with --add")
    return found


def read_notes(path: Path) -> dict[str, Any]:
    """Returns what a file written by hand holds; nothing if it does not exist."""
    return (yaml_reader.read_yaml(path) if path.exists() else None) or {}


def by(column: str, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the rows of every value of a column, in the order in which the values first appear."""
    return dict(iter(runs.groupby(column, sort=False)))


def table_of(experiment: str, record: Record) -> pd.DataFrame:
    """Returns the table of all runs in a record.

    Raises:
        ConfigError: two runs have the same scheme, task and seed, or runs of one scheme have different settings.
    """
    nested = ["points", "runs", "params", "ceiling", *PLAYS]  # whose values have columns of their own
    runs = pd.DataFrame(_rows(experiment, record)).drop(columns=nested, errors="ignore")
    floats = runs.filter(regex=f"^(ceiling|{'|'.join(PLAYS)})_").columns
    runs = runs.astype({"switch_step": "Int64", **dict.fromkeys(floats, float)})
    points = runs.groupby(["task", "scheme"], sort=False)
    for (task, scheme), mine in points:
        first, twice = mine["changes"].iloc[0], mine["seed"][mine["seed"].duplicated()]
        for setting, before, now in (found for other in mine["changes"] for found in changed_settings(first, other)):
            apart = f"{setting} {before}, and others with {now}"
            raise ConfigError(f"{experiment} holds runs of {scheme} in {task} with {apart}")
        require(twice.empty, f"{experiment} holds two runs of {scheme} in {task} with seed {twice.min()}")
    # A run without a switch counts from the first switch among the runs that continue it.
    switches = runs.dropna(subset="switch_step").drop_duplicates("origin").set_index("origin")["switch_step"]
    runs["since"] = runs["switch_step"].fillna(runs["origin"].map(switches)).astype(float)
    runs["of_nps"] = runs["actors"] / runs["nps_actors"]
    runs["bounded"] = runs["env"].isin(["smax", "toy"])
    runs["switches"] = points["switch_step"].transform("count") > 0
    runs["adapts"] = runs["switches"] & (runs["owners"] > 0)
    runs["joint"] = (runs["sharing"] == "lorasa_joint") & ~runs["switches"]
    runs["separate"] = runs["actors"] == runs["nps_actors"]
    return runs


def _rows(experiment: str, record: Record) -> Iterator[dict[str, Any]]:
    found = [(job, point, run) for job in record["jobs"] for point in job["points"] for run in point["runs"]]
    curves = {(job["source"], job["name"], run["seed"]): run["curve"] for job, _, run in found}
    for job, point, run in found:
        label = {"algo": record["config"]["algo"], **job["changes"], **point["point"]}
        task = label["task"] + (f", {label['n_agents']} agents" if label.get("n_agents") else "")
        varied = [f"{name} {saved.word(value)}" for name, value in point["point"].items() if name not in WHERE]
        wins, usual = label["env"] == "smax", record["config"].get("particles", {}).get("reward")
        paid = ["common reward"] if label.get("particles.reward", usual) == "team" else []
        before = curves.get((job["source"], job["backbone"], run["seed"]), [])
        curve = [row for row in before if row[0] <= run["switch_step"]] + run["curve"]
        yield {
            **{name: label[name] for name in ("env", "algo", "sharing")},
            **{**job, **point, **point["params"], **run},
            "experiment": experiment,
            "task": task,
            "title": ", ".join([task, *([] if label["algo"] == "mappo" else [label["algo"]]), *paid]),
            "scheme": ", ".join([label["sharing"], *varied]),
            "origin": f"{job['source']}/{job['backbone'] or job['name']}/{run['seed']}",
            **{f"{play}_{kind}": run.get(play, {}).get(kind) for play in PLAYS for kind in MEASURES},
            **{f"ceiling_{play}": (point.get("ceiling") or {}).get(play) for play in ("greedy", "sampled")},
            "metric": "win_rate" if wins else "return",
            "score": run["greedy"]["win_rate" if wins else "return"],
            "curve": [[step, won if wins else value] for step, won, value in curve],
            "changes": without(OF_ROWS, job["changes"]),
        }


def without(names: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def without_flags(words: Sequence[str], *flags: str) -> list[str]:
    """Returns the words of a command without some flags and their values."""
    return [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & {*flags}]


def everywhere(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the schemes that ran in every task with as many seeds; none if tasks cannot be put together."""
    if runs["task"].nunique() < 2 or not runs["bounded"].all():
        return {}
    seeds = runs.groupby(["scheme", "task"]).size().unstack(fill_value=0)
    return by("scheme", runs[runs["scheme"].map((seeds.nunique(axis=1) == 1) & seeds.all(axis=1))])


def overview(runs: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """Returns the runs of `SCHEMES` in the tasks where adapters and shared policies ran, by title.

    Adapters on a frozen trunk count only if separate policies ran, too. The first point of a sharing scheme stands for
    it. Left out are games whose best result is known, dials, experiments with a baseline, and `freeze_trunk` False. A
    title that several experiments have is followed by the experiment.
    """
    found = {}
    varied = runs.groupby("experiment")["baseline"].transform("any")
    freed = runs["point"].map(lambda point: point.get("freeze_trunk") is False)
    for where, mine in runs[runs["dial"].isna() & ~varied & ~freed].groupby(["experiment", "title"], sort=False):
        points = by("sharing", mine[mine["scheme"].isin(mine.drop_duplicates("sharing")["scheme"])])
        adapted = {"nps", "lorasa"} <= points.keys() or "lorasa_joint" in points
        if "ps_id" in points and adapted and mine["ceiling_greedy"].isna().all():
            found[where] = {scheme: points[scheme] for scheme in SCHEMES if scheme in points}
    titles = Counter(title for _, title in found)
    twice = {title for title, count in titles.items() if count > 1}
    return {title + f" ({name})" * (title in twice and title != name): of for (name, title), of in found.items()}


def first_adapters(points: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the runs of a task's adapters, those on a frozen trunk if there are any."""
    return points["lorasa" if "lorasa" in points else "lorasa_joint"]


def pairs_of(adapted: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs of two schemes that continue the same shared policy, from the same step if both switch."""
    both = adapted.merge(other, on="origin", suffixes=("", "_other"))
    return both[both["switch_step_other"].fillna(both["switch_step"]) == both["switch_step"]]


def evaluations(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each evaluation of each run, with step and value; a run's rows have its index."""
    rows = runs["curve"].explode()
    return pd.DataFrame(list(rows), rows.index, ["step", "value"])
