"""Run a grid of settings: one pretraining, many continuations: python experiments/sweep.py FILE.yaml."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lorasa_jax.cli import plan
from lorasa_jax.cli.flags import (
    BACKBONES,
    ROWS,
    RunConfig,
    invocation,
    leave,
    optional,
    polite,
    read_config,
    read_flags,
    read_json,
    require_place,
)
from lorasa_jax.cli.plan import Job
from lorasa_jax.cli.saved import measures, read_rows, rows_of, word
from lorasa_jax.cli.streams import complain
from lorasa_jax.cli.train import Stop
from lorasa_jax.config import Config, ConfigError, changed_settings, require
from lorasa_jax.files import whole
from lorasa_jax.surroundings import prepare

if TYPE_CHECKING:
    from lorasa_jax.envs import Env
    from lorasa_jax.running.state import Report, RunState


@dataclass(frozen=True)
class SweepConfig:
    """Run every point of a grid, each shared policy trained once. A sweep that was stopped goes on when run again."""

    file: Annotated[Path, tyro.conf.Positional]
    """YAML file: `base`, the settings of all points, and `grids`, lists whose product is run."""
    out: Path | None = None
    """Directory of the results; not given: runs/NAME, after the file."""
    launcher: Literal["here", "local", "slurm"] = "here"
    """here: one job after the other; local, slurm: all that can run at once, through submitit."""
    cluster: tuple[str, ...] = ()
    """Options of the launcher as name=value, such as timeout_min=600 slurm_partition=gpu gpus_per_node=1."""
    plan: bool = False
    """Only print what would run, and in how many programs."""
    only: str | None = None
    """Run a single job, by its name (which is what the launchers do)."""
    save_every: float = 60.0
    """Seconds between two checkpoints, at least; 0: one after every iteration."""
    cache: bool = True
    """Keep compiled programs in the user's cache directory."""

    @property
    def directory(self) -> Path:
        """Where the results go."""
        return self.out or Path("runs") / self.file.stem


@cache
def _env(settings: Config) -> Env:
    from lorasa_jax.envs import make_env

    return make_env(settings)


def env_of(config: Config) -> Env:
    """Returns the environment of a configuration; the same one for the same settings."""
    names = ("env", "task", "n_agents", "time_limit", "smax", "mabrax", "jaxmarl")
    return _env(Config(**{name: getattr(config, name) for name in names}))


def make_plan(config: SweepConfig) -> list[Job]:
    """Returns the jobs of a sweep."""
    from lorasa_jax.learning.clustering import with_groups
    from lorasa_jax.learning.system import is_two_phase
    from lorasa_jax.learning.trainer import make_trainer

    base, points = plan.read(config.file)
    configs: dict[tuple[frozenset[str], RunConfig], plan.Point] = {}
    for point in points:  # the same names with the same values, however written, are one point
        configs.setdefault((frozenset(point), plan.configure(config.file, base, point)), point)
    configured = []
    for (_, found), point in configs.items():
        env = env_of(found)
        found = replace(with_groups(found, env, print), save_every=config.save_every, cache=config.cache)
        make_trainer(found, env, adapting=is_two_phase(found, env))  # says what does not fit
        configured.append((point, found))
    return plan.make_jobs(env_of, configured)


def print_plan(jobs: list[Job]) -> None:
    """Says what runs, and in how many programs."""
    for job in jobs:
        steps, after = job.config.iterations * job.config.steps_per_iteration, ""
        if job.origin:
            after = f", from {job.origin[0]}"
        print(f"{job.name}: {counted(len(job.rows), 'row')} to {steps:,} steps{after}")
        for point in {json.dumps(row.point): row.point for row in job.rows}.values():
            print(f"    {_words(point)}  ({counted(sum(row.point == point for row in job.rows), 'seed')})")
    if len({job.origin[0] for job in jobs if job.origin}) < sum(job.origin is not None for job in jobs):
        print(
            "forks of one job are several programs where they differ in more than seed, switch step, learning rate, "
            "rank and placement, or where a rank as large as a layer gives other layers full rank"
        )
    print(f"{counted(sum(len(job.rows) for job in jobs), 'row')} in {counted(len(jobs), 'program')}")


