"""How often the clusters that `seps` finds are the roles of the game: python benchmarks/groups.py.

Prints a table with one row per task: in how many of the seeds the clusters were exactly the roles (where agents have
none: one cluster for all), how many clusters there were otherwise, and the seconds of one search. The first search of a
task also compiles, and is not in the median.
"""

from __future__ import annotations

import argparse
import statistics
import time

from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.envs import make_env
from lorasa_jax.learning.clustering import with_groups
from lorasa_jax.surroundings import prepare

TASKS = ("spread_10x5", "spread_30x5", "spread_4+4+2", "roles_10x5", "dynamics_8x4", "spread_10x1", "dispersion_4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="particles")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--grouping", choices=("separate", "joint"), default="separate")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    prepare(many=False)
    print("| task | roles | found | clusters otherwise | seconds, first | seconds, median of the others |")
    print("|---|---:|---:|---|---:|---:|")
    for task in options.tasks:
        words = ["--env", options.env, "--task", task, "--sharing", "seps", "--grouping", options.grouping]
        env = make_env(parse(RunConfig, words))
        roles = env.spec.roles or (0,) * env.spec.n_agents
        found, seconds = [], []
        for seed in range(options.first, options.first + options.seeds):
            began = time.perf_counter()
            found.append(with_groups(parse(RunConfig, [*words, "--seed", str(seed)]), env).groups)
            seconds.append(time.perf_counter() - began)
        wrong = sorted(len(set(groups)) for groups in found if groups != roles)
        rest = f"{statistics.median(seconds[1:]):.1f}" if len(seconds) > 1 else ""
        others = " ".join(map(str, wrong))
        right = f"{len(found) - len(wrong)} of {len(found)}"
        print(f"| {task} | {max(roles) + 1} | {right} | {others} | {seconds[0]:.1f} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
