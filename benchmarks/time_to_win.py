"""How long a user waits for a team that plays well: python benchmarks/time_to_win.py.

Starts `experiments/run.py` as a user does, one seed after the other, and stops each run once a greedy evaluation has
reached the level: a win rate in SMAX, and otherwise a return. Seconds count from the start of the process, with nothing
compiled beforehand. For example: --env particles --task spread_30x5 --preset tuned --level -10.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / "experiments" / "run.py"


def wait_for(command: list[str], log: Path, measure: str, level: float) -> tuple[float, int] | None:
    """Returns when the measure of an evaluation reached the level, in seconds and in steps; None: it never did."""
    began, place = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        while process.poll() is None:
            lines = log.read_text()[place:] if log.exists() else ""
            lines = lines[: lines.rfind("\n") + 1]
            place += len(lines)
            for row in map(json.loads, lines.splitlines()):
                if row.get(measure) is not None and row[measure] >= level:
                    found = time.perf_counter() - began, row["env_steps"]
                    process.send_signal(signal.SIGTERM)
                    process.wait()
                    return found
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read().decode()[-2000:]}")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="smax", help="family of environments")
    parser.add_argument("--task", default="2s3z", help="task of this family")
    parser.add_argument("--level", type=float, default=0.9, help="greedy win rate (smax) or return")
    parser.add_argument("--seeds", type=int, default=5, help="runs, with seeds from 0")
    options, more = parser.parse_known_args()  # more: flags of experiments/run.py
    measure = "eval_win_rate" if options.env == "smax" else "eval_return"
    words = [options.task, *more, f"{len(os.sched_getaffinity(0))} cores"]
    print(f"{', '.join(words)}, to a greedy {measure.removeprefix('eval_').replace('_', ' ')} of {options.level:g}")
    seconds = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            flags = ["--env", options.env, "--task", options.task, "--seed", str(seed), "--out", str(out), *more]
            command = [sys.executable, str(RUN), *flags, "--gif", "False", "--cache", "False"]
            found = wait_for(command, out / "metrics.jsonl", measure, options.level)
        print(f"seed {seed}: " + (f"{found[0]:.1f} s, {found[1]:,} steps" if found else "never"), flush=True)
        seconds.append(found[0] if found else float("inf"))
    print(f"median {statistics.median(seconds):.1f} s ({min(seconds):.1f} - {max(seconds):.1f})")


if __name__ == "__main__":
    main()
