"""What it saves to run things side by side, whole commands timed from start to end: python benchmarks/sweeps.py.

Three comparisons, each in turn, pair by pair; each side begins with an empty cache of compiled programs:

* seeds: 8 seeds in one program, against 8 commands of one seed, one after the other;
* forks: a grid of switch steps, ranks and seeds from one pretraining per seed, against a command for every point;
* switches: the same grid, whose switch steps have their own programs, against `--mix-switches True`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parents[1] / "experiments"
SEEDS, SWITCHES, RANKS, FORK_SEEDS = 8, (0.2, 0.4), (1, 4), 2


def seconds(commands: list[list[str]]) -> float:
    """Runs commands one after the other, with a cache that is empty at first, and returns the time they took."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        for command in commands:
            subprocess.run(
                [sys.executable, *command],
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            )
        return time.perf_counter() - began


def run(folder: Path, name: str, flags: list[str]) -> list[str]:
    """Returns the command of one run."""
    return [str(HERE / "run.py"), *flags, "--gif", "False", "--out", str(folder / name)]


def compare(title: str, pairs: int, sides: dict[str, list[list[str]]], folder: Path) -> None:
    """Times two sides in turn, and prints medians and the ratio of each pair."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(pairs):
        for name, commands in sides.items():
            fresh = [[word.replace(str(folder), f"{folder}/{k}") for word in command] for command in commands]
            times[name].append(seconds(fresh))
            print(f"{title}, {name} ({len(commands)} commands): {times[name][-1]:.0f} s", flush=True)
    one, other = times.values()
    ratios = sorted(b / a for a, b in zip(one, other, strict=True))
    found = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]"
    print(f"{title}: {' takes '.join(reversed(sides))} times {found}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="toy")
    parser.add_argument("--task", default="own_number")
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run")
    parser.add_argument("--only", choices=("seeds", "forks", "switches"), help="one of the comparisons")
    options = parser.parse_args()
    flags = ["--env", options.env, "--task", options.task, "--total-steps", str(options.total_steps)]
    print(f"{options.env} {options.task}, {options.total_steps:,} steps, {len(os.sched_getaffinity(0))} cores\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "seeds"):
            together = [run(folder, "all", [*flags, "--seeds", str(SEEDS)])]
            apart = [run(folder, str(k), [*flags, "--seed", str(k)]) for k in range(SEEDS)]
            compare(f"{SEEDS} seeds", options.pairs, {"one program": together, "one after the other": apart}, folder)
        if options.only != "seeds":
            steps = [int(share * options.total_steps) for share in SWITCHES]
            base = {"env": options.env, "task": options.task, "total_steps": options.total_steps, "seeds": FORK_SEEDS}
            grid = {"sharing": "lorasa", "switch_step": steps, "rank": list(RANKS)}
            file = folder / "grid.yaml"
            file.write_text(yaml.safe_dump({"base": base, "grids": [grid]}))
            for k in range(options.pairs):
                (folder / str(k)).mkdir(exist_ok=True)
                (folder / str(k) / "grid.yaml").write_text(file.read_text())
            forks = [[str(HERE / "sweep.py"), str(file), "--out", str(folder / "sweep")]]
            mixed = [[*forks[0][:-1], str(folder / "mixed"), "--mix-switches", "True"]]
            points = [(step, rank) for step in steps for rank in RANKS]
            apart = [
                run(folder, f"{s}-{r}", [*flags, "--switch-step", str(s), "--rank", str(r), "--seeds", str(FORK_SEEDS)])
                for s, r in points
            ]
            # The shared policy itself is a row of the sweep's table.
            apart.append(run(folder, "trunk", [*flags, "--sharing", "ps_id", "--seeds", str(FORK_SEEDS)]))
            title = f"{len(points)} forks of {FORK_SEEDS} seeds"
            if options.only != "switches":
                compare(title, options.pairs, {"a sweep": forks, "a run each": apart}, folder)
            if options.only != "forks":
                forks[0][-1] = str(folder / "own")
                compare(title, options.pairs, {"programs of their own": forks, "mixed switches": mixed}, folder)


if __name__ == "__main__":
    main()
