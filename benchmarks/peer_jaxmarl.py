"""Training beside JaxMARL's MAPPO script for SMAX: python benchmarks/peer_jaxmarl.py --repo PATH/TO/JaxMARL.

Each side is a process of its own, started in turn, round by round, with nothing compiled beforehand:

* theirs: baselines/MAPPO/mappo_rnn_smax.py of that clone, its settings, 64 environments;
* ours: the preset `jaxmarl`: the same network, batch, epochs and minibatches, a value per agent;
* ours, team: the same with one value for the team.

Their script needs distrax (hydra and wandb are left out): give the Python of an environment that has it and JaxMARL as
`--python`, if it is not this one's.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

RUN = Path(__file__).resolve().parents[1] / "experiments" / "run.py"
BATCH = 64 * 128


def theirs(repo: Path, task: str, iterations: int, out: Path) -> None:
    """Runs JaxMARL's script, and leaves a line for every iteration it has finished."""
    import types

    import yaml

    log = out.open("w", buffering=1)
    hydra, wandb, omegaconf = (types.ModuleType(name) for name in ("hydra", "wandb", "omegaconf"))
    hydra.main = lambda **settings: lambda main: main  # type: ignore[attr-defined]
    wandb.log = lambda row: log.write("done\n")  # type: ignore[attr-defined]
    omegaconf.OmegaConf = None  # type: ignore[attr-defined]
    sys.modules |= {"hydra": hydra, "wandb": wandb, "omegaconf": omegaconf}
    folder = repo / "baselines" / "MAPPO"
    sys.path[:0] = [str(repo), str(folder)]
    import jax
    import mappo_rnn_smax  # type: ignore[import-not-found]

    config = yaml.safe_load((folder / "config" / "mappo_homogenous_rnn_smax.yaml").read_text())
    config |= {"MAP_NAME": task, "NUM_ENVS": 64, "TOTAL_TIMESTEPS": iterations * BATCH}
    jax.block_until_ready(jax.jit(mappo_rnn_smax.make_train(config))(jax.random.PRNGKey(0)))


class Stamp(NamedTuple):
    """When something was there: seconds, and those that all cores of the process worked (where /proc says so)."""

    wall: float
    cpu: float


def stamps(
    command: list[str], log: Path, lines: int | None = None, environment: dict[str, str] | None = None
) -> list[Stamp]:
    """Returns when each line of the log was there, since the command began, which is stopped after so many lines."""
    began, found = time.perf_counter(), []
    settings = {**os.environ, **(environment or {})}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=settings) as process,
    ):
        while process.poll() is None:
            there = log.read_bytes().count(b"\n") if log.exists() else 0
            now = Stamp(time.perf_counter() - began, cpu_seconds(process.pid))
            found += [now] * (there - len(found))
            if lines is not None and there >= lines:
                process.kill()
                return found[:lines]
            time.sleep(0.02)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read().decode()[-2000:]}")
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the seconds that a process has worked so far; nan where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def our_command(task: str, iterations: int, out: Path, *more: str) -> list[str]:
    """Returns the command of a run like theirs."""
    steps = ["--task", task, "--total-steps", str(iterations * BATCH), "--out", str(out)]
    quiet = ["--evaluations", "1", "--eval-episodes", "1", "--gif", "False"]
    return [sys.executable, str(RUN), "--env", "smax", "--preset", "jaxmarl", *steps, *quiet, *more]


def their_command(repo: Path, python: str, task: str, iterations: int, log: Path) -> list[str]:
    """Returns the command of their script."""
    script = str(Path(__file__).resolve())
    return [
        *(python, script, "--repo", str(repo), "--task", task),
        *("--iterations", str(iterations), "--theirs", str(log)),
    ]


def require_clone(repo: Path, parser: argparse.ArgumentParser) -> None:
    """Ends the command where a folder is no clone of JaxMARL."""
    if not (repo / "baselines" / "MAPPO" / "mappo_rnn_smax.py").exists():
        parser.error(f"{repo} has no baselines/MAPPO/mappo_rnn_smax.py: expected a clone of JaxMARL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, required=True, help="a clone of JaxMARL")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs their script")
    parser.add_argument("--task", default="2s3z", help="a map of SMAX")
    parser.add_argument(
        "--iterations", type=int, default=16, help="of 64 environments x 128 steps; the first half does not count"
    )
    parser.add_argument("--pairs", type=int, default=5, help="rounds")
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    require_clone(options.repo, parser)
    if options.theirs:
        return theirs(options.repo, options.task, options.iterations, options.theirs)
    speeds: dict[str, list[float]] = {"theirs": [], "ours": [], "ours, team": []}
    starts: dict[str, list[float]] = {name: [] for name in speeds}
    print(f"{options.task}, {len(os.sched_getaffinity(0))} cores; seconds are from start to the end of iteration 1")
    for k in range(options.pairs):
        for name in speeds:
            with tempfile.TemporaryDirectory() as folder:
                log = Path(folder) / "run" / "metrics.jsonl"
                more = ["--cache", "False", *(["--critic.scope", "team"] if "team" in name else [])]
                command = our_command(options.task, options.iterations, log.parent, *more)
                if name == "theirs":
                    log = Path(folder) / "log"
                    command = their_command(options.repo, options.python, options.task, options.iterations, log)
                found = [stamp.wall for stamp in stamps(command, log)]
            # In the first half ours still compiles its evaluation, where there is a second core.
            late = found[len(found) // 2 - 1 : -1]
            speeds[name].append(BATCH / statistics.median(b - a for a, b in pairwise(late)))
            starts[name].append(found[0])
            print(f"{k + 1}: {name:10} {speeds[name][-1]:7,.0f} steps/s  {found[0]:5.1f} s", flush=True)
    for name in list(speeds)[1:]:
        for what, times in (("steps/s", speeds), ("start", starts)):
            ratios = sorted(a / b for a, b in zip(times[name], times["theirs"], strict=True))
            print(f"{name} / theirs, {what}: {statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]")


if __name__ == "__main__":
    main()
