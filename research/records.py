"""Records of finished runs.

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
chosen on (`tuned_on`), targets that were set before the runs (`targets`), the number that sets each task apart, if
the tasks differ in one (`dial`: its `name`, its value in each of `tasks`, and the `title` of its panel), and in
ablations the `scheme` in which nothing is changed, with its values of the settings that others change (`baseline`).
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorasa_jax.cli import flags, paths, saved
from lorasa_jax.config import ConfigError, changed_settings, require
from lorasa_jax.envs import make_env
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.envs.toy import ceilings
from lorasa_jax.files import write_text
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import count_params, make_trainer, optimizer_bytes
from lorasa_jax.running.forks import backbone_config
from lorasa_jax.sharing.schemes import make_sharing

from research.runs import MEASURES, Record, table_of, without, without_flags

HOW = ("out", "gif", "track", "cache", "save_every", "shard", "seed", "seeds", "resume", "distributed", "plugins")
"""Settings that say how a command ran, or that differ from run to run."""


def add(directories: Sequence[Path], path: Path, more: bool) -> str:
    """Records finished runs as one experiment, instead of what its record held or beside it; returns what it did.

    Raises:
        ConfigError: a directory is no finished run, there is no record to add to, or it holds these runs already.
    """
    there = path.exists()
    require(there or not more, f"--more: there is no {path}; leave --more out, or give the experiment's --name")
    record = make_record(directories, paths.read_json(path) if more else None)
    table_of(path.parent.name, record)  # checks that its runs fit together
    write_record(record, path)
    return f"kept in {path}" + (", beside what was there" if more else ", in place of what was there" if there else "")


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
    if known is None:
        config, path = configs[found[0][0]], found[0][0] / "config.json"
        known = {"sources": [], "config": _settings(config), "preset": _beside_preset(config, path), "jobs": []}
    jobs = [
        {"name": job.name, "source": i, **_job(job, configs, known["config"])}
        for i, jobs in enumerate(found, len(known["sources"]))
        for job in jobs
    ]
    sources = [source for jobs in found for source in _sources(jobs)]
    return {**known, "sources": known["sources"] + sources, "jobs": known["jobs"] + jobs}


def _jobs_in(directory: Path) -> list[Path]:
    """Returns the directory itself for a run, or those of its jobs, in order, for a sweep."""
    jobs = [path.parent for path in directory.glob(f"*/{paths.ROWS}")]
    jobs.sort(key=lambda job: (len(job.name.partition("-")[0]), job.name))  # 10-nps after 9-ps
    if (directory / "config.json").exists():
        jobs = [directory]
    require(bool(jobs), f"there is neither a run nor a sweep in {directory}")
    for job in jobs:
        require((job / "summary.json").exists(), f"{job} has not finished; resume it, and add it once it has")
    return jobs


def _sources(jobs: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns every command and commit that the jobs of a directory come from."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for job in jobs:
        source = without(["resumed"], paths.read_json(job / "versions.json"))
        # Wherever Python was, results went, and jobs were spread to.
        source["command"] = without_flags(["python", *source["command"][1:]], "--out", "--only")
        found.setdefault((*source["command"], source["commit"]), source)
    return list(found.values())


def _settings(config: flags.RunConfig) -> dict[str, Any]:
    return without(HOW, json.loads(json.dumps(dataclasses.asdict(config), default=str)))


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
    changes = {name: now for name, _, now in changed_settings(_settings(preset), _settings(config))}
    return {"name": preset.preset, "changes": without(["sharing", "groups", "preset"], changes)}


def _job(job: Path, configs: dict[Path, flags.RunConfig], base: dict[str, Any]) -> dict[str, Any]:
    config, summary = configs[job], paths.read_json(job / "summary.json")
    changes = {name: now for name, _, now in changed_settings(base, _settings(config))}
    where, in_sweep = {name: getattr(config, name) for name in ("env", "task", "sharing")}, (job / paths.ROWS).exists()
    if not in_sweep:  # then what sets the run apart from the first job says what it is
        where |= {name.replace("-", "_"): value for name, value in changes.items()}
    labels, rows, points = saved.labels_of(job), saved.read_rows(job / "metrics.jsonl"), []
    for members in saved.points_of(labels).values():
        point = where | without(["seed"], labels[members[0]])
        runs = [_run(k, labels[k]["seed"], summary, saved.rows_of(rows, labels[k], labels)) for k in members]
        points.append({"point": point, **_sizes(saved.row_config(config, job, members[0])), "runs": runs})
    forked = in_sweep and summary["switch_steps"][0] is not None
    return {
        "changes": changes,
        "backbone": _backbone(job, configs) if forked else None,
        "steps": len(rows) * config.steps_per_iteration,
        **{name: short(summary[name], 5) for name in ("train_seconds", "wall_seconds", "compile_seconds")},
        "points": points,
    }


def _backbone(job: Path, configs: dict[Path, flags.RunConfig]) -> str | None:
    """Returns the job whose states the rows of this one started from."""
    config = saved.row_config(configs[job], job, 0)
    wanted = _settings(backbone_config(config, make_env(config)))
    beside = (other for other in configs if other.parent == job.parent)
    return next((other.name for other in beside if _settings(configs[other]) == wanted), None)


def _sizes(config: flags.RunConfig) -> dict[str, Any]:
    """Returns numbers of parameters, optimiser bytes of each phase, and for a toy game what it can pay."""
    env = make_env(config)
    phases = [make_trainer(config, env, adapting=i > 0) for i in range(1 + is_two_phase(config, env))]
    sizes = {"params": count_params(phases[-1]), "optimizer_bytes": list(map(optimizer_bytes, phases))}
    return sizes | ({"ceiling": ceiling(config, env.spec)} if config.env == "toy" else {})


def ceiling(config: flags.RunConfig, spec: EnvSpec) -> dict[str, float] | None:
    """Returns what a scheme can earn in a toy game, greedy and sampled; None: not known."""
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
