"""Settings of a sweep, and its jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lorasa_jax.cli import plan
from lorasa_jax.cli.flags import RunConfig
from lorasa_jax.cli.plan import Job
from lorasa_jax.cli.saved import word
from lorasa_jax.config import Config

if TYPE_CHECKING:
    from lorasa_jax.envs import Env


@dataclass(frozen=True)
class SweepConfig:
    """Run every point of a grid, and train each shared policy once. Run the same command again to resume a sweep."""

    file: Annotated[Path, tyro.conf.Positional]
    """YAML file: `base` has the settings of all points, and `grids` lists whose combinations are run."""
    out: Path | None = None
    """Directory of the results; by default runs/NAME, with the name of the file."""
    launcher: Literal["here", "local", "slurm"] = "here"
    """here: one job after another; local, slurm: independent jobs in parallel, with submitit."""
    cluster: tuple[str, ...] = ()
    """Options of the launcher as name=value, such as timeout_min=600 slurm_partition=gpu gpus_per_node=1."""
    mix_switches: bool = False
    """True: forks that switch at different steps share programs. They fill an accelerator better, but each computes
    until the last one is finished. False: each switch step has its own programs."""
    plan: bool = False
    """Only print the jobs and their programs."""
    only: str | None = None
    """Run only the job of this name (as the launchers do)."""
    save_every: float = 60.0
    """Minimum number of seconds between two checkpoints; 0: a checkpoint after every iteration."""
    cache: bool = True
    """Cache compiled programs in the user's cache directory."""

    @property
    def directory(self) -> Path:
        """The directory of the results."""
        return self.out or Path("runs") / self.file.stem


@cache
def _env(settings: Config) -> Env:
    from lorasa_jax.envs import make_env

    return make_env(settings)


def env_of(config: Config) -> Env:
    """Returns the environment of a configuration; the same object for the same settings."""
    names = ("env", "task", "n_agents", "time_limit", "smax", "mabrax", "mujoco", "jaxmarl", "particles")
    return _env(Config(**{name: getattr(config, name) for name in names}))


def make_plan(config: SweepConfig) -> list[Job]:
    """Returns the jobs of a sweep."""
    from lorasa_jax.learning.clustering import with_groups
    from lorasa_jax.learning.system import is_two_phase
    from lorasa_jax.learning.trainer import make_trainer

    base, points = plan.read(config.file)
    configs: dict[tuple[frozenset[str], RunConfig], plan.Point] = {}
    for point in points:  # equal settings in different notations are one point
        configs.setdefault((frozenset(point), plan.configure(config.file, base, point)), point)
    configured = []
    for (_, found), point in configs.items():
        env = env_of(found)
        found = replace(with_groups(found, env, print), save_every=config.save_every, cache=config.cache)
        make_trainer(found, env, adapting=is_two_phase(found, env))  # raises errors of settings
        configured.append((point, found))
    return plan.make_jobs(env_of, configured, config.mix_switches)


def print_plan(jobs: list[Job]) -> None:
    """Prints the jobs, and the number of programs."""
    for job in jobs:
        steps, after = job.config.iterations * job.config.steps_per_iteration, ""
        if job.origin:
            after = f", from {job.origin[0]}"
        print(f"{job.name}: {counted(len(job.rows), 'row')} to {steps:,} steps{after}")
        for point in {json.dumps(row.point): row.point for row in job.rows}.values():
            print(f"    {words_of(point)}  ({counted(sum(row.point == point for row in job.rows), 'seed')})")
    if len({job.origin[0] for job in jobs if job.origin}) < sum(job.origin is not None for job in jobs):
        print(
            "forks of one job share a program if they differ only in seed, learning rate, rank and placement, and the "
            "same layers have full rank; with --mix-switches True also if they switch at different steps"
        )
    print(f"{counted(sum(len(job.rows) for job in jobs), 'row')} in {counted(len(jobs), 'program')}")


def words_of(point: plan.Point) -> str:
    return "  ".join(f"{name}={word(value)}" for name, value in point.items())


def is_done(directory: Path) -> bool:
    """Returns whether a job has written its summary."""
    return (directory / "summary.json").exists()


def counted(n: int, noun: str) -> str:
    """Returns a number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
