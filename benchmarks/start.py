"""From the command to the end of the first iteration, and where that time goes: python benchmarks/start.py.

In rounds, each a process of its own that is stopped there: with an empty cache of compiled programs, with the cache
that this left, and with `--repo` JaxMARL's script (benchmarks/peer_jaxmarl.py), which keeps no cache. Besides seconds
it prints those that all cores of the process worked: on a machine with other work, compare those.

The table at the end is of one more start of each kind, in seconds of work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peer_jaxmarl import RUN, our_command, require_clone, stamps, their_command


class Enough(Exception):
    """The first iteration has ended."""


def parts(arguments: list[str]) -> dict[str, float]:
    """Returns the seconds that this process works for each part of a start, programs made one after the other."""
    seconds: dict[str, float] = {}

    def mark(name: str) -> None:
        seconds[name] = time.process_time() - sum(seconds.values())

    mark("Python")
    sys.path.insert(0, str(RUN.parent))
    from lorasa_jax.cli.flags import RunConfig, parse

    config = parse(RunConfig, arguments)
    mark("command line")
    import jax  # noqa: F401

    mark("jax")
    from lorasa_jax.surroundings import prepare

    prepare(many=config.shard != "off", keep=config.cache)
    from lorasa_jax.envs import make_env
    from lorasa_jax.running import loop
    from lorasa_jax.running.programs import Programs

    mark("library")
    env = make_env(config)
    mark("environment")
    submit = Programs.submit

    def submit_and_wait(self: Programs, name: str, *rest: Any, **more: Any) -> Any:
        mark(f"before {name}")
        shapes = submit(self, name, *rest, **more)
        mark(f"{name}, traced")
        self[name]
        mark(f"{name}, compiled")
        return shapes

    def stop(report: object, state: object) -> None:
        raise Enough

    Programs.submit = submit_and_wait  # type: ignore[method-assign]
    with contextlib.suppress(Enough):
        loop.run(config, env, [stop])
    mark("first iteration")
    return seconds | {"all": sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, help="a clone of JaxMARL, to compare with")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs their script")
    parser.add_argument("--task", default="2s3z", help="a map of SMAX")
    parser.add_argument("--pairs", type=int, default=5, help="rounds; 0: the table alone")
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(parts(options.inside)))
        return
    if options.repo:
        require_clone(options.repo, parser)
    found: dict[str, list] = {name: [] for name in (["theirs"] if options.repo else []) + ["cold", "warm"]}
    print(f"{options.task}, {len(os.sched_getaffinity(0))} cores; from the start to the end of iteration 1")
    for k in range(options.pairs):
        with tempfile.TemporaryDirectory() as folder:
            for name in found:
                log = Path(folder) / name / "metrics.jsonl"
                command = our_command(options.task, 2, log.parent)
                if name == "theirs":
                    log = Path(folder) / "log"
                    command = their_command(options.repo, options.python, options.task, 2, log)
                cache = "" if name == "theirs" else folder  # they keep none
                found[name] += stamps(command, log, 1, {"JAX_COMPILATION_CACHE_DIR": cache})
                wall, cpu = found[name][-1]
                print(f"{k + 1}: {name:7} {wall:6.1f} s, {cpu:6.1f} s of work", flush=True)
    for name in ("cold", "warm") if options.pairs else ():
        against = "theirs" if options.repo else "cold"
        for what, field in (("seconds", "wall"), ("work", "cpu")) if name != against else ():
            ratios = sorted(
                getattr(a, field) / getattr(b, field) for a, b in zip(found[name], found[against], strict=True)
            )
            print(f"{name} / {against}, {what}: {statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]")
    with tempfile.TemporaryDirectory() as folder:
        arguments = our_command(options.task, 2, Path(folder) / "run")[2:]
        command = [sys.executable, __file__, "--inside", *arguments]
        settings = {**os.environ, "JAX_COMPILATION_CACHE_DIR": folder}
        tables = [
            json.loads(subprocess.run(command, env=settings, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in ("cold", "warm")
        ]
    print(f"{'seconds of work':40} {'cold':>6} {'warm':>6}")
    for name in tables[0]:
        print(f"{name:40} {tables[0][name]:6.2f} {tables[1].get(name, 0.0):6.2f}")


if __name__ == "__main__":
    main()
