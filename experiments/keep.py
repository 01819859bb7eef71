"""From finished runs and sweeps to a record of them (`records.py` says what that is)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasa_jax.config import Config, changed_settings, require

from cli import ROWS, RunConfig, parse_settings, read_config
from saved import Label, labels_of, row_config, rows_of

if TYPE_CHECKING:
    from lorasa_jax.envs import Env

HOW = ("out", "gif", "track", "cache", "save_every", "shard", "seed", "seeds")
"""Settings that say how a command ran, or that every run has of its own."""


def make_record(directories: Sequence[Path], known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the record of finished runs and sweeps, which together are one experiment.

    Args:
        directories: where they are.
        known: an earlier record of the experiment, to which they come; None: there is none. As its shared policies are
            not theirs, even of the same seed, nothing of the one is paired with anything of the other.

    Raises:
        ConfigError: something is no run or sweep, or was begun and has not finished.
    """
    found = [(i, job) for i, directory in enumerate(directories) for job in _jobs_in(directory)]
    configs = {job: read_config(RunConfig, job / "config.json") for _, job in found}
    first = configs[found[0][1]]
    known = known or {"sources": [], "config": _settings(first), "preset": _beside_preset(first), "jobs": []}
    base, n = known["config"], len(known["sources"])
    jobs = [{"name": job.name, "source": n + i, **_job(job, configs, base)} for i, job in found]
    return {**known, "sources": known["sources"] + _sources(found, len(directories)), "jobs": known["jobs"] + jobs}


def _jobs_in(directory: Path) -> list[Path]:
    """The directories of the programs behind a run (itself) or of a sweep, as far as that was begun, in its order."""
    if (directory / "config.json").exists():
        jobs = [directory]
    else:
        jobs = [path.parent for path in directory.glob(f"*/{ROWS}")]
        jobs.sort(key=lambda job: (int(re.match(r"\d*", job.name)[0] or 0), job.name))  # type: ignore[index]
    require(bool(jobs), f"there is neither a run nor a sweep in {directory}")
    for job in jobs:
        require(
            (job / "summary.json").exists(),
            f"{job} has not finished; go on with it, and add it then (a record holds what has spent its budget)",
        )
    return jobs


def _sources(found: Sequence[tuple[int, Path]], n: int) -> list[dict[str, Any]]:
    """What each directory comes from, by its number, and behind these whatever else jobs in them come from."""
    sources = [_source(next(job for i, job in found if i == k)) for k in range(n)]
    for source in (_source(job) for _, job in found):
        if all((source["command"], source["commit"]) != (known["command"], known["commit"]) for known in sources):
            sources.append(source)
    return sources


def _source(job: Path) -> dict[str, Any]:
    versions = json.loads((job / "versions.json").read_text())
    resumed = len(versions.pop("resumed", []))
    words = versions["command"]
    for flag in ("--out", "--only"):  # where it was written, and whether jobs ran one by one, is nobody else's business
        if flag in words:
            words = words[: words.index(flag)] + words[words.index(flag) + 2 :]
    return {**versions, "command": words, **({"resumed": resumed} if resumed else {})}


