"""Trains the teams that come with the library, and saves them: python research/teams.py [NAME ...].

Each is trained by one command (`TEAMS`) into runs/teams/NAME, unless that run is there already. Its last team goes to
lorasa_jax/trained/NAME, with the result of greedy play over new start states.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lorasa_jax import load_run
from lorasa_jax.analysis.statistics import bootstrap_interval
from lorasa_jax.cli import evaluate
from lorasa_jax.cli.saved import labels_of, measures
from lorasa_jax.cli.saved import load_run as load_rows
from lorasa_jax.trained import TRAINED

TEAMS = {
    "2s3z": "--env smax --task 2s3z",
    "spread_30x5": "--env particles --task spread_30x5 --sharing lorasa_joint",
    "halfcheetah_2x3": "--env mujoco --task halfcheetah_2x3 --total-steps 400000",
}
"""The flags that each team is trained with."""
EPISODES = {"halfcheetah_2x3": 32}
"""Episodes of the measurement; 256 for the others, whose episodes are shorter."""


def train(name: str) -> Path:
    """Returns the directory of the run of a team, after training if there is none."""
    run = Path("runs") / "teams" / name
    if not run.exists():
        command = [sys.executable, "experiments/run.py", *TEAMS[name].split(), "--out", str(run)]
        subprocess.run(command, check=True)
    return run


def measure(run: Path, episodes: int) -> dict[str, Any]:
    """Returns the results of greedy play, with the episodes, means and intervals that `evaluate.py` prints."""
    team, _ = load_rows(run, eval_episodes=episodes)
    keys = jax.vmap(jax.random.split)(evaluate.keys(labels_of(run), 0))[:, 0]
    played = evaluate.play(team, keys, greedy=True)
    found: dict[str, Any] = {"episodes": episodes}
    for name, _ in measures(team.system.env.spec.winnable):
        values = played[name][0]
        interval = list(bootstrap_interval(values))
        found[name] = {"mean": float(values.mean()), "interval": interval, "deviation": float(values.std())}
    return found


def main() -> None:
    """Makes the named teams, or all. All are trained before any is saved, so that every run names a commit."""
    for name, run in {name: train(name) for name in sys.argv[1:] or TEAMS}.items():
        result = measure(run, EPISODES.get(name, 256))
        shutil.rmtree(TRAINED / name, ignore_errors=True)
        print(load_run(run).save(TRAINED / name, {"greedy": result}), result)


if __name__ == "__main__":
    main()
