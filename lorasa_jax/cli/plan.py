"""Plans a sweep: turns a file of grids into points, and points into jobs that each compile once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasa_jax.cli.flags import RunConfig, parse_settings
from lorasa_jax.config import require
from lorasa_jax.presets import is_file_name
from lorasa_jax.yaml_reader import read_yaml

if TYPE_CHECKING:
    from lorasa_jax.envs import Env

Point = dict[str, Any]
"""Settings of a point by dotted names, beyond those of all points."""
RESERVED = ("seed", "seeds", "out", "resume", "gif", "track", "cache", "save_every", "shard", "distributed")
"""Settings that a grid may not contain."""
SHAPES = ("levels", "rank", "ranks", "alpha", "placement", "adapter_key")
"""Settings of adapters."""
ADAPTERS_ONLY = (*SHAPES, "switch_step", "freeze_trunk", "ppo.adapter_lr", "ppo.trunk_optimizer")
"""Settings that concern only the second phase."""


@dataclass(frozen=True)
class Row:
    """One point for one seed: a row of a job's program.

    Attributes:
        point: the settings that distinguish it from other points.
        config: its configuration.
    """

    point: Point
    config: RunConfig

    @property
    def label(self) -> dict[str, Any]:
        """The label of the row in records."""
        return {"seed": self.config.seed, **self.point}

    @property
    def own(self) -> dict[str, Any]:
        """Settings that may differ from the configuration of its program."""
        from lorasa_jax.running.forks import OWN

        return {name: getattr(self.config, name) for name in OWN} | {"ppo.adapter_lr": self.config.ppo.adapter_lr}


@dataclass(frozen=True)
class Job:
    """Rows that run in parallel in one program, with their own directory.

    Attributes:
        name: name of the directory.
        config: configuration of the program.
        rows: the rows.
        origin: the job whose states these rows continue from, and the index of each row in it; None: no such job.
        keep: iterations whose states other jobs continue from.
    """

    name: str
    config: RunConfig
    rows: tuple[Row, ...]
    origin: tuple[str, tuple[int, ...]] | None = None
    keep: tuple[int, ...] = ()


def read(path: Path) -> tuple[dict[str, Any], list[Point]]:
    """Returns the common settings of a sweep, and its points.

    The file of a preset is relative to the sweep's file.

    Raises:
        ConfigError: the file does not describe a sweep.
    """
    require(path.is_file(), f"there is no sweep file {path}")
    found = read_yaml(path)
    require(
        isinstance(found, dict) and {"grids"} <= set(found) <= {"base", "grids"},
        f"{path} must hold `base`, the settings of all points, and `grids`, a list of what varies",
    )
    base, grids = found.get("base") or {}, found["grids"]
    require(isinstance(base, dict), f"{path}: base must hold settings, one `name: value` a line")
    require(
        isinstance(grids, list) and bool(grids) and all(isinstance(grid, dict) and grid for grid in grids),
        f"{path}: grids must be a list of products, such as `- {{sharing: lorasa, rank: [1, 8]}}`",
    )
    return _by_name(path, base), [point for grid in grids for point in _points(path, _by_name(path, grid))]


def _by_name(path: Path, settings: dict[Any, Any]) -> Point:
    """Settings by dotted names, with sections flattened and preset files made relative to the working directory."""
    found: Point = {}
    for name, value in _flat(settings):
        require(name not in found, f"{path}: {name} is set twice")
        found[name] = _beside(path, value) if name == "preset" else value
    return found


def _beside(path: Path, preset: Any) -> Any:
    if isinstance(preset, list):
        return [_beside(path, each) for each in preset]
    return str(path.parent / preset) if isinstance(preset, str) and is_file_name(preset) else preset


def _flat(settings: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _points(path: Path, grid: dict[str, Any]) -> Iterator[Point]:
    """The product of a grid's lists; other values are the same for all its points."""
    for name in grid:
        require(name not in RESERVED, f"{path}: {name} cannot vary in a grid; set it in base, or leave it out")
    choices = [value if isinstance(value, list) else [value] for value in grid.values()]
    for values in product(*choices):
        yield dict(zip(grid, values, strict=True))