def _settings(config: RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {name: value for name, value in settings.items() if name not in (*HOW, "resume", "distributed")}


def _beside_preset(config: RunConfig) -> dict[str, Any]:
    """The preset, and what is set otherwise, by flag."""
    asked = {name: getattr(config, name) for name in ("env", "task", "algo", "preset")}
    preset = _settings(parse_settings(RunConfig, asked, Path(config.preset)))
    changed = {name: now for name, _, now in changed_settings(preset, _settings(config))}
    return {
        "name": config.preset,
        "changes": {name: v for name, v in changed.items() if name not in ("sharing", "groups")},
    }


def _job(job: Path, configs: dict[Path, RunConfig], base: dict[str, Any]) -> dict[str, Any]:
    config, summary = configs[job], json.loads((job / "summary.json").read_text())
    rows = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    changes = {name: now for name, _, now in changed_settings(base, _settings(config))}
    labels = _labels(job, config, changes)
    points: dict[str, dict[str, Any]] = {}
    for k, label in enumerate(labels):
        point = {name: value for name, value in label.items() if name != "seed"}
        if json.dumps(point) not in points:
            points[json.dumps(point)] = {"point": point, **_sizes(row_config(config, job, k)), "runs": []}
        mine = rows_of(rows, labels_of(job)[k], labels_of(job))
        points[json.dumps(point)]["runs"].append(_run(k, labels_of(job)[k]["seed"], summary, mine))
    forked = (job / ROWS).exists() and summary["switch_steps"][0] is not None
    # Summaries count the steps of backbones as those of their forks.
    seconds = summary.get("train_seconds", summary["env_steps"] * len(labels) / summary["steps_per_second"])
    return {
        "changes": changes,
        "backbone": _backbone(job, configs) if forked else None,
        "steps": len(rows) * config.steps_per_iteration,
        "train_seconds": short(seconds, 5),
        "wall_seconds": short(summary["wall_seconds"], 5),
        "compile_seconds": short(summary["compile_seconds"], 5),
        "points": list(points.values()),
    }


def _labels(job: Path, config: RunConfig, changes: dict[str, Any]) -> list[Label]:
    """What the rows of a job are known by; where a sweep does not say so, by what sets the run apart from the first."""
    apart = {name.replace("-", "_"): value for name, value in changes.items()} if not (job / ROWS).exists() else {}
    where = {"env": config.env, "task": config.task, "sharing": config.sharing}
    return [{"seed": label["seed"], **where, **apart, **label} for label in labels_of(job)]


def _bare(config: RunConfig) -> RunConfig:
    """The configuration without what says how a command ran."""
    default = RunConfig()
    return replace(config, resume=None, distributed=False, **{name: getattr(default, name) for name in HOW})


def _backbone(job: Path, configs: dict[Path, RunConfig]) -> str | None:
    """The job whose states the forks of this one went on from."""
    from lorasa_jax.forks import backbone_config

    config = _bare(row_config(configs[job], job, 0))
    wanted = backbone_config(config, env_of(config))
    beside = (other for other in configs if other.parent == job.parent)
    return next((other.name for other in beside if _bare(configs[other]) == wanted), None)


@cache
def env_of(config: Config) -> Env:
    """Returns the environment of a configuration."""
    from lorasa_jax.envs import make_env

    return make_env(config)


def _sizes(config: RunConfig) -> dict[str, Any]:
    """Parameters, bytes that the actors' optimiser keeps in each phase, and what a toy game can pay."""
    from lorasa_jax.system import is_two_phase
    from lorasa_jax.trainer import count_params, make_trainer, optimizer_bytes

    env = env_of(config)
    phases = [
        make_trainer(config, env, adapting=phase) for phase in ([False, True] if is_two_phase(config, env) else [False])
    ]
    return {
        "params": count_params(phases[-1]),
        "optimizer_bytes": [optimizer_bytes(phase) for phase in phases],
        **({"ceiling": _ceiling(config, env)} if config.env == "toy" else {}),
    }


def _ceiling(config: RunConfig, env: Env) -> dict[str, float] | None:
    """What the scheme can earn in a toy game, greedy and sampled; None where that is not known."""
    from lorasa_jax.envs.toy import ceilings
    from lorasa_jax.sharing import make_sharing

    known, sharing, n = ceilings(config.task, config.n_agents), make_sharing(env.spec, config), env.spec.n_agents
    trunks = len(set(config.groups)) if config.groups else 1
    if env.spec.n_roles and not (sharing.levels and "unit_type" in config.adapter_key.split(",")):
        trunks = 1  # who an agent is says nothing of what it should do
    elif sharing.agent_id or sharing.levels or config.sharing == "nps" or trunks == n:
        return {"greedy": known.optimum, "sampled": known.optimum}
    if trunks == 1:
        return {"greedy": known.shared_greedy, "sampled": known.shared_sampled}
    # In own_number a policy of several agents earns 1 among them, whatever it is.
    return {"greedy": trunks / n, "sampled": trunks / n} if config.task == "own_number" else None


def _run(k: int, seed: int, summary: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    seen = [row for row in rows if row.get("eval_return") is not None]
    return {
        "seed": seed,
        "env_steps": summary["env_steps"],
        "switch_step": summary["switch_steps"][k],
        "random_return": short(summary["random_return"][k]),
        "episodes": summary["eval_episodes"],
        **{
            play: {name: short(final[name][k]) for name in ("win_rate", "return", "length")}
            for play, final in summary["final"].items()
        },
        "curve": [[row["env_steps"], short(row["eval_win_rate"], 4), short(row["eval_return"], 4)] for row in seen],
    }


def short(value: float, digits: int = 8) -> float:
    """Returns a number with so many digits; what a file of small size needs."""
    found = float(f"{value:.{digits}g}")
    return int(found) if found.is_integer() else found


def write_record(record: dict[str, Any], path: Path) -> None:
    """Writes a record with one line per run, so that changes can be read."""
    jobs = []
    for job in record["jobs"]:
        points = []
        for point in job["points"]:
            runs = ",\n    ".join(map(json.dumps, point["runs"]))
            head = json.dumps({name: value for name, value in point.items() if name != "runs"})
            points.append(f'   {head[:-1]}, "runs": [\n    {runs}]}}')
        head = json.dumps({name: value for name, value in job.items() if name != "points"})
        jobs.append(f'  {head[:-1]}, "points": [\n' + ",\n".join(points) + "]}")
    head = "".join(f' "{name}": {json.dumps(value)},\n' for name, value in record.items() if name != "jobs")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + head + ' "jobs": [\n' + ",\n".join(jobs) + "]\n}\n")
