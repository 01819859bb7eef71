"""How the time of an agent's step grows with the number of agents: taskset -c 0 python benchmarks/agents.py.

An iteration, a rollout and an update, of each scheme and team is run in turn, again and again, in one process. What is
printed are medians in microseconds of the processor for one step of one agent, and, round by round, ratios: to the
same scheme with the fewest agents, and of each scheme to separate networks in a team of the same size. The game costs
the same for every agent, and every agent plays as much; with `--same-batch` all teams together play as much, so that
in a team of many each agent, and what it owns, sees fewer steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from crowd import make_crowd

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import Trainer, make_trainer
from lorasa_jax.running.programs import compiler_options

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "agents.json"
AGENTS = (2, 8, 32, 128, 512, 1024)
SCHEMES = ("ps_id", "nps", "mtl", "hyper", "mask", "seps", "seps_lora", "lorasa")
MOST = 36
"""Cells that one process can hold: each maps over a thousand pieces of memory, and a process may have 65,530."""
CLUSTERS = 4
"""Of agents, where a scheme has clusters."""


def fits(sharing: str, n_agents: int) -> bool:
    """Clusters want more agents than there are of them."""
    return not sharing.startswith("seps") or n_agents > CLUSTERS


def setting(sharing: str, n_agents: int, options: argparse.Namespace) -> Config:
    """The preset `fast` of SMAX, but for the batch."""
    network = {"hidden": options.hidden, "layers": 1, "layers_after": 1, "input_norm": not options.no_input_norm}
    return Config(
        env="own",
        sharing=sharing,
        groups=tuple(i % CLUSTERS for i in range(n_agents)) if sharing.startswith("seps") else None,
        n_envs=options.n_envs,
        rollout_length=options.rollout_length,
        actor=NetworkConfig(**network),
        critic=CriticConfig(**network),
        ppo=PPOConfig(epochs=options.epochs, minibatches=2, chunk_length=options.rollout_length),
    )


def shapes_of(trainer: Trainer) -> tuple[tuple, tuple]:
    """The shapes of what a trainer's `collect` and its `update` take."""
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    weights = jax.eval_shape(trainer.weights, state)
    played = weights, state.learner.critic, state.rollout, state.key, state.iteration
    rollout, trajectory, _ = jax.eval_shape(trainer.collect, *played)
    return played, (state, rollout, trajectory)


def bytes_of(program: Any) -> int:
    """What XLA plans for a program at most: its arguments, its results, and what it sets aside besides."""
    plan = program.memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes


def make_iteration(trainer: Trainer) -> tuple[Callable[[], tuple[float, float]], int]:
    """Returns what does one iteration and says how long its rollout and its update took, and the peak of its memory."""
    played, updated = shapes_of(trainer)

    def compiled(function: Callable, args: tuple) -> Any:
        return jax.jit(function).lower(*args).compile(compiler_options=compiler_options())

    # As in a run: the weights to play with are a program of their own.
    weights, collect = compiled(trainer.weights, updated[:1]), compiled(trainer.collect, played)
    update = compiled(trainer.update, updated)
    now = jax.jit(trainer.init)(jax.random.key(0))

    def iteration() -> tuple[float, float]:
        nonlocal now
        began = time.process_time()
        args = weights(now), now.learner.critic, now.rollout, now.key, now.iteration
        rollout, trajectory, _ = jax.block_until_ready(collect(*args))
        between = time.process_time()
        now, _ = jax.block_until_ready(update(now, rollout, trajectory))
        return between - began, time.process_time() - between

    return iteration, max(map(bytes_of, (weights, collect, update)))


def last_phase(config: Config, n_agents: int) -> Trainer:
    env = make_crowd(n_agents)
    return make_trainer(config, env, adapting=is_two_phase(config, env))