def counted(n: int, noun: str) -> str:
    """Returns a number of things."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _words(point: plan.Point) -> str:
    return "  ".join(f"{name}={word(value)}" for name, value in point.items())


def run_job(job: Job, out: Path, go_on: str) -> None:
    """Runs what is left of a job, in a directory of its own."""
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
    """Takes a row, and does nothing."""


class Keeper:
    """The callback that keeps the states that others go on from."""

    def __init__(self, job: Job, directory: Path):
        self.job, self.directory = job, directory / BACKBONES

    def begin(self, state: RunState) -> None:
        """Keeps the state if another job begins there."""
        from lorasa_jax.storage.arrays import write
        from lorasa_jax.storage.checkpoints import take_snapshot

        if int(state.iterations.max()) in self.job.keep and not (self.directory / str(state.rows)).exists():
            write(self.directory, take_snapshot(state, self.job.config), keep=None)

    def __call__(self, report: Report, state: RunState) -> None:
        """Does the same after an iteration."""
        self.begin(state)


def find_origins(job: Job, out: Path, env: Env) -> RunState | None:
    """Returns the state that a job of forks begins in; None where a job begins from the start."""
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
    """A sweep goes on only as it began, down to the jobs that are done: their results stand for its points.

    Raises:
        ConfigError: something in the folder was begun otherwise.
    """
    elsewhere = "put the sweep's file back, or name another directory with --out"
    by_name = {job.name: job for job in jobs}
    for path in sorted(out.glob(f"*/{ROWS}")):
        directory, job = path.parent, by_name.get(path.parent.name)
        known = job is not None and read_json(path)["rows"] == [row.label for row in job.rows]
        require(known, f"{directory} was begun with other points than the sweep now has; {elsewhere}")
        if job is None or not (directory / "config.json").exists():
            continue
        before = read_config(RunConfig, directory / "config.json")
        for name, then, now in changed_settings(_settings(before), _settings(job.config)):
            raise ConfigError(f"{directory} was begun with {name} {then}, and the sweep now says {now}; {elsewhere}")


def _settings(config: RunConfig) -> dict[str, Any]:
    from lorasa_jax.storage.checkpoints import settings

    return settings(config)


def run_here(jobs: list[Job], out: Path, go_on: str) -> list[str]:
    """Runs jobs one after the other; returns the names of those that failed."""
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
            if stop.code != 2:  # stopped from outside
                raise
            failed.append(job.name)
    return failed


def is_done(directory: Path) -> bool:
    """Says whether a job has left its summary."""
    return (directory / "summary.json").exists()


YEAR = 365 * 24 * 60
"""In minutes: how long a local job may take, where --cluster does not say."""


def launch(config: SweepConfig, jobs: list[Job], go_on: str) -> list[str]:
    """Runs jobs through submitit, each as soon as its backbone is there; returns the names of those that failed.

    A signal that stops the sweep stops local jobs, too, which save and end before it does.
    """
    executor, command = _executor(config)
    out, local = config.directory, config.launcher == "local"
    waiting = [job for job in jobs if not is_done(out / job.name)]
    running: dict[str, Any] = {}
    failed: list[str] = []
    stop = Stop("stopping when the jobs have saved" if local else "stopping")
    with stop:
        try:
            while (waiting or running) and not stop.signal:
                for job in list(waiting):
                    if job.origin and job.origin[0] in failed:
                        waiting.remove(job)
                        failed.append(job.name)
                    elif not job.origin or is_done(out / job.origin[0]):
                        waiting.remove(job)
                        with _own_signals():
                            running[job.name] = executor.submit(command(_command(config, job), Path.cwd()))
                        print(f"{job.name}: submitted as {running[job.name].job_id}")
                for name in [name for name, submitted in running.items() if submitted.done()]:
                    errors = running.pop(name).paths.stderr
                    print(f"{name}: {'done' if is_done(out / name) else f'failed; see {errors}'}")
                    if not is_done(out / name):
                        failed.append(name)
                time.sleep(1)
        finally:
            if local:
                _end(running.values())
    if stop.signal:
        left = "were stopped" if local else "go on in the cluster"
        complain(f"stopped; the jobs that ran ({', '.join(running) or 'none'}) {left}; go on with: {go_on}")
        raise SystemExit(128 + stop.signal)
    return failed


def _executor(config: SweepConfig) -> tuple[Any, type]:
    """What takes jobs, and the class of those jobs."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError(
            f"--launcher {config.launcher} needs the package submitit: pip install -c constraints.txt -e '.[cluster]'"
        ) from None

    class Command(submitit.helpers.Checkpointable):
        """A command that gets the SIGTERM of its job, saves and ends; so it does where its machine is taken from it,
        which is another exception, and then begins again."""

        def __init__(self, words: list[str], folder: Path):
            self.words, self.folder = words, folder

        def __call__(self) -> None:
            def end(number: int, frame: object) -> None:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise SystemExit(128 + signal.SIGTERM)

            signal.signal(signal.SIGTERM, end)
            with subprocess.Popen(self.words, cwd=self.folder) as process:
                try:
                    status = process.wait()
                finally:
                    process.terminate()
            if status:
                raise subprocess.CalledProcessError(status, self.words)

    options = ({"timeout_min": YEAR} if config.launcher == "local" else {}) | _options(config.cluster)
    try:
        executor = submitit.AutoExecutor(folder=config.directory / "logs", cluster=config.launcher)
        executor.update_parameters(**options)
    except (RuntimeError, ValueError, NameError) as error:
        raise ConfigError(f"--launcher {config.launcher}: {' '.join(str(error).split())}") from None
    return executor, Command


