"""Evaluate a saved run, with intervals: python experiments/evaluate.py RUN."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from lorasa_jax.cli.command import leave, polite
from lorasa_jax.cli.flags import read_flags
from lorasa_jax.cli.paths import require_place
from lorasa_jax.cli.saved import Label, labels_of, load_run, measures, points_of
from lorasa_jax.config import require
from lorasa_jax.trained import find_team

if TYPE_CHECKING:
    import jax
    import numpy as np

    from lorasa_jax.storage.checkpoints import SavedTeam


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate the teams of a saved run: whole episodes from start states that training did not use."""

    run: tyro.conf.Positional[Path]
    """Run directory, one of its checkpoints, RUN/checkpoints/N, or a trained team by its name or folder."""
    episodes: int = 256
    """Episodes of each seed."""
    sampled: bool = False
    """Sample actions, as in training, instead of taking the most probable ones."""
    best: bool = False
    """Evaluate the teams with the best evaluations of the last phase, instead of the last teams."""
    task: str = ""
    """Another task of the same shapes; empty: the task of the run."""
    draw: int = 0
    """Number of the draw of start states and random numbers; another number plays other episodes."""
    gif: Path | None = None
    """Draw one episode of the first seed (or fork) into this file, a GIF."""
    gif_steps: int | None = None
    """Draw the first steps of the episode only, so many; not given: the whole episode."""

    def __post_init__(self) -> None:
        require_place(self.gif, "--gif")
        require(self.episodes > 0, f"episodes must be positive, got {self.episodes}")
        require(self.gif_steps is None or self.gif_steps > 0, f"gif-steps must be positive, got {self.gif_steps}")
        require(self.draw >= 0, f"draw must be 0 or more, got {self.draw}")


def keys(labels: list[Label], draw: int) -> jax.Array:
    """Returns a key for every row that training did not use; the same for the same seed."""
    import jax
    import jax.numpy as jnp

    from lorasa_jax.learning.trainer import REPLAY

    seeds = [jax.random.key(label["seed"]) for label in labels]
    return jnp.stack([jax.random.fold_in(jax.random.fold_in(key, REPLAY), draw) for key in seeds])


def play(team: SavedTeam, keys: jax.Array, greedy: bool) -> dict[str, np.ndarray]:
    """Returns `return`, `win_rate` and `length` of every episode of every seed, [K, E]."""
    import jax
    import numpy as np

    from lorasa_jax.learning.rollout import play_episodes
    from lorasa_jax.running.programs import over_seeds

    episodes = over_seeds(lambda weights, key: play_episodes(team.system, weights, key, greedy), len(keys))
    return {name: np.asarray(values) for name, values in jax.jit(episodes)(team.weights, keys).items()}


def report(played: dict[str, np.ndarray], wins: bool) -> list[str]:
    """Returns the means with their 95 % intervals: over seeds, or over the episodes of a single seed."""
    from lorasa_jax.analysis.statistics import bootstrap_interval

    n_seeds, n_episodes = played["return"].shape
    lines = []
    for name, form in (*measures(wins), ("length", ".1f")):
        by_seed = played[name].mean(axis=1)
        low, high = bootstrap_interval(by_seed if n_seeds > 1 else played[name][0])
        line = f"{name.replace('_', ' '):9} {by_seed.mean():{form}} [{low:{form}}, {high:{form}}]"
        lines.append(line + (f"   by seed: {'  '.join(f'{mean:{form}}' for mean in by_seed)}" if n_seeds > 1 else ""))
    over = f"the means of {n_seeds} seeds" if n_seeds > 1 else f"the {n_episodes} episodes of one seed"
    return [*lines, f"in brackets: 95 % bootstrap interval of the mean, over {over}"]


def draw_episode(team: SavedTeam, key: jax.Array, greedy: bool, path: Path, steps: int | None) -> None:
    """Draws one episode of the first seed, or its first steps."""
    import jax

    from lorasa_jax.envs.drawing import save_gif
    from lorasa_jax.learning.rollout import record_episode

    env = team.system.env
    assert env.draw is not None
    states = record_episode(team.system, jax.tree.map(lambda leaf: leaf[0], team.weights), key, greedy)
    save_gif(env.draw(jax.tree.map(lambda leaf: leaf[: steps and steps + 1], states)), path, env.fps)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = read_flags(EvaluateConfig, sys.argv[1:] if argv is None else argv)
        config = replace(config, run=find_team(config.run))
        changes: dict[str, Any] = {"eval_episodes": config.episodes} | ({"task": config.task} if config.task else {})
        team, checkpoint = load_run(config.run, best=config.best, **changes)
        task = team.system.env.spec.name
        require(
            config.gif is None or config.gif.suffix == ".gif",
            f"--gif names a file that ends in .gif, not {config.gif}",
        )
        require(config.gif is None or team.system.env.draw is not None, f"there is nothing to draw in {task}; no --gif")
        if config.gif is not None:
            config.gif.parent.mkdir(parents=True, exist_ok=True)
        import jax

        labels = labels_of(config.run)
        both = jax.vmap(jax.random.split)(keys(labels, config.draw))  # one for the numbers, one for the picture
        greedy = not config.sampled
        played = play(team, both[:, 0], greedy)
        how = " ".join([*["best team's"] * config.best, "greedy" if greedy else "sampled"])
        print(f"{task}, {config.episodes} {how} episodes of each seed, from {checkpoint}")
        for point, rows in points_of(labels).items():
            lines = report({name: x[rows] for name, x in played.items()}, team.system.env.spec.winnable)
            print("\n".join([f"\n{point}"] * bool(point) + lines))
        if config.gif is not None:
            draw_episode(team, both[0, 1], greedy, config.gif, config.gif_steps)
            print(f"an episode of the first seed is in {config.gif}")


if __name__ == "__main__":
    leave(main)
