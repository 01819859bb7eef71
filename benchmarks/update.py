"""How long updates and rollouts take, scheme against scheme: python benchmarks/update.py --hidden 128.

One update of each is run in turn, again and again, in one process; what is printed are medians and,
pair by pair, ratios to the first of its group; the operations of its matrix products, counted in the program;
and their rate as a share of the machine's, measured in the same run with one large product. The rollout that is learnt
from is random numbers. Then rollouts are played, with networks as they start, and the weights to play with are
part of it.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, make_env
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.running.programs import compiler_options

# What is compared, and to which of them: sharing, algorithm, scope of the critic.
GROUPS = {
    "MAPPO, one value for the team": [
        ("ps_id", "mappo", "team"),
        ("lorasa", "mappo", "team"),
        ("lorasa_joint", "mappo", "team"),
        ("nps", "mappo", "team"),
    ],
    "LoRASA, a value per agent": [("lorasa", "mappo", "agent"), ("lorasa", "a2po", "agent")],
    "separate policies, a value per agent": [("nps", "mappo", "agent"), ("nps", "a2po", "agent")],
}


def fill(shapes: Any) -> Any:
    """Random numbers in the place of every leaf; yes in the place of every mask."""
    rng = np.random.default_rng(0)

    def one(leaf: Any) -> Any:
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(one, shapes)


def operations(jaxpr: Any) -> float:
    """Floating-point operations of all matrix products, those in loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        inner = [operations(getattr(sub, "jaxpr", sub)) for sub in jax.extend.core.jaxprs_in_params(equation.params)]
        # Of the branches of a condition one runs, and here the one that does something.
        inside = max(inner, default=0.0) if equation.primitive.name == "cond" else sum(inner)
        total += equation.params.get("length", 1) * inside
    return total


def live(jaxpr: Any) -> Any:
    """The program without what nothing depends on, such as gradients of frozen weights; the compiler drops it too."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def peak() -> float:
    """Operations per second of one large matrix product, the best of a few."""
    size = 2048
    product = jax.jit(lambda a, b: a @ b)
    matrix = jnp.ones((size, size))
    jax.block_until_ready(product(matrix, matrix))
    return 2 * size**3 / min(seconds(partial(product, matrix, matrix)) for _ in range(5))


def make_programs(
    config: Config, env: Any, told: dict[str, str | bool]
) -> tuple[Callable[[], Any], Callable[[], Any], dict[str, float]]:
    """Returns an update and a rollout (not yet compiled) of the last phase, and sizes in bytes and operations."""
    trainer = make_trainer(config, env, adapting=is_two_phase(config, env))
    state = jax.jit(trainer.init)(jax.random.key(0))

    def play(state: Any) -> Any:
        weights = trainer.weights(state)
        return trainer.collect(weights, state.learner.critic, state.rollout, state.key, state.iteration)

    _, trajectory, _ = jax.eval_shape(play, state)
    inputs = state, state.rollout, fill(trajectory)
    traced = jax.jit(trainer.update).trace(*inputs)
    program = traced.lower().compile(compiler_options=told)
    learner = state.learner
    held = jax.tree.leaves((learner.actor, learner.actor_opt))
    sizes = {
        "actor and optimiser": sum(leaf.nbytes for leaf in held),
        "peak temporaries": program.memory_analysis().temp_size_in_bytes,
        "operations": operations(live(traced.jaxpr.jaxpr)),
    }
    return partial(program, *inputs), partial(jax.jit(play, compiler_options=told), state), sizes


def seconds(program: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - began


def in_turn(programs: dict[str, Callable[[], Any]], pairs: int) -> dict[str, list[float]]:
    """Returns the seconds of every program, each run as often, one after the other."""
    for program in programs.values():
        program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(pairs):
        for name, program in programs.items():
            times[name].append(seconds(program))
    return times


def compared(times: dict[str, list[float]], name: str) -> str:
    """Returns the median of a program, and its ratio to the first, pair by pair."""
    first = next(iter(times.values()))
    ratios = sorted(a / b for a, b in zip(times[name], first, strict=True))
    usual = statistics.median(times[name])
    return f"{1e3 * usual:6.0f} ms {statistics.median(ratios):7.2f} {ratios[0]:6.2f}-{ratios[-1]:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", default="3s5z", help="a map of SMAX, for its shapes")
    parser.add_argument("--hidden", type=int, default=128, help="width of the networks")
    parser.add_argument("--n-envs", type=int, default=32)
    parser.add_argument("--rollout-length", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7, help="how often each is run")
    parser.add_argument("--untold", action="store_true", help="compile without what runs tell the compiler")
    options = parser.parse_args()
    network = {"hidden": options.hidden, "layers": 1, "layers_after": 1}
    base = Config(
        task=options.task,
        n_envs=options.n_envs,
        rollout_length=options.rollout_length,
        actor=NetworkConfig(**network),
        critic=CriticConfig(**network),
        ppo=PPOConfig(epochs=2, minibatches=2, chunk_length=16),
    )
    env = make_env(base)
    device, cores = jax.devices()[0].device_kind, len(os.sched_getaffinity(0))
    print(f"{options.task}, width {options.hidden}, {options.n_envs} x {options.rollout_length} steps")
    print(f"{device}, {cores} cores")
    for title, cases in GROUPS.items():
        updates, rollouts, sizes = {}, {}, {}
        for sharing, algo, scope in cases:
            config = replace(base, sharing=sharing, algo=algo, critic=replace(base.critic, scope=scope))
            name = f"{sharing} {algo}"
            told = {} if options.untold else compiler_options()
            updates[name], rollouts[name], sizes[name] = make_programs(config, env, told)
        times = in_turn(updates, options.pairs)
        best = peak()
        columns = f"{'median':>9} {'ratio':>7} {'spread':>13} {'actor+Adam':>11} {'temporaries':>12}"
        print(f"\n{title}; peak {best / 1e9:.0f} GFLOP/s\n{'':14} {columns} {'GFLOP':>6} {'of peak':>8}")
        for name in updates:
            held, temporaries, work = (size / 1e6 for size in sizes[name].values())
            share = 1e6 * work / statistics.median(times[name]) / best
            print(
                f"{name:14} {compared(times, name)} {held:8.2f} MB {temporaries:9.1f} MB {work / 1e3:6.1f} {share:8.2f}"
            )
        algorithms = {algo for _, algo, _ in cases}
        played = in_turn(rollouts if len(algorithms) == 1 else {}, options.pairs)
        for name in played:
            print(f"{name + ', played':21} {compared(played, name)}")


if __name__ == "__main__":
    main()
