"""How long a user waits for a team that wins: python benchmarks/time_to_win.py.

Starts `experiments/run.py` as a user does, one seed after the other, and stops each run once a greedy evaluation has
reached the level. Seconds count from the start of the process, with nothing compiled beforehand.
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


def wait_for(command: list[str], log: Path, level: float) -> tuple[float, int] | None:
    """Returns when an evaluation reached the level, in seconds and in steps; None: it never did."""
    began, place = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        while process.poll() is None:
            lines = log.read_text()[place:] if log.exists() else ""
            lines = lines[: lines.rfind("\n") + 1]
            place += len(lines)
            for row in map(json.loads, lines.splitlines()):
                if (row.get("eval_win_rate") or 0) >= level:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="2s3z", help="a map of SMAX")
    parser.add_argument("--level", type=float, default=0.9, help="greedy win rate")
    parser.add_argument("--seeds", type=int, default=5, help="runs, with seeds from 0")
    options = parser.parse_args()
    print(f"{options.task}, {len(os.sched_getaffinity(0))} cores, to a greedy win rate of {options.level}")
    seconds = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            flags = ["--env", "smax", "--task", options.task, "--seed", str(seed), "--out", str(out)]
            command = [sys.executable, str(RUN), *flags, "--gif", "False", "--cache", "False"]
            found = wait_for(command, out / "metrics.jsonl", options.level)
        print(f"seed {seed}: " + (f"{found[0]:.1f} s, {found[1]:,} steps" if found else "never"), flush=True)
        seconds.append(found[0] if found else float("inf"))
    print(f"median {statistics.median(seconds):.1f} s ({min(seconds):.1f} - {max(seconds):.1f})")


if __name__ == "__main__":
    main()
