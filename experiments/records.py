"""Records: what is kept of finished runs and sweeps, one small file for each experiment.

`results/NAME/record.json` holds

=============  ==========================================================================
`sources`      for every command, and every commit it ran at: the command, packages, machine, commit
`config`       the settings of the first job, as nested sections
`preset`       its preset, and the settings that differ from that preset
`jobs`         programs that were run, each with its `changes` (settings that differ from `config`),
               `steps` (done by all its rows), seconds, and its `points`
=============  ==========================================================================

A point is a setting of what varies, with sizes, exact ceilings where the game has them, and `runs`: one per seed.
What none of this says, such as the seeds that settings were chosen on and the targets set before, stands beside it
in `notes.yaml`, by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasa_jax.config import ConfigError, changed_settings, require

from plan import ADAPTERS_ONLY
from saved import word

RECORD, NOTES = "record.json", "notes.yaml"
PLAYS = ("greedy", "sampled", "best")
"""What is measured at the end: the last team twice, and greedy play of the best one (`lorasa_jax.run_state.Best`)."""
WHERE = ("env", "task", "n_agents")
"""What of a point says where it played, not how it learnt."""
OF_ROWS = ("sharing", "groups", *(name.replace("_", "-") for name in ADAPTERS_ONLY))
"""Settings of a program in which its rows may differ, or that follow from its scheme."""


@dataclass(frozen=True)
class Run:
    """One seed of one point.

    Attributes:
        seed: its number.
        origin: job and seed of the shared policy it is a continuation of: where nothing was continued, itself.
        switch_step: where it left that, or froze its own; None: never.
        env_steps: in all.
        episodes: of each evaluation.
        final: `greedy`, `sampled` and, unless the run is older than that, `best`: `win_rate`, `return`, `length`.
        curve: greedy evaluations (steps, win rate, return), those of the shared policy before the switch included.
        random_return: of random play.
    """

    seed: int
    origin: tuple[str, int]
    switch_step: int | None
    env_steps: int
    episodes: int
    final: dict[str, dict[str, float]]
    curve: list[tuple[int, float, float]]
    random_return: float


@dataclass(frozen=True)
class Point:
    """All seeds of one scheme, as it was set, in one task.

    Attributes:
        env: its environment.
        task: with the number of agents, where that was set.
        algo: the algorithm.
        name: the scheme, and what else sets it apart.
        params: numbers of parameters.
        optimizer_bytes: what the actors' optimiser keeps, by phase.
        ceiling: what it can earn, exactly, `greedy` and `sampled`; None: not known.
        steps_per_second: of all rows of its program.
        runs: by seed.
        adapter_lr: the learning rate of its second phase, where that was varied.
    """

    env: str
    task: str
    algo: str
    name: str
    params: dict[str, int]
    optimizer_bytes: list[int]
    ceiling: dict[str, float] | None
    steps_per_second: float
    runs: dict[int, Run]
    adapter_lr: float | None = None

    @property
    def scheme(self) -> str:
        """How parameters are shared, however else it is set."""
        return self.name.partition(",")[0]

    @property
    def switches(self) -> bool:
        """There is a second phase."""
        return any(run.switch_step is not None for run in self.runs.values())

    @property
    def adapts(self) -> bool:
        """Agents own something that is trained in a second phase."""
        return self.params["owners"] > 0 and self.switches

    @property
    def separate(self) -> bool:
        """Every agent has a network to itself."""
        return self.params["actors"] == self.params["nps_actors"]


@dataclass(frozen=True)
class Experiment:
    """A record, and the notes beside it.

    Attributes:
        name: of its directory.
        record: as it stands in the file.
        notes: by hand: `tuned_on`, `targets`.
        points: all of them.
    """

    name: str
    record: dict[str, Any]
    notes: dict[str, Any]
    points: list[Point]

    @property
    def by_task(self) -> dict[str, list[Point]]:
        """The points of each task."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.task, []).append(point)
        return found


def read_experiments(results: Path) -> dict[str, Experiment]:
    """Returns all experiments of a directory, by name."""
    return {path.parent.name: _read(path) for path in sorted(results.glob(f"*/{RECORD}"))}


def _read(path: Path) -> Experiment:
    import yaml

    record, notes = read_record(path), path.with_name(NOTES)
    known = (yaml.safe_load(notes.read_text()) if notes.exists() else None) or {}
    return Experiment(path.parent.name, record, known, points_of(record, path))


def read_record(path: Path) -> dict[str, Any]:
    """Returns a record as it stands in its file; raises `ConfigError` where that is damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f"{path} is no valid JSON; put it back, or add the experiment again") from None
    return record


def points_of(record: dict[str, Any], path: Path) -> list[Point]:
    """Returns all points of a record, which is or will be in a file.

    Raises:
        ConfigError: two runs are of the same setting and seed, or runs of one name were set otherwise.
    """
    points: dict[tuple[str, str], Point] = {}
    set_as: dict[tuple[str, str], dict[str, Any]] = {}
    for job, point, runs in _flat(record):
        varied = {name: value for name, value in point["point"].items() if name not in (*WHERE, "sharing")}
        agents = point["point"].get("n_agents")
        task = point["point"]["task"] + (f", {agents} agents" if agents else "")
        name = ", ".join([point["point"]["sharing"], *(f"{key} {word(value)}" for key, value in varied.items())])
        whole = points.setdefault(
            (task, name),
            Point(
                env=point["point"]["env"],
                task=task,
                algo=point["point"].get("algo", job["changes"].get("algo", record["config"]["algo"])),
                name=name,
                params=point["params"],
                optimizer_bytes=point["optimizer_bytes"],
                ceiling=point.get("ceiling"),
                steps_per_second=job["steps"] / job["train_seconds"],
                runs={},
                adapter_lr=point["point"].get("ppo.adapter_lr"),
            ),
        )
        settings = {name: value for name, value in job["changes"].items() if name not in OF_ROWS}
        for setting, before, now in changed_settings(set_as.setdefault((task, name), settings), settings):
            raise ConfigError(f"{path} holds runs of {name} in {task} with {setting} {before}, and others with {now}")
        for run in runs:
            require(run.seed not in whole.runs, f"{path} holds two runs of {name} in {task} with seed {run.seed}")
            whole.runs[run.seed] = run
    return list(points.values())


def _flat(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[Run]]]:
    curves = {
        (job["source"], job["name"], run["seed"]): run["curve"]
        for job in record["jobs"]
        for point in job["points"]
        for run in point["runs"]
    }
    for job in record["jobs"]:
        for point in job["points"]:
            runs = []
            for run in point["runs"]:
                begun = curves.get((job["source"], job["backbone"], run["seed"]), [])
                before = [row for row in begun if row[0] <= run["switch_step"]] if job["backbone"] else []
                runs.append(
                    Run(
                        seed=run["seed"],
                        origin=(f"{job['source']}/{job['backbone'] or job['name']}", run["seed"]),
                        switch_step=run["switch_step"],
                        env_steps=run["env_steps"],
                        episodes=run["episodes"],
                        final={play: run[play] for play in PLAYS if play in run},
                        curve=[tuple(row) for row in (*before, *run["curve"])],
                        random_return=run["random_return"],
                    )
                )
            yield job, point, runs
