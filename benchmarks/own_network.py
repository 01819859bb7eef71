"""What a network of the user's own costs beside the built-in one of the same shape: python benchmarks/own_network.py.

The user's network is Dense, LayerNorm, `nn.GRUCell`, Dense, as many code bases have it. Updates and rollouts of both
are run in turn, in one process; printed are medians and, pair by pair, ratios to the built-in network.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array
from update import compared, in_turn, make_programs

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, make_env, with_networks
from lorasa_jax.running.programs import compiler_options


class Twin(nn.Module):
    """The built-in network's shape, of Flax's own layers."""

    n_out: int
    hidden: int

    @property
    def carry_width(self) -> int:
        """Width of the recurrent state."""
        return self.hidden

    @nn.compact
    def __call__(self, carry: Array, obs: Array, first: Array) -> tuple[Array, Array]:
        """Returns the recurrent state after every step, and the outputs."""

        def step(cell: nn.Module, h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            x, opens = inputs
            h, _ = cell(jnp.where(opens[:, None], 0.0, h), x)
            return h, h

        scan: Any = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        x = nn.LayerNorm()(nn.relu(nn.Dense(self.hidden)(nn.LayerNorm()(obs))))
        _, carries = scan(nn.GRUCell(self.hidden), carry, (x, first))
        x = nn.LayerNorm()(nn.relu(nn.Dense(self.hidden)(nn.LayerNorm()(carries))))
        return carries, nn.Dense(self.n_out, name="head")(x)


def twin(n_in: int, n_out: int, config: NetworkConfig) -> nn.Module:
    """Returns the network for a section of the configuration."""
    return Twin(n_out, config.hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", default="2s3z", help="a map of SMAX, for its shapes")
    parser.add_argument("--hidden", type=int, default=64, help="width of the networks")
    parser.add_argument("--schemes", nargs="+", default=["ps_id", "lorasa"])
    parser.add_argument("--pairs", type=int, default=7, help="how often each is run")
    options = parser.parse_args()
    network = {"hidden": options.hidden, "layers": 1, "layers_after": 1}
    base = Config(
        task=options.task,
        n_envs=64,
        rollout_length=32,
        actor=NetworkConfig(**network),
        critic=CriticConfig(**network),
        ppo=PPOConfig(epochs=2, minibatches=2, chunk_length=16),
    )
    env = make_env(base)
    for scheme in options.schemes:
        config = replace(base, sharing=scheme)
        cases = {"built-in": config, "own": with_networks(config, twin)}
        made = {name: make_programs(case, env, compiler_options()) for name, case in cases.items()}
        print(f"{scheme}: {'median':>20} {'ratio':>7} {'spread':>13}")
        for what, place in (("update", 0), ("rollout", 1)):
            times = in_turn({name: programs[place] for name, programs in made.items()}, options.pairs)
            for name in times:
                print(f"{what + ', ' + name:18} {compared(times, name)}")


if __name__ == "__main__":
    main()