def configure(path: Path, base: dict[str, Any], point: Point) -> RunConfig:
    """Returns the configuration of a point, with all its seeds.

    Raises:
        ConfigError: a setting is unknown or invalid.
    """
    settings: dict[str, Any] = {}
    for name, value in (*base.items(), *point.items()):
        *sections, last = name.split(".")
        branch = settings
        for section in sections:
            branch = branch.setdefault(section, {})
            require(isinstance(branch, dict), f"{path}: {section} is a section, with settings of its own")
        branch[last] = value
    return replace(parse_settings(RunConfig, settings, path), gif=False, out=None)


def make_jobs(
    env_of: Callable[[RunConfig], Env], configs: Iterable[tuple[Point, RunConfig]], mixed: bool = False
) -> list[Job]:
    """Returns the jobs in an order in which they can run.

    A one-phase point is one job. A two-phase point continues from a backbone, the run of its trunks alone. The backbone
    is a job, and may be a point itself. Forks that switch at the same step and fit into one program are one job.

    Args:
        env_of: returns the environment of a configuration.
        configs: points with their configurations.
        mixed: forks that switch at different steps may be one job, too.
    """
    from lorasa_jax.running.forks import backbone_config
    from lorasa_jax.sharing.schemes import make_sharing

    points: dict[RunConfig, Point] = {}
    forks: dict[RunConfig, list[tuple[Point, RunConfig]]] = {}
    for point, config in configs:
        env = env_of(config)
        whole = replace(backbone_config(config, env), seed=config.seed, seeds=config.seeds)
        sharing = make_sharing(env.spec, config)
        two_phase = sharing.two_phase
        # Under hyper, mask and lorasa_joint these settings change the shapes in the only phase.
        own = SHAPES if sharing.levels and not two_phase else ()
        own = (*own, "switch_step") if sharing.early and env.spec.team_reward else own
        first = {name: value for name, value in point.items() if name not in ADAPTERS_ONLY or name in own}
        points.setdefault(whole, {**first, "sharing": whole.sharing})
        if two_phase:
            forks.setdefault(whole, []).append((point, config))
    jobs: list[Job] = []
    for config, point in points.items():
        forked = forks.get(config, [])
        keep = sorted({i for _, fork in forked for i in switch_iterations(fork)})
        rows = tuple(Row(point, _row_config(config, k)) for k in range(config.seeds))
        jobs.append(Job(f"{len(jobs) + 1}-{config.sharing}", config, rows, keep=tuple(keep)))
        jobs += _fork_jobs(env_of(config), jobs[-1], forked, mixed)
    return jobs


def _fork_jobs(env: Env, origin: Job, forked: list[tuple[Point, RunConfig]], mixed: bool) -> Iterator[Job]:
    from lorasa_jax.running.forks import common_config, share_programs

    # Rows of a program all compute until the last one has spent its budget.
    apart: dict[int | None, list[int]] = {}
    for i, (_, config) in enumerate(forked):
        apart.setdefault(None if mixed else config.switch_iteration, []).append(i)
    groups = [
        [members[i] for i in group]
        for members in apart.values()
        for group in share_programs([forked[i][1] for i in members], env)
    ]
    first = int(origin.name.split("-")[0])
    for n, group in enumerate(sorted(groups), first + 1):
        rows: list[Row] = []
        places: list[int] = []
        for point, config in (forked[i] for i in group):
            rows += [Row(point, _row_config(config, k)) for k in range(config.seeds)]
            places += range(config.seeds)
        config = common_config([row.config for row in rows])
        yield Job(f"{n}-{config.sharing}", config, tuple(rows), (origin.name, tuple(places)))


def switch_iterations(config: RunConfig) -> list[int]:
    """Returns the iterations after which a point may switch: one, or with `auto` those with an evaluation."""
    from lorasa_jax.learning.switching import EARLIEST, LATEST

    if config.switch_iteration is not None:
        return [config.switch_iteration]
    found = []
    for i in range(config.evaluation_interval, config.iterations, config.evaluation_interval):
        share = i * config.steps_per_iteration / config.total_steps
        if share >= EARLIEST:
            found.append(i)
        if share >= LATEST:
            return found
    return [*found, config.iterations - 1]


def _row_config(config: RunConfig, k: int) -> RunConfig:
    return replace(config, seed=config.seed + k, seeds=1)