@contextmanager
def _own_signals() -> Iterator[None]:
    """Lets what starts in the block not have the signals that a terminal sends to every process in it: only the sweep
    acts on them, so that a job ends in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(running: Collection[Any]) -> None:
    """Stops local jobs and waits until they have ended; their numbers are those of processes that hand on SIGTERM."""
    for submitted in running:
        os.kill(int(submitted.job_id), signal.SIGTERM)
    while not all(submitted.done() for submitted in running):
        time.sleep(0.1)


def _command(config: SweepConfig, job: Job) -> list[str]:
    here = [sys.executable, "-m", "lorasa_jax.cli.sweep", str(config.file), "--out", str(config.directory)]
    return [*here, "--only", job.name, "--save-every", str(config.save_every), "--cache", str(config.cache)]


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Options as submitit takes them: numbers where they are numbers."""
    options: dict[str, Any] = {}
    for option in words:
        name, equals, value = option.partition("=")
        require(bool(equals), f"--cluster takes options as name=value, got {option!r}")
        options[name] = int(value) if value.isdecimal() else value
    return options


def write_table(jobs: list[Job], out: Path) -> Path:
    """Writes one row per point and seed that has been run, and returns where."""
    from lorasa_jax.learning.system import is_two_phase
    from lorasa_jax.learning.trainer import count_params, make_trainer

    @cache
    def sizes(config: RunConfig) -> dict[str, int]:
        env = env_of(config)
        return count_params(make_trainer(config, env, adapting=is_two_phase(config, env)))

    rows = []
    for job in jobs:
        if not is_done(out / job.name):
            continue
        summary = read_json(out / job.name / "summary.json")
        for k, row in enumerate(job.rows):
            params = sizes(replace(row.config, seed=0))
            rows.append(
                {
                    "job": job.name,
                    **{name: word(value) for name, value in row.point.items()},
                    "seed": row.config.seed,
                    "switched_at": summary["switch_steps"][k],
                    "env_steps": summary["env_steps"],
                    **{
                        f"{play}_{name}": values[k]
                        for play, final in summary["final"].items()
                        for name, values in final.items()
                    },
                    "eval_episodes": summary["eval_episodes"],
                    **{f"params_{name}": params[name] for name in ("shared", "per_agent", "actors")},
                }
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "table.csv"
    with whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def print_results(jobs: list[Job], out: Path) -> None:
    """Says how every point that has been run plays at the end: means over its seeds."""
    for job in (job for job in jobs if is_done(out / job.name)):
        final = read_json(out / job.name / "summary.json")["final"]
        points: dict[str, list[int]] = {}
        for k, row in enumerate(job.rows):
            points.setdefault(_words(row.point), []).append(k)
        for words, rows in points.items():
            means = [
                f"{play} {name.replace('_', ' ')} {sum(final[play][name][k] for k in rows) / len(rows):{form}}"
                for play in ("greedy", "sampled")
                for name, form in measures(env_of(job.config).spec.winnable)
            ]
            print(f"{words}: {'  '.join(means)}  ({counted(len(rows), 'seed')})")


def curves(jobs: list[Job], out: Path, name: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns the greedy evaluations of every point: steps, and means over its seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for job in jobs:
        rows = read_rows(out / job.name / "metrics.jsonl")
        labels = [row.label for row in job.rows]
        for label in labels:
            point = {key: word(value) for key, value in label.items() if key != "seed"}
            words = ", ".join(value if key == "sharing" else f"{key} {value}" for key, value in point.items())
            for row in rows_of(rows, label, labels):
                if row.get(f"eval_{name}") is not None:
                    found.setdefault(words, {}).setdefault(row["env_steps"], []).append(row[f"eval_{name}"])
    return {
        point: (sorted(values), [sum(values[step]) / len(values[step]) for step in sorted(values)])
        for point, values in found.items()
    }


def draw(jobs: list[Job], path: Path) -> None:
    """Draws the greedy return and win rate of every point over environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, axes = plt.subplots(1, 2, figsize=(12, 4), constrained_layout=True)
    for axis, name in zip(axes, ("return", "win_rate"), strict=True):
        axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)  # type: ignore[attr-defined]
        for point, (steps, values) in curves(jobs, path.parent, name).items():
            axis.plot(steps, values, lw=1.3, marker=".", label=point)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set(xlabel="environment steps", ylabel=f"greedy {name.replace('_', ' ')}")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = read_flags(SweepConfig, sys.argv[1:] if argv is None else argv)
        require_place(config.out)
        out, go_on = config.directory, shlex.join([*invocation(), *sys.argv[1:]])
        # Before anything is computed: a plan finds groups, and asks environments for their shapes.
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
        again = "run the same command again to go on"
        require(not failed, f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}; {again}")


if __name__ == "__main__":
    leave(main)
