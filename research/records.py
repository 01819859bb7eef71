"""Records of finished runs, and the table of all runs in them.

A record is one small file per experiment, `results/NAME/record.json`:

=============  ===================================================================================
`sources`      every command, at every commit that it ran at: command, packages, machine, commit
`config`       the settings of the first job, as nested sections
`preset`       its preset, and the settings that differ from that preset
`jobs`         the programs that ran, each with its `changes` (settings that differ from `config`),
               `steps` (of all its rows), seconds, and its `points`
=============  ===================================================================================

A point is one combination of the settings that vary. It has sizes, exact ceilings where the game has them, and `runs`,
one per seed. `results/NAME/notes.yaml`, written by hand, holds what a record cannot: the seeds that settings were
chosen on (`tuned_on`), and targets that were set before the runs (`targets`).

The table has one row per run:

* `experiment`; `env`, `task`, `algo`, and `title`, which is the task and any algorithm other than MAPPO.
* `scheme`, `sharing`, `point`: all settings that vary as text, the sharing scheme alone, and the settings by name.
* `origin`: job and seed of the shared policy that the run continues; of the run itself if it continues none.
* `seed`; `switch_step`, the start of its second phase (or missing); `env_steps`; `episodes` of each evaluation.
* `greedy_return`, ...: results at the end, each of `PLAYS` in each of `MEASURES`; NaN: not measured.
* `metric`, `score`, `random_return`: the measure that runs are compared by, its greedy value, and random play.
* `curve`: greedy evaluations (steps, value of the metric), with those of the shared policy before the switch.
* `actors`, `owners`, ..., `optimizer_bytes`: numbers of parameters (`count_params`), and bytes by phase.
* `ceiling_greedy`, `ceiling_sampled`: what the scheme can earn, exactly; NaN: not known.
* `job`, `source`, `steps`, `train_seconds`, `wall_seconds`, `changes`: the program, and its sums over all its rows.
* `bounded`: results lie between 0 and 1, so that tasks can be put together.
* `switches`, `adapts`, `separate`: the scheme has a second phase; it trains what agents own; agents share nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from lorasa_jax.config import ConfigError, changed_settings, require
from lorasa_jax.files import write_text

from research.commands import flags, paths, plan, saved, yaml_reader

if TYPE_CHECKING:
    from lorasa_jax.envs.base import EnvSpec

Record = dict[str, Any]
RECORD, NOTES = "record.json", "notes.yaml"
PLAYS = ("greedy", "sampled", "best")
"""How teams play at the end: the last team in two ways, and the best team greedily (`Best` in `running/state.py`)."""
MEASURES = ("win_rate", "return", "length")
WHERE = ("env", "task", "n_agents")
"""Settings of a point that say what it played, not how it learnt."""
OF_ROWS = ("sharing", "groups", *(name.replace("_", "-") for name in plan.ADAPTERS_ONLY))
"""Settings in which the rows of one program may differ, or that follow from its scheme."""
HOW = ("out", "gif", "track", "cache", "save_every", "shard", "seed", "seeds", "resume", "distributed", "plugins")
"""Settings that say how a command ran, or that differ from run to run."""


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
        name, record = path.parent.name, read_record(path)
        found[name] = Experiment(name, record, read_notes(path.with_name(NOTES)), table_of(name, record))
    require(bool(found), f"there is no {RECORD} in any folder of {folder}; add finished runs with --add")
    return found


def read_record(path: Path) -> Record:
    """Returns the record in a file; raises `ConfigError` if the file is damaged."""
    try:
        record: Record = json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f"{path} is no valid JSON; restore it, or add the experiment again") from None
    return record


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
    runs = pd.DataFrame(_rows(experiment, record))
    floats = [f"{play}_{measure}" for play in PLAYS for measure in MEASURES] + ["ceiling_greedy", "ceiling_sampled"]
    runs = runs.astype({"switch_step": "Int64", **dict.fromkeys(floats, float)})
    points = runs.groupby(["task", "scheme"], sort=False)
    for (task, scheme), mine in points:
        first, twice = mine["changes"].iloc[0], mine["seed"][mine["seed"].duplicated()]
        for setting, before, now in (found for other in mine["changes"] for found in changed_settings(first, other)):
            apart = f"{setting} {before}, and others with {now}"
            raise ConfigError(f"{experiment} holds runs of {scheme} in {task} with {apart}")
        require(twice.empty, f"{experiment} holds two runs of {scheme} in {task} with seed {twice.min()}")
    runs["bounded"] = runs["env"].isin(["smax", "toy"])
    runs["switches"] = points["switch_step"].transform("count") > 0
    runs["adapts"] = runs["switches"] & (runs["owners"] > 0)
    runs["separate"] = runs["actors"] == runs["nps_actors"]
    return runs


def _rows(experiment: str, record: Record) -> Iterator[dict[str, Any]]:
    found = [(job, point, run) for job in record["jobs"] for point in job["points"] for run in point["runs"]]
    curves = {(job["source"], job["name"], run["seed"]): run["curve"] for job, _, run in found}
    for job, point, run in found:
        label, pays = point["point"], point.get("ceiling") or {}
        algo = label.get("algo", job["changes"].get("algo", record["config"]["algo"]))
        task = label["task"] + (f", {label['n_agents']} agents" if label.get("n_agents") else "")
        varied = (f"{name} {saved.word(value)}" for name, value in label.items() if name not in (*WHERE, "sharing"))
        metric = "win_rate" if label["env"] == "smax" else "return"
        before = curves.get((job["source"], job["backbone"], run["seed"]), [])
        curve = [row for row in before if row[0] <= run["switch_step"]] + run["curve"]
        yield {
            "experiment": experiment,
            "env": label["env"],
            "task": task,
            "algo": algo,
            "title": task if algo == "mappo" else f"{task}, {algo}",
            "scheme": ", ".join([label["sharing"], *varied]),
            "sharing": label["sharing"],
            "point": label,
            "origin": f"{job['source']}/{job['backbone'] or job['name']}/{run['seed']}",
            **{name: run[name] for name in ("seed", "switch_step", "env_steps", "episodes", "random_return")},
            **{f"{play}_{kind}": run.get(play, {}).get(kind) for play in PLAYS for kind in MEASURES},
            "metric": metric,
            "score": run["greedy"][metric],
            "curve": [[step, wins if metric == "win_rate" else value] for step, wins, value in curve],
            **point["params"],
            "optimizer_bytes": point["optimizer_bytes"],
            **{f"ceiling_{play}": pays.get(play) for play in ("greedy", "sampled")},
            "job": job["name"],
            **{name: job[name] for name in ("source", "steps", "train_seconds", "wall_seconds")},
            "changes": {name: value for name, value in job["changes"].items() if name not in OF_ROWS},
        }


def make_record(directories: Sequence[Path], known: Record | None = None) -> Record:
    """Returns the record of finished runs and sweeps, which together are one experiment.

    Args:
        directories: where they are.
        known: an earlier record of the experiment, to which they are added. Their shared policies differ from those of
            the earlier runs, even for the same seed, so the table never pairs the two.

    Raises:
        ConfigError: a directory holds no run or sweep, or one that has not finished.
    """
    found = [_jobs_in(directory) for directory in directories]
    configs = {job: flags.read_config(flags.RunConfig, job / "config.json") for jobs in found for job in jobs}
    first = found[0][0]
    if known is None:
        preset = _beside_preset(configs[first], first / "config.json")
        known = {"sources": [], "config": _settings(configs[first]), "preset": preset, "jobs": []}
    jobs = [
        {"name": job.name, "source": i, **_job(job, configs, known["config"])}
        for i, jobs in enumerate(found, len(known["sources"]))
        for job in jobs
    ]
    return {**known, "sources": known["sources"] + _sources(found), "jobs": known["jobs"] + jobs}


def _jobs_in(directory: Path) -> list[Path]:
    """Returns the directory itself for a run, or those of its jobs, in order, for a sweep."""
    if (directory / "config.json").exists():
        jobs = [directory]
    else:
        jobs = [path.parent for path in directory.glob(f"*/{paths.ROWS}")]
        jobs.sort(key=lambda job: (int(re.match(r"\d*", job.name)[0] or 0), job.name))  # type: ignore[index]
    require(bool(jobs), f"there is neither a run nor a sweep in {directory}")
    for job in jobs:
        require((job / "summary.json").exists(), f"{job} has not finished; resume it, and add it once it has")
    return jobs


def _sources(found: Sequence[Sequence[Path]]) -> list[dict[str, Any]]:
    """Returns where each directory's first job comes from, then all other commands and commits of its jobs."""
    sources = [_source(jobs[0]) for jobs in found]
    for source in (_source(job) for jobs in found for job in jobs):
        if all((source["command"], source["commit"]) != (known["command"], known["commit"]) for known in sources):
            sources.append(source)
    return sources


