"""Train a team and leave a run directory: python experiments/run.py --env smax --task 2s3z."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasa_jax.cli.command import fail, invocation, leave, optional, polite
from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.cli.paths import CHECKPOINTS, locate, read_json, require_place
from lorasa_jax.cli.saved import measures
from lorasa_jax.cli.signals import STOPPING, Interrupt, Stop
from lorasa_jax.cli.streams import can_redraw, complain
from lorasa_jax.config import Config, require
from lorasa_jax.files import naming, reason
from lorasa_jax.surroundings import join_processes, load_jax, prepare

if TYPE_CHECKING:
    from lorasa_jax.cli.display import Display
    from lorasa_jax.cli.run_dir import RunDir
    from lorasa_jax.envs import Env
    from lorasa_jax.running.callbacks import AnyCallback
    from lorasa_jax.running.state import Diverged, Report, Result, RunState
    from lorasa_jax.sharing.schemes import Sharing
    from lorasa_jax.storage.saver import Saver


class Reporter:
    """The callback that passes every iteration to the display, the run directory and the tracker."""

    def __init__(self, display: Display, run_dir: RunDir, track: Any):
        self.display, self.run_dir, self.track = display, run_dir, track
        self.began = time.perf_counter() - run_dir.wall_seconds

    def status(self, text: str) -> None:
        """Shows a progress message."""
        self.display.status(text)

    def __call__(self, report: Report, state: RunState) -> None:
        """Reports one iteration."""
        speed = self.display.report(report)
        clock = {"steps_per_second": speed, "wall_seconds": time.perf_counter() - self.began}
        for row in self.run_dir.add(report, clock):
            self.track(row)


def run_saved(saver: Saver, config: RunConfig, env: Env, *args: Any, **kwargs: Any) -> Result:
    """Returns the result of a run; saves the state before a diverged iteration."""
    from lorasa_jax.running.loop import run
    from lorasa_jax.running.state import Diverged

    try:
        return run(config, env, *args, **kwargs)
    except Diverged as error:
        saver.take(error.before)
        raise


def summarise(
    config: RunConfig, result: Result, wall_seconds: float, labels: Sequence[dict[str, Any]], rows: int
) -> dict[str, Any]:
    """Returns the summary of a finished run; `rows` do not count iterations of forks' backbones."""
    from lorasa_jax.analysis.statistics import bootstrap_interval
    from lorasa_jax.learning.trainer import count_params

    env_steps = config.iterations * config.steps_per_iteration
    alike = len(labels) > 1 and all({**label, "seed": 0} == {**labels[0], "seed": 0} for label in labels)
    return {
        "env": config.env,
        "task": config.task,
        "algo": config.algo,
        "sharing": config.sharing,
        "groups": config.groups,
        "seeds": [label["seed"] for label in labels],
        **({"rows": labels} if any(len(label) > 1 for label in labels) else {}),
        "env_steps": env_steps,
        "switch_steps": result.switch_steps,
        "wall_seconds": wall_seconds,
        "compile_seconds": result.compile_seconds,
        "train_seconds": result.train_seconds,
        "steps_per_second": rows * config.steps_per_iteration / result.train_seconds,
        "eval_episodes": config.eval_episodes,
        "random_return": result.random_return,
        "final": result.final,
        "final_ci95": {
            play: {name: bootstrap_interval(values) if alike else None for name, values in final.items()}
            for play, final in result.final.items()
        },
        "params": count_params(result.trainer),
    }


def spread(summary: dict[str, Any], play: str, name: str, form: str) -> str:
    """Returns the mean over seeds, with its 95 % interval if there are several seeds."""
    mean, interval = summary["final"][play][name].mean(), summary["final_ci95"][play][name]
    return f"{mean:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def draw_episode(result: Result, path: Path) -> None:
    """Draws one greedy episode of the first seed, if the environment can be drawn."""
    import jax

    from lorasa_jax.envs.drawing import save_gif
    from lorasa_jax.learning.rollout import record_episode
    from lorasa_jax.learning.trainer import EPISODE
    from lorasa_jax.running.devices import row

    system = result.trainer.system
    if system.env.draw is None:
        return
    first = row(result.states, 0)
    key = jax.random.fold_in(first.key, EPISODE)  # a key that the run has not used
    states = record_episode(system, result.trainer.weights(first), key)
    save_gif(system.env.draw(states), path, system.env.fps)