def flags() -> argparse.ArgumentParser:
    """What says how large networks and batches are."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--hidden", type=int, default=64, help="width of the networks")
    parser.add_argument("--n-envs", type=int, default=16)
    parser.add_argument("--rollout-length", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run")
    parser.add_argument("--no-input-norm", action="store_true", help="do not normalise inputs")
    return parser


def size_of(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("hidden", "n_envs", "rollout_length", "epochs", "no_input_norm")}


def keep(options: argparse.Namespace, peaks: dict[Any, int], times: dict[Any, list[tuple[float, float]]]) -> None:
    """Writes what was measured to results/agents.json; what is there of other cells of this size stays."""
    sys.path.insert(0, str(ROOT / "experiments"))
    from lorasa_jax.cli.run_dir import versions

    kept, size = json.loads(RECORD.read_text()) if RECORD.exists() else {}, size_of(options)
    same = kept.get("size") == size
    older = [row for row in kept["rows"] if (row["agents"], row["scheme"]) not in times] if same else []
    sources = kept["sources"] if same else []
    rows = [
        {"scheme": scheme, "agents": n, "peak": peaks[n, scheme], "rounds": times[n, scheme], "source": len(sources)}
        for n, scheme in times
    ]
    RECORD.write_text(json.dumps({"sources": [*sources, versions()], "size": size, "rows": [*older, *rows]}) + "\n")


def measured_in(size: dict[str, Any]) -> dict[Any, dict[str, float]]:
    """What was kept of networks and batches of this size, by scheme and team: `peak` and the median of `seconds`."""
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {"size": None}
    if kept["size"] != size:
        return {}
    return {
        (row["scheme"], row["agents"]): {
            "peak": row["peak"],
            "seconds": statistics.median(sum(pair) for pair in row["rounds"]),
        }
        for row in kept["rows"]
    }


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, parents=[flags()]
    )
    parser.add_argument("--agents", type=int, nargs="+", default=AGENTS)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=("ps_id", "nps", "lorasa"))
    parser.add_argument("--keep", action="store_true", help="write what was measured to results/agents.json")
    parser.add_argument(
        "--same-batch", action="store_true", help="n-envs are of the largest team; smaller ones have more"
    )
    options = parser.parse_args()
    if options.keep and options.same_batch:
        parser.error("--keep keeps what was measured with as many environments for every team; leave out --same-batch")
    print(f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores; width {options.hidden}")
    cells = [(n, scheme) for n in options.agents for scheme in options.schemes if fits(scheme, n)]
    if len(cells) > MOST:
        parser.error(
            f"these are {len(cells)} cells, and {MOST} fit; measure some schemes after the others, with --keep"
        )
    iterations, peaks = {}, {}
    n_envs = {n: options.n_envs * (max(options.agents) // n if options.same_batch else 1) for n in options.agents}
    for n, scheme in cells:
        config = setting(scheme, n, options)
        iterations[n, scheme], peaks[n, scheme] = make_iteration(last_phase(replace(config, n_envs=n_envs[n]), n))
        iterations[n, scheme]()
    times: dict[Any, list[tuple[float, float]]] = {cell: [] for cell in cells}
    for _ in range(options.pairs):
        for cell in cells:
            iterations[cell]()  # first, and not measured: it gives back the memory of a larger team before it
            times[cell].append(iterations[cell]())
    if options.keep:
        keep(options, peaks, times)
    steps = {n: n * n_envs[n] * options.rollout_length for n in options.agents}
    total = {(n, scheme): [sum(pair) / steps[n] for pair in pairs] for (n, scheme), pairs in times.items()}
    print(f"{'agents':>6} {'scheme':9} {'rollout':>8} {'update':>8} {'both':>8}   to the fewest agents, to nps")
    for n, scheme in cells:
        parts = [statistics.median(part) / steps[n] for part in zip(*times[n, scheme], strict=True)]
        each = [f"{1e6 * part:5.1f} us" for part in (*parts, statistics.median(total[n, scheme]))]
        fewest = min(m for m, other in cells if other == scheme)
        against = [(fewest, scheme)] + [(n, "nps")] * ("nps" in options.schemes)
        ratios = [spread([a / b for a, b in zip(total[n, scheme], total[cell], strict=True)]) for cell in against]
        print(f"{n:6} {scheme:9} {' '.join(each)}   {'   '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
