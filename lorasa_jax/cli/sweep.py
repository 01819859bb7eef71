"""Run a grid of settings: one pretraining, many continuations: python experiments/sweep.py FILE.yaml."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasa_jax.cli import plan
from lorasa_jax.cli.command import invocation, leave, optional, polite
from lorasa_jax.cli.flags import RunConfig, read_config, read_flags
from lorasa_jax.cli.launching import launch
from lorasa_jax.cli.page import write_page
from lorasa_jax.cli.paths import BACKBONES, ROWS, read_json, require_place
from lorasa_jax.cli.plan import Job
from lorasa_jax.cli.sweep_plan import SweepConfig, counted, env_of, is_done, make_plan, print_plan
from lorasa_jax.cli.sweep_tables import draw, print_results, write_table
from lorasa_jax.config import ConfigError, changed_settings, require
from lorasa_jax.surroundings import prepare

if TYPE_CHECKING:
    from lorasa_jax.envs import Env
    from lorasa_jax.running.state import Report, RunState


def run_job(job: Job, out: Path, go_on: str) -> None:
    """Runs the rest of a job in its own directory."""
    from lorasa_jax.cli import train as run
    from lorasa_jax.cli.run_dir import RunDir, write_json

    began = time.perf_counter()
    directory = out / job.name
    begun = (directory / "versions.json").exists()
    config = replace(job.config, out=directory, resume=directory if begun else None)
    env = env_of(config)
    rows = {"rows": [row.label for row in job.rows], "own": [row.own for row in job.rows]}
    with run.ready(config):
        run_dir = RunDir(directory, config, rows["rows"])
    with closing(run_dir):
        with run.ready(config):
            write_json(directory / ROWS, rows)
            start = run.find_start(config, env, run_dir, lambda: find_origins(job, out, env))
        run.fill(config, env, run_dir, ignore, start, began - run_dir.wall_seconds, go_on, [Keeper(job, directory)])


def ignore(row: dict[str, Any]) -> None:
    """Ignores a row."""


class Keeper:
    """The callback that saves the states that other jobs continue from."""

    def __init__(self, job: Job, directory: Path):
        self.job, self.directory = job, directory / BACKBONES

    def begin(self, state: RunState) -> None:
        """Saves the state if another job continues from it."""
        from lorasa_jax.storage.arrays import write
        from lorasa_jax.storage.checkpoints import take_snapshot

        if int(state.iterations.max()) in self.job.keep and not (self.directory / str(state.rows)).exists():
            write(self.directory, take_snapshot(state, self.job.config), keep=None)

    def __call__(self, report: Report, state: RunState) -> None:
        """Does the same after an iteration."""
        self.begin(state)


def find_origins(job: Job, out: Path, env: Env) -> RunState | None:
    """Returns the first state of a job of forks; None for other jobs."""
    from lorasa_jax.learning.switching import first_switch
    from lorasa_jax.running.forks import fork
    from lorasa_jax.storage.checkpoints import load

    if job.origin is None:
        return None
    name, places = job.origin
    origin = read_config(RunConfig, out / name / "config.json")

    @cache
    def kept(iteration: int) -> RunState:
        return load(out / name / BACKBONES / str(origin.seeds * iteration), origin, env)

    def at(config: RunConfig, k: int) -> RunState:
        choices = plan.switch_iterations(config)
        last = kept(choices[-1])
        if len(choices) == 1:
            return last
        step = first_switch(last.curve, k, last.random_return[k], config.total_steps, env.spec.winnable)
        return last if step is None else kept(step // config.steps_per_iteration)

    configs = [row.config for row in job.rows]
    return fork(configs, env, [(at(config, k), k) for config, k in zip(configs, places, strict=True)])


def require_unchanged(jobs: list[Job], out: Path) -> None:
    """Refuses to resume a sweep with other settings of started jobs, because their results belong to its points.

    Raises:
        ConfigError: a job in the folder was started with other settings.
    """
    elsewhere = "put the sweep's file back, or name another directory with --out"
    by_name = {job.name: job for job in jobs}
    for path in sorted(out.glob(f"*/{ROWS}")):
        directory, job = path.parent, by_name.get(path.parent.name)
        known = job is not None and read_json(path)["rows"] == [row.label for row in job.rows]
        require(
            known,
            f"{directory} was begun with other points than the sweep now has; {elsewhere}. If it was begun by an older "
            "version, --mix-switches True may fit",
        )
        if job is None or not (directory / "config.json").exists():
            continue
        before = read_config(RunConfig, directory / "config.json")
        for name, then, now in changed_settings(_settings(before), _settings(job.config)):
            raise ConfigError(f"{directory} was begun with {name} {then}, and the sweep now says {now}; {elsewhere}")


def _settings(config: RunConfig) -> dict[str, Any]:
    from lorasa_jax.storage.checkpoints import settings

    return settings(config)


def run_here(jobs: list[Job], out: Path, go_on: str) -> list[str]:
    """Runs jobs one after another; returns the names of failed jobs."""
    failed: list[str] = []
    for job in jobs:
        if is_done(out / job.name):
            continue
        if job.origin and job.origin[0] in failed:
            failed.append(job.name)
            continue
        print(f"{job.name}: {counted(len(job.rows), 'row')}")
        try:
            run_job(job, out, go_on)
        except SystemExit as stop:
            if stop.code != 2:  # stopped by a signal
                raise
            failed.append(job.name)
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = read_flags(SweepConfig, sys.argv[1:] if argv is None else argv)
        require_place(config.out)
        out, go_on = config.directory, shlex.join([*invocation(), *sys.argv[1:]])
        # Before any computation: a plan finds groups and traces environments.
        prepare(many=plan.read(config.file)[0].get("shard") != "off", keep=config.cache and not config.plan)
        jobs = make_plan(config)
        if config.plan:
            print_plan(jobs)
            return
        require_unchanged(jobs, out)
        if config.only is not None:
            names = [job.name for job in jobs]
            require(config.only in names, f"there is no job {config.only!r} in {config.file}; jobs: {', '.join(names)}")
            run_job(jobs[names.index(config.only)], out, go_on)
            return
        print_plan(jobs)
        failed = run_here(jobs, out, go_on) if config.launcher == "here" else launch(config, jobs, go_on)
        print_results(jobs, out)
        print(f"one row per point and seed: {write_table(jobs, out)}")
        with optional():
            draw(jobs, out / "curves.png")
            print(f"drawn: {out / 'curves.png'}")
        with optional():
            print(f"all on one page: {write_page(out)}")
        again = "run the same command again to go on"
        require(not failed, f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}; {again}")


if __name__ == "__main__":
    leave(main)