def train(config: RunConfig, began: float) -> None:
    """Runs the configuration from the beginning or from a checkpoint, and writes its run directory."""
    from lorasa_jax.cli.display import tracker
    from lorasa_jax.cli.run_dir import RunDir
    from lorasa_jax.envs import make_env
    from lorasa_jax.learning.clustering import with_groups
    from lorasa_jax.learning.trainer import make_trainer
    from lorasa_jax.running.devices import is_leader
    from lorasa_jax.sharing.schemes import make_sharing

    prepare(many=config.shard != "off" and not config.distributed, keep=config.cache)
    env = make_env(config)
    config = with_groups(config, env, print if is_leader() else lambda text: None)
    make_trainer(config, env)  # raises errors of settings before anything is written
    if is_leader():
        for note in notes(config, make_sharing(env.spec, config)):
            complain(f"note: {note}")
    if not is_leader():
        follow(config, env)
        return
    directory = config.directory
    with tracker(config.track, directory, dataclasses.asdict(config)) as track:
        with ready(config):
            run_dir = RunDir(directory, config)
        with closing(run_dir):
            with ready(config):
                start = find_start(config, env, run_dir)
            for row in run_dir.rows:
                track(row)
            result, summary = fill(config, env, run_dir, track, start, began - run_dir.wall_seconds, again(config))
    print_result(config, result, summary)


@contextmanager
def ready(config: RunConfig) -> Iterator[None]:
    """Ends the command with one line if the block cannot prepare its directory."""
    try:
        with naming(config.directory):
            yield
    except OSError as error:
        elsewhere = "; or name another directory with --out" if config.resume is None else ""
        fail(f"{reason(error)}{elsewhere}")


def find_checkpoint(config: RunConfig) -> Path | None:
    """Returns the checkpoint that a run resumes from, or None."""
    from lorasa_jax.storage.arrays import complete

    if config.resume is None:
        return None
    _, checkpoint = locate(config.resume)
    if checkpoint is not None:
        return checkpoint
    newest = next(reversed(complete(config.directory / CHECKPOINTS)), None)
    require(
        newest is not None or not (config.directory / "summary.json").exists(),
        f"{config.directory} holds a finished run, but no checkpoint to go on from",
    )
    return newest


def follow(config: RunConfig, env: Env) -> None:
    """Takes part in a run as one of the processes that do not print or write."""
    from lorasa_jax.running.devices import row
    from lorasa_jax.running.state import Diverged
    from lorasa_jax.storage.checkpoints import load
    from lorasa_jax.storage.saver import Saver

    path = find_checkpoint(config)
    start = load(path, config, env) if path else None
    saver = Saver(config.directory / CHECKPOINTS, config, config.save_every, complain)
    try:
        with closing(saver), Stop(STOPPING) as stop:
            result = run_saved(saver, config, env, [saver, Interrupt(saver, stop)], start=start, shard=config.shard)
            stop.release()
    except Diverged:
        raise SystemExit(2) from None
    if config.gif and env.draw is not None:
        row(result.states, 0)


def find_start(
    config: RunConfig, env: Env, run_dir: RunDir, begin: Callable[[], RunState | None] = lambda: None
) -> RunState | None:
    """Prepares the run directory, and returns the state to resume from; None: from the beginning.

    A run that was stopped before its first checkpoint starts again, with the result of `begin`.
    """
    from lorasa_jax.storage.arrays import drop_after
    from lorasa_jax.storage.checkpoints import load

    path = find_checkpoint(config)
    if config.resume is not None:
        for note in run_dir.notes():
            complain(f"note: {note}")
        if path is None:
            complain(f"note: {config.directory} has no checkpoint yet, so the run begins anew")
    if path is None:
        start = begin()
        run_dir.begin()
        return start
    start = load(path, config, env)
    kept = run_dir.require_rows(start.rows, start.iterations)
    drop_after(path)
    run_dir.go_on(*kept)
    return start


def notes(config: Config, sharing: Sharing) -> Iterator[str]:
    """Yields what a user may not expect of these settings."""
    for level in sharing.levels:
        if level.factor != 1:
            begin = "begin with" if level.paced else "have"
            more = ", and get more while agents' own weights play better than their mean" if level.paced else ""
            yield f"adapters of the level {level.scope} {begin} {level.factor:.2g} of the learning rate{more}"
    if sharing.early and config.switch_step == "auto":
        yield (
            "all agents receive the same reward, so adapters start when learning slows, at the latest after 60 % of "
            "the budget (at once: --switch-step 0)"
            if sharing.two_phase
            else "agents may receive different rewards, so adapters start at step 0 (later: --switch-step N)"
        )
    if sharing.two_phase and config.switch_step == "auto" and config.iterations == 1:
        yield (
            "the budget is a single iteration, so the second phase begins at step 0, on an untrained trunk; raise "
            "--total-steps"
        )
    steps = config.iterations * config.steps_per_iteration
    if steps < 0.98 * config.total_steps:
        yield (
            f"the run has {steps:,} of {config.total_steps:,} steps, which are whole iterations of "
            f"{config.steps_per_iteration:,}"
        )
    if not (sharing.two_phase or sharing.early) and config.switch_step != "auto":
        yield f"--switch-step has no effect under --sharing {config.sharing}, which has a single phase"


