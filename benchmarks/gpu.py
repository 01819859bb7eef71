"""What an accelerator does with a run, in at most eight minutes: python benchmarks/gpu.py --out gpu.json.

Parts, each written to the JSON file as soon as it is measured:

* `parity`: one iteration on the accelerator beside the same one on the CPU, the largest relative difference of the
  parameters and of what the update measures;
* `speed`: environment steps/s of whole iterations, and bytes of memory, by environments and by seeds;
* `win`: seconds and steps from the command to a greedy win rate of 0.9 on 2s3z, with nothing compiled beforehand;
* `peer`: steps/s beside JaxMARL's script, with `--repo PATH/TO/JaxMARL`.

A part that no time is left for is skipped, and the file says so. On a machine without an accelerator the script runs on
the CPU; `--small` makes a quick trial of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from time_to_win import RUN, wait_for

from lorasa_jax import Config, make_env
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.running.programs import compiler_options, over_seeds

MINUTES = 8
PEER = Path(__file__).with_name("peer_jaxmarl.py")


def parity(config: Config) -> dict[str, Any]:
    """Returns the largest differences between an iteration here and on the CPU, relative to the largest number."""
    trainer = make_trainer(config, make_env(config))

    def iteration(device: jax.Device) -> Any:
        with jax.default_device(device):
            told = compiler_options() if device.platform == jax.default_backend() else {}
            state = jax.jit(trainer.init, compiler_options=told)(jax.random.key(0))
            state, metrics = jax.jit(trainer.step, compiler_options=told)(state)
            return jax.device_get((state.learner.actor, state.learner.critic.shared, metrics))

    def far(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-6)) for x, y in pairs)

    here, there = iteration(jax.devices()[0]), iteration(jax.devices("cpu")[0])
    return {name: far(a, b) for name, a, b in zip(("actor", "critic", "metrics"), here, there, strict=True)}


def speed(config: Config, n_envs: int, seeds: int, iterations: int) -> dict[str, Any]:
    """Returns steps/s of all seeds, the median over iterations, and the bytes of the compiled program."""
    config = replace(config, n_envs=n_envs, total_steps=10 * n_envs * config.rollout_length)
    trainer, began = make_trainer(config, make_env(config)), time.perf_counter()
    states = jax.jit(over_seeds(trainer.init, seeds))(jax.random.split(jax.random.key(0), seeds))
    step = jax.jit(over_seeds(trainer.step, seeds)).lower(states).compile(compiler_options=compiler_options())
    compiled, seconds = time.perf_counter() - began, []
    for _ in range(iterations):
        now = time.perf_counter()
        states, metrics = step(states)
        jax.block_until_ready((states, metrics))
        seconds.append(time.perf_counter() - now)
    memory, device = step.memory_analysis(), jax.devices()[0].memory_stats() or {}
    return {
        "n_envs": n_envs,
        "seeds": seeds,
        "steps_per_second": seeds * config.steps_per_iteration / statistics.median(seconds[1:]),
        "compile_seconds": compiled,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes_of_the_process": device.get("peak_bytes_in_use"),
    }


def win(level: float) -> dict[str, Any]:
    """Returns how long a user waits for a team that wins."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, str(RUN), "--env", "smax", "--out", str(out), "--gif", "False", "--cache", "False"]
        found = wait_for(command, out / "metrics.jsonl", level)
    return {"level": level, "seconds": found and found[0], "env_steps": found and found[1]}


def peer(repo: Path, python: str, seconds: float) -> dict[str, Any]:
    """Returns what `peer_jaxmarl.py` prints of one pair."""
    command = [sys.executable, str(PEER), "--repo", str(repo), "--python", python, "--pairs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    return {"said": done.stdout.splitlines(), "failed": done.stderr[-2000:] if done.returncode else ""}


def parts(options: argparse.Namespace, left: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and result of every part."""
    small = options.small
    config = Config.from_preset("smax", "2s3z", sharing="ps_id")
    yield "parity", parity(replace(config, n_envs=8) if small else config)
    for n_envs, seeds in [(8, 1), (8, 2)] if small else [(64, 1), (512, 1), (4096, 1), (64, 8), (64, 64)]:
        # The last parts need about three minutes.
        skipped = left() < 180 and not small
        yield "speed", "skipped: no time" if skipped else speed(config, n_envs, seeds, 3 if small else 12)
    if not small:
        yield "win", win(0.9) if left() > 60 else "skipped: no time"
    if options.repo:
        yield "peer", peer(options.repo, options.python, left()) if left() > 60 else "skipped: no time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file")
    parser.add_argument("--repo", type=Path, help="a clone of JaxMARL")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs JaxMARL's script")
    parser.add_argument("--small", action="store_true", help="a trial at a small size")
    options = parser.parse_args()
    began = time.perf_counter()
    device = jax.devices()[0]
    found: dict[str, Any] = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    for name, result in parts(options, lambda: 60 * MINUTES - (time.perf_counter() - began)):
        found.setdefault(name, []).append(result)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.perf_counter() - began:5.0f} s  {name}: {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
