"""Trains the teams that come with the library, and saves them: python research/teams.py [NAME ...]."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lorasa_jax.cli import command, flags
from lorasa_jax.config import nearest, require

TEAMS = {
    "2s3z": "--env smax --task 2s3z",
    "spread_30x5": "--env particles --task spread_30x5 --sharing lorasa_joint",
    "halfcheetah_2x3": "--env mujoco --task halfcheetah_2x3 --total-steps 400000",
}
"""The flags that each team is trained with."""
EPISODES = {"halfcheetah_2x3": 32}
"""Episodes of the measurement; 256 for the others, whose episodes are shorter."""


@dataclass(frozen=True)
class TeamsConfig:
    """Train the teams that come with the library, and save them with the result of greedy play.

    Each is trained by one command into runs/teams/NAME, unless that run exists. Its last team goes to
    lorasa_jax/trained/NAME.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = tuple(TEAMS)
    """The teams to make."""

    def __post_init__(self) -> None:
        for name in self.names:
            require(name in TEAMS, f"there is no team {name!r}{nearest(name, TEAMS)}; teams: {', '.join(TEAMS)}")


def train(name: str) -> Path:
    """Returns the directory of the run of a team, after training if there is none."""
    run = Path("runs") / "teams" / name
    if not run.exists():
        subprocess.run([sys.executable, "experiments/run.py", *TEAMS[name].split(), "--out", str(run)], check=True)
    return run


def measure(run: Path, episodes: int) -> dict[str, Any]:
    """Returns the results of greedy play, with the episodes, means and intervals that `evaluate.py` prints."""
    import jax

    from lorasa_jax.analysis.statistics import bootstrap_interval
    from lorasa_jax.cli import evaluate
    from lorasa_jax.cli.saved import labels_of, load_run, measures

    team, _ = load_run(run, eval_episodes=episodes)
    keys = jax.vmap(jax.random.split)(evaluate.keys(labels_of(run), 0))[:, 0]
    played = evaluate.play(team, keys, greedy=True)
    found: dict[str, Any] = {"episodes": episodes}
    for name, _ in measures(team.system.env.spec.winnable):
        values = played[name][0]
        interval = list(bootstrap_interval(values))
        found[name] = {"mean": float(values.mean()), "interval": interval, "deviation": float(values.std())}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the named teams. All are trained before any is saved, so that every run names a commit."""
    with command.polite():
        config = flags.read_flags(TeamsConfig, sys.argv[1:] if argv is None else argv)
        from lorasa_jax import load_run
        from lorasa_jax.trained import TRAINED

        for name, run in {name: train(name) for name in config.names}.items():
            result = measure(run, EPISODES.get(name, 256))
            shutil.rmtree(TRAINED / name, ignore_errors=True)
            print(load_run(run).save(TRAINED / name, {"greedy": result}), result)


if __name__ == "__main__":
    command.leave(main)
