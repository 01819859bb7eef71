"""Train a team and leave a run directory: python experiments/run.py --env smax --task 2s3z."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasa_jax.config import ConfigError

from cli import RunConfig, fail, parse

if TYPE_CHECKING:
    from lorasa_jax.loop import Report, Result

    from display import Display
    from record import Record


class Reporter:
    """Hands every iteration on to the display, the record and the tracker."""

    def __init__(self, display: Display, record: Record, track: Any):
        self.display, self.record, self.track = display, record, track
        self.began = time.perf_counter()

    def status(self, text: str) -> None:
        """Takes what happens now."""
        self.display.status(text)

    def report(self, report: Report) -> None:
        """Takes one iteration."""
        speed = self.display.report(report)
        clock = {"steps_per_second": speed, "wall_seconds": time.perf_counter() - self.began}
        for row in self.record.add(report, clock):
            self.track(row)


def summarise(config: RunConfig, result: Result, wall_seconds: float) -> dict[str, Any]:
    """Returns the summary of a finished run."""
    from lorasa_jax.stats import bootstrap_interval
    from lorasa_jax.trainer import count_params

    env_steps = config.iterations * config.steps_per_iteration
    return {
        "env": config.env,
        "task": config.task,
        "algo": config.algo,
        "sharing": config.sharing,
        "groups": config.groups,
        "seeds": [config.seed + k for k in range(config.seeds)],
        "env_steps": env_steps,
        "switch_steps": result.switch_steps,
        "wall_seconds": wall_seconds,
        "compile_seconds": result.compile_seconds,
        "steps_per_second": env_steps * config.seeds / result.train_seconds,
        "eval_episodes": config.eval_episodes,
        "random_return": result.random_return,
        "final": result.final,
        "final_ci95": {
            play: {name: bootstrap_interval(values) if config.seeds > 1 else None for name, values in final.items()}
            for play, final in result.final.items()
        },
        "params": count_params(result.trainer),
    }


def spread(summary: dict[str, Any], play: str, name: str, form: str) -> str:
    """Returns the mean over seeds, and where there are several the 95 % interval of that mean."""
    mean, interval = summary["final"][play][name].mean(), summary["final_ci95"][play][name]
    return f"{mean:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def draw_episode(config: RunConfig, result: Result, path: Path) -> None:
    """Draws one greedy episode of the first seed, where the environment can be drawn."""
    import jax

    from lorasa_jax.envs.drawing import save_gif
    from lorasa_jax.rollout import record_episode
    from lorasa_jax.trainer import EPISODE

    system = result.trainer.system
    if system.env.draw is None:
        return
    first = jax.tree.map(lambda leaf: leaf[0], result.states)
    key = jax.random.fold_in(first.key, EPISODE)  # the run's own key has been used
    states = record_episode(system, result.trainer.weights(first), key)
    save_gif(system.env.draw(states), path, system.env.fps)


def train(config: RunConfig, began: float) -> None:
    """Runs the configuration and fills its run directory."""
    import jax

    from lorasa_jax.envs import make_env
    from lorasa_jax.grouping import with_groups
    from lorasa_jax.loop import Diverged, run
    from lorasa_jax.trainer import make_trainer

    from display import Display, make_tracker
    from record import Record, write_json

    if config.cache:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorasa_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    env = make_env(config)
    config = with_groups(config, env, print)
    make_trainer(config, env)  # what does not fit the environment is said before anything is written
    directory = config.directory
    track = make_tracker(config.track, directory, dataclasses.asdict(config))
    try:
        record = Record(directory, config)
    except OSError as error:
        fail(f"{directory} cannot be made: {error.strerror}; name another directory with --out")
    try:
        with Display(config) as display:
            result = run(config, env, Reporter(display, record, track))
            summary = summarise(config, result, time.perf_counter() - began)
            write_json(directory / "summary.json", summary)
            display.status("drawing")
            record.draw_curve()
            if config.gif:
                draw_episode(config, result, directory / "episode.gif")
    except KeyboardInterrupt:
        record.draw_curve()
        steps = record.rows[-1]["env_steps"] if record.rows else 0
        print(f"stopped after {steps:,} steps; what was measured so far is in {directory}", file=sys.stderr)
        raise SystemExit(130) from None
    except Diverged as error:
        fail(f"the run diverged: {error}; what was measured until then is in {directory}")
    finally:
        record.close()
    for play, final in result.final.items():
        returns, wins = spread(summary, play, "return", ".3f"), spread(summary, play, "win_rate", ".1%")
        print(f"{play:8} return {returns}   win rate {wins}")
        if config.seeds > 1:
            print(f"{'':8} win rate by seed: {'  '.join(f'{rate:.1%}' for rate in final['win_rate'])}")
    print(f"{', '.join(sorted(path.name for path in directory.iterdir()))} are in {directory}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    began = time.perf_counter()
    config = parse(RunConfig, sys.argv[1:] if argv is None else argv)
    if config.directory.exists():
        fail(f"{config.directory} exists already; name another directory with --out, or remove it")
    if sys.stdout.isatty():
        print("loading", end="\r", flush=True)
    try:
        train(config, began)
    except ConfigError as error:
        fail(error)


if __name__ == "__main__":
    main()
