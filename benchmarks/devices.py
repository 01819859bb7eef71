"""How long an iteration takes on two devices against one: python benchmarks/devices.py.

The devices are forced on the processor, so they share its cores: what shows is the price of spreading, and what is won
where one device leaves cores idle. Programs are run in turn in one process; ratios are those of neighbours in time, of
seconds and of the processor's seconds, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--env", default="smax")
parser.add_argument("--task", default="2s3z")
parser.add_argument("--devices", type=int, default=2)
parser.add_argument("--n-envs", type=int, default=64)
parser.add_argument("--pairs", type=int, default=7, help="how often each is run")
options = parser.parse_args()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"  # before jax is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, make_env, make_trainer  # noqa: E402
from lorasa_jax.running.devices import choose_layout  # noqa: E402
from lorasa_jax.running.programs import compiler_options, over_seeds  # noqa: E402


def main() -> None:
    network = {"hidden": 64, "layers": 1, "layers_after": 1}
    config = Config(
        env=options.env,
        task=options.task,
        n_envs=options.n_envs,
        rollout_length=32,
        actor=NetworkConfig(**network),
        critic=CriticConfig(**network),
        ppo=PPOConfig(epochs=4, minibatches=2, chunk_length=16),
    )
    trainer = make_trainer(config, make_env(config))
    print(f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, {options.devices} forced devices")
    print(f"{options.task}, {options.n_envs} x 32 steps, phase 1, one iteration of all rows")
    for by, n_rows in (("rows", options.devices), ("envs", 1)):
        keys = jnp.stack([jax.random.key(k) for k in range(n_rows)])
        start = jax.jit(over_seeds(trainer.init, n_rows))(keys)
        programs, states, times = {}, {}, {"off": [], by: []}
        for name in times:
            layout = choose_layout(name, n_rows, config)
            states[name] = layout.place(start)
            mapped = over_seeds(trainer.step, layout.rows_each(n_rows))
            programs[name] = (
                layout.trace(mapped, (jax.eval_shape(lambda x: x, start),))
                .lower()
                .compile(compiler_options=compiler_options())
            )
            jax.block_until_ready(programs[name](states[name]))
        for _ in range(options.pairs):
            for name, program in programs.items():
                began = time.perf_counter(), time.process_time()
                jax.block_until_ready(program(states[name]))
                times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        print(f"\n{n_rows} rows, spread by {by}")
        for i, clock in enumerate(("seconds", "of the processor")):
            one, many = ([pair[i] for pair in times[name]] for name in ("off", by))
            ratios = sorted(b / a for a, b in zip(one, many, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            print(
                f"{clock:17} one device {statistics.median(one):.3f}, {options.devices} devices "
                f"{statistics.median(many):.3f}, ratio {spread}"
            )


if __name__ == "__main__":
    main()
