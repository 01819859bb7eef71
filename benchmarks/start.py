"""From the command to the end of the first iteration, and where that time goes: python benchmarks/start.py.

In rounds, each a process of its own that is stopped there: with an empty cache of compiled programs, with the cache
that this left, and with `--repo` JaxMARL's script (benchmarks/peer_jaxmarl.py), which keeps no cache. Besides seconds
it prints those that all cores of the process worked: on a machine with other work, compare those.

The table at the end is of one more start of each kind. Tracing goes on while programs are compiled, so with a second
core its rows overlap.
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
from collections import Counter
from pathlib import Path

from peer_jaxmarl import RUN, our_command, require_clone, stamps, their_command

STEPS = {"jaxpr_trace": "trace", "jaxpr_to_mlir_module": "lower", "backend_compile": "compile"}
"""What jax calls the steps from a function to a program."""


class Enough(Exception):
    """The first iteration has ended."""


def parts(arguments: list[str]) -> dict[str, float]:
    """Returns the seconds of every part of a start of this process."""
    began = [time.perf_counter()]
    seconds: Counter[str] = Counter()

    def mark(name: str) -> None:
        seconds[name] += time.perf_counter() - began[0]
        began[0] = time.perf_counter()

    sys.path.insert(0, str(RUN.parent))
    import run  # type: ignore[import-not-found]
    from cli import RunConfig, parse  # type: ignore[import-not-found]

    config = parse(RunConfig, arguments)
    mark("command line")
    import jax

    mark("import jax")
    programs: Counter[str] = Counter()

    def note(event: str, duration: float, fun_name: str = "", **rest: object) -> None:
        step = STEPS.get(event.rpartition("/")[2].removesuffix("_duration"))
        if step:
            programs[f"{fun_name.removeprefix('jit_')}: {step}"] += duration

    jax.monitoring.register_event_duration_secs_listener(note)
    run.use_cache(config)
    from lorasa_jax import loop
    from lorasa_jax.envs import make_env
    from lorasa_jax.programs import Programs

    mark("import the library")
    env = make_env(config)
    mark("environment")
    small = sum(programs.values())
    names, submit = [], Programs.submit

    def submit_noted(self: Programs, name: str, *rest: object) -> object:
        names.append(name.replace(" ", "_"))
        return submit(self, name, *rest)

    class Stop(loop.Silent):
        def report(self, report: object) -> None:
            raise Enough

    Programs.submit = submit_noted  # type: ignore[method-assign, assignment]
    programs.clear()
    with contextlib.suppress(Enough):
        loop.run(config, env, Stop())
    mark("programs and the first iteration")
    for name in names:
        for step in STEPS.values():
            seconds[f"  {name}: {step}"] = programs.pop(f"{name}: {step}", 0.0)
    seconds["  small programs: compile"] = sum(v for k, v in programs.items() if k.endswith("compile"))
    seconds["  (of the environment: small programs)"] = small
    seconds["all, without Python itself"] = sum(v for k, v in seconds.items() if k[0] != " ")
    return dict(seconds)


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
                found[name] += stamps(command, log, 1, {"XDG_CACHE_HOME": folder})
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
        settings = {**os.environ, "XDG_CACHE_HOME": folder}
        tables = [
            json.loads(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout)
            for _ in ("cold", "warm")
        ]
    print(f"{'seconds':40} {'cold':>6} {'warm':>6}")
    for name in tables[0]:
        print(f"{name:40} {tables[0][name]:6.2f} {tables[1].get(name, 0.0):6.2f}")


if __name__ == "__main__":
    main()