def fill(
    config: RunConfig,
    env: Env,
    run_dir: RunDir,
    track: Any,
    start: RunState | None,
    began: float,
    go_on: str,
    also: Sequence[AnyCallback] = (),
) -> tuple[Result, dict[str, Any]]:
    """Runs the rest of a run; returns its result and its summary.

    Args:
        config: the run's configuration.
        env: its environment.
        run_dir: its directory.
        track: receives each row.
        start: the state to resume from.
        began: start time of the command minus the duration of earlier commands.
        go_on: the command that resumes the run.
        also: callbacks that are called before the checkpoint callback.
    """
    from lorasa_jax.cli.display import Display
    from lorasa_jax.cli.page import write_page
    from lorasa_jax.cli.run_dir import write_json
    from lorasa_jax.running.state import Diverged
    from lorasa_jax.storage.saver import Saver

    directory, stop = config.directory, Stop(STOPPING)
    try:
        saver = Saver(directory / CHECKPOINTS, config, config.save_every, complain)
        with naming(directory), closing(saver), stop, Display(config, wins=env.spec.winnable) as display:
            callbacks = [Reporter(display, run_dir, track), *also, saver, Interrupt(saver, stop)]
            result = run_saved(saver, config, env, callbacks, start=start, names=run_dir.names, shard=config.shard)
            stop.release()
            saver.wait()
            if saver.lost is not None:  # the final state; resuming from an earlier checkpoint gives the same
                raise saver.lost
            seconds = time.perf_counter() - began
            summary = summarise(config, result, seconds, run_dir.labels, len(run_dir.rows))
            write_json(directory / "summary.json", summary)
            display.status("drawing")
            with optional():
                run_dir.draw_curve(env.spec.winnable)
            with optional():
                if config.gif:
                    draw_episode(result, directory / "episode.gif")
            with optional():
                write_page(directory)
    except KeyboardInterrupt:
        with optional():
            run_dir.draw_curve(env.spec.winnable)
        steps = run_dir.rows[-1]["env_steps"] if run_dir.rows else 0
        complain(f"stopped after {steps:,} steps; what was measured so far is in {directory}")
        complain(f"go on with: {go_on}")
        raise SystemExit(128 + (stop.signal or signal.SIGINT)) from None
    except Diverged as error:
        with optional():
            write_json(directory / "diverged.json", describe(error, run_dir))
        kept = f"; the state before is {saver.newest()}" if saver.newest() else ""
        verdict = "the environment is at fault" if error.culprit else "the run diverged"
        fail(f"{verdict}: {error}; what was measured until then is in {directory}{kept}")
    except OSError as error:
        fail(f"{reason(error)}; go on with: {go_on}")
    return result, summary


def again(config: RunConfig) -> str:
    """Returns the command that resumes a run."""
    plugins = ["--plugins", *config.plugins] if config.plugins else []
    return shlex.join([*invocation(), "--resume", str(config.directory), *plugins])


def describe(error: Diverged, run_dir: RunDir) -> dict[str, Any]:
    """Returns the data of a quantity that is no longer finite."""
    label = run_dir.labels[error.row]
    return {
        "quantity": error.quantity,
        "value": str(error.value),
        **label,
        "iteration": error.iteration,
        "phase": error.phase,
        "last_finite": next(reversed(run_dir.rows_of(label)), None),
    }


def print_result(config: RunConfig, result: Result, summary: dict[str, Any]) -> None:
    """Prints the results of the run, and its directory."""
    for play, final in result.final.items():
        shown = measures(result.trainer.system.env.spec.winnable)
        print(
            f"{play:8}", "   ".join(f"{name.replace('_', ' ')} {spread(summary, play, name, f)}" for name, f in shown)
        )
        name, form = shown[-1]
        if config.seeds > 1:
            print(f"{'':8} {name.replace('_', ' ')} by seed: {'  '.join(f'{value:{form}}' for value in final[name])}")
    names = sorted(path.name for path in config.directory.iterdir() if not path.name.startswith("."))
    print(f"{', '.join(names)} are in {config.directory}")


def is_done(config: RunConfig) -> bool:
    """Returns whether the run to resume is finished."""
    path = config.directory / "summary.json"
    if config.resume != config.directory or not path.exists():
        return False
    return read_json(path)["env_steps"] == config.iterations * config.steps_per_iteration


def is_taken(config: RunConfig) -> bool:
    """Returns whether the directory of a new run exists; all processes call it together."""
    if config.resume is None:
        require_place(config.out)
    taken = config.resume is None and config.directory.exists()
    if not config.distributed:
        return taken
    join_processes()
    from lorasa_jax.running.devices import anywhere

    return anywhere(taken)  # all processes look before the first one creates it


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    began = time.perf_counter()
    with polite():
        config = parse(RunConfig, sys.argv[1:] if argv is None else argv)
        if config.resume is not None and is_done(config):
            steps = config.iterations * config.steps_per_iteration
            print(f"nothing is left to do: {config.directory} has all of its {steps:,} steps")
            return
        require(
            not is_taken(config),
            f"{config.directory} exists already; name another directory with --out, remove it, or go on with --resume",
        )
        if can_redraw(sys.stdout):
            print("loading", end="\r", flush=True)
        load_jax()
        train(config, began)


if __name__ == "__main__":
    leave(main)