def _source(job: Path) -> dict[str, Any]:
    versions = paths.read_json(job / "versions.json")
    resumed = len(versions.pop("resumed", []))
    words = ["python", *versions["command"][1:]]  # wherever that was
    for flag in ("--out", "--only"):  # where results were written, and how jobs were spread over processes
        if flag in words:
            words = words[: words.index(flag)] + words[words.index(flag) + 2 :]
    return {**versions, "command": words, **({"resumed": resumed} if resumed else {})}


def _settings(config: flags.RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {name: value for name, value in settings.items() if name not in HOW}


def _beside_preset(config: flags.RunConfig, path: Path) -> dict[str, Any]:
    """Returns a run's preset and the settings that differ from it, by flag.

    If the preset cannot be read any more, it is the default preset instead, and a line on stderr says so.
    """
    asked = {name: getattr(config, name) for name in ("env", "task", "algo", "preset")}
    try:
        preset = flags.parse_settings(flags.RunConfig, asked, path)
    except ConfigError as error:
        preset = flags.parse_settings(flags.RunConfig, asked | {"preset": flags.RunConfig.preset}, path)
        print(f"note: {error}; the record compares the settings with preset {preset.preset} instead", file=sys.stderr)
    changed = {name: now for name, _, now in changed_settings(_settings(preset), _settings(config))}
    own = ("sharing", "groups", "preset")
    return {"name": preset.preset, "changes": {name: value for name, value in changed.items() if name not in own}}


def _job(job: Path, configs: dict[Path, flags.RunConfig], base: dict[str, Any]) -> dict[str, Any]:
    config, summary = configs[job], paths.read_json(job / "summary.json")
    rows = saved.read_rows(job / "metrics.jsonl")
    changes = {name: now for name, _, now in changed_settings(base, _settings(config))}
    labels, in_sweep = saved.labels_of(job), (job / paths.ROWS).exists()
    where = {"env": config.env, "task": config.task, "sharing": config.sharing}
    if not in_sweep:  # then what sets the run apart from the first job says what it is
        where |= {name.replace("-", "_"): value for name, value in changes.items()}
    points: dict[str, dict[str, Any]] = {}
    for k, label in enumerate(labels):
        point = {name: value for name, value in (where | label).items() if name != "seed"}
        key = json.dumps(point)
        if key not in points:
            points[key] = {"point": point, **_sizes(saved.row_config(config, job, k)), "runs": []}
        points[key]["runs"].append(_run(k, label["seed"], summary, saved.rows_of(rows, label, labels)))
    forked = in_sweep and summary["switch_steps"][0] is not None
    return {
        "changes": changes,
        "backbone": _backbone(job, configs) if forked else None,
        "steps": len(rows) * config.steps_per_iteration,
        **{name: short(summary[name], 5) for name in ("train_seconds", "wall_seconds", "compile_seconds")},
        "points": list(points.values()),
    }


def _backbone(job: Path, configs: dict[Path, flags.RunConfig]) -> str | None:
    """Returns the job whose states the rows of this one started from."""
    from lorasa_jax.envs import make_env
    from lorasa_jax.running.forks import backbone_config

    config = saved.row_config(configs[job], job, 0)
    wanted = _settings(backbone_config(config, make_env(config)))
    beside = (other for other in configs if other.parent == job.parent)
    return next((other.name for other in beside if _settings(configs[other]) == wanted), None)


def _sizes(config: flags.RunConfig) -> dict[str, Any]:
    """Returns numbers of parameters, optimiser bytes of each phase, and for a toy game what it can pay."""
    from lorasa_jax.envs import make_env
    from lorasa_jax.learning.system import is_two_phase
    from lorasa_jax.learning.trainer import count_params, make_trainer, optimizer_bytes

    env = make_env(config)
    phases = [make_trainer(config, env, adapting=i > 0) for i in range(1 + is_two_phase(config, env))]
    sizes = {"params": count_params(phases[-1]), "optimizer_bytes": list(map(optimizer_bytes, phases))}
    return sizes | ({"ceiling": ceiling(config, env.spec)} if config.env == "toy" else {})


def ceiling(config: flags.RunConfig, spec: EnvSpec) -> dict[str, float] | None:
    """Returns what a scheme can earn in a toy game, greedy and sampled; None: not known."""
    from lorasa_jax.envs.toy import ceilings
    from lorasa_jax.sharing.schemes import make_sharing

    known, sharing, n = ceilings(config.task, config.n_agents), make_sharing(spec, config), spec.n_agents
    trunks = len(set(config.groups)) if config.groups else 1
    if spec.n_roles and "unit_type" not in sharing.stacks:
        trunks = 1  # the index of an agent does not say what it should do
    elif sharing.agent_id or sharing.levels or config.sharing == "nps" or trunks == n:
        return {"greedy": known.optimum, "sampled": known.optimum}
    if trunks == 1:
        return {"greedy": known.shared_greedy, "sampled": known.shared_sampled}
    # In own_number the agents of one trunk earn 1 among them, whatever its policy is.
    return {"greedy": trunks / n, "sampled": trunks / n} if config.task == "own_number" else None


def _run(k: int, seed: int, summary: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    seen, final = [row for row in rows if row.get("eval_return") is not None], summary["final"].items()
    return {
        "seed": seed,
        "env_steps": summary["env_steps"],
        "switch_step": summary["switch_steps"][k],
        "random_return": short(summary["random_return"][k]),
        "episodes": summary["eval_episodes"],
        **{play: {name: short(measured[name][k]) for name in MEASURES} for play, measured in final},
        "curve": [[row["env_steps"], short(row["eval_win_rate"], 4), short(row["eval_return"], 4)] for row in seen],
    }


def short(value: float, digits: int = 8) -> float:
    """Returns a number rounded to some digits, so that files stay small."""
    found = float(f"{value:.{digits}g}")
    return int(found) if found.is_integer() else found


def write_record(record: Record, path: Path) -> None:
    """Writes a record with one line per job, point and run, so that a diff shows what changed."""
    text = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in record.items())
    for beginning, indent in (('"name": "[^"]*", "source"', 2), ('"point"', 3), ('"seed"', 4)):
        text = re.sub(rf" ?(\{{{beginning}: )", rf"\n{indent * ' '}\1", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{{\n{text}\n}}\n")
