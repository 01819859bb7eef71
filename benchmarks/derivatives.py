"""What is gained by derivatives that are written out: python benchmarks/derivatives.py.

Each is timed against the plain form of the same function, in turn, again and again; both are compiled as runs compile.
CPUs only: what is looked at are habits of XLA's CPU compiler (docs/performance.md).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.core.distributions import squashed_normal
from lorasa_jax.core.networks import affine, gru, gru_step
from lorasa_jax.running.programs import compiler_options


def plain_gru(weights: Any, gates: Any, h: Any, first: Any) -> Any:
    """The steps of a GRU one after the other, to be differentiated automatically."""

    def step(h: Any, now: Any) -> tuple[Any, Any]:
        h, _ = gru_step(weights, h, *now, None)
        return h, h

    return jax.lax.scan(step, h, (gates, first))[1]


def our_gru(weights: Any, gates: Any, h: Any, first: Any) -> Any:
    """The same, as the network has it."""
    return gru(weights, h, gates, first, None)


def plain_entropy(mean: Any, log_std: Any) -> Any:
    """The entropy of a squashed normal, one node of the quadrature after the other."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    std, total = 0.5 * jax.nn.sigmoid(log_std), 0.0
    for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
        u = mean + std * node
        total += weight * 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
    return jnp.sum(jnp.log(std) + 0.5 * math.log(2 * math.pi * math.e) + total, axis=-1)


def entropy(mean: Any, log_std: Any) -> Any:
    """The same, as the library computes it."""
    return squashed_normal().entropy(jnp.concatenate([mean, log_std], axis=-1))


def gradient(function: Callable) -> Callable:
    """The gradient of a weighted sum of what the function gives, by its first two arguments; the weights come last."""
    return jax.grad(lambda *inputs: jnp.sum(inputs[-1] * function(*inputs[:-1])), (0, 1))


def ratio(pairs: int, plain: tuple[Callable, tuple, dict], ours: tuple[Callable, tuple, dict]) -> str:
    """The time of `ours` over that of `plain`: median, lowest, highest."""
    programs = [jax.jit(f).lower(*args).compile(compiler_options=options) for f, args, options in (plain, ours)]
    arguments, times = (plain[1], ours[1]), ([], [])
    for k in range(-2, pairs):
        for program, args, found in zip(programs, arguments, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            if k >= 0:
                found.append(time.perf_counter() - began)
    found = sorted(b / a for a, b in zip(*times, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} - {found[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128, help="width of the layer")
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--length", type=int, default=128, help="steps of a sequence")
    parser.add_argument("--sequences", type=int, default=16, help="of each agent")
    parser.add_argument("--pairs", type=int, default=15, help="how often each is run")
    o = parser.parse_args()
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    rows, h, told = o.agents * o.sequences, o.hidden, compiler_options()
    cores = len(os.sched_getaffinity(0))
    print(f"width {h}, {o.agents} agents x {o.sequences} sequences x {o.length} steps, {cores} cores")
    first = jnp.zeros((o.length, rows), bool)
    inputs = {"kernel": draw(h, 3 * h), "bias": draw(3 * h)}, draw(o.length, rows, 3 * h), draw(rows, h), first
    automatic, written = ((gradient(f), (*inputs, draw(o.length, rows, h)), told) for f in (plain_gru, our_gru))
    print("gradient of a GRU, written out / automatic:", ratio(o.pairs, automatic, written))

    def team(layer: Callable) -> Callable:
        mapped = jax.vmap(layer, in_axes=(0, None, None))
        return gradient(lambda kernel, bias, x: mapped(x, kernel, bias))

    x = draw(o.agents, o.length * o.sequences, h)
    inputs = draw(h, h), draw(h), x, draw(*x.shape)
    automatic = team(lambda x, kernel, bias: x @ kernel + bias), inputs, told
    print(
        "gradient of shared weights, written out / automatic:", ratio(o.pairs, automatic, (team(affine), inputs, told))
    )
    inputs = draw(o.length * o.agents, 3), draw(o.length * o.agents, 3), draw(o.length * o.agents)
    automatic, written = ((gradient(f), inputs, told) for f in (plain_entropy, entropy))
    print("gradient of a squashed normal's entropy, as products / node by node:", ratio(o.pairs, automatic, written))


if __name__ == "__main__":
    main()
