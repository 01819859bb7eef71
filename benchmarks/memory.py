"""How much memory a run takes, by a formula and as measured: python benchmarks/memory.py --task 2s3z.

The formula is the one of docs/scaling.md. It is checked against the arrays of the program. What the compiler sets aside
besides is read for as many environments as are asked for and for twice as many, which gives the part of each.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import jax

from lorasa_jax import (
    Config,
    CriticConfig,
    NetworkConfig,
    PPOConfig,
    attach_adapters,
    count_params,
    make_env,
    make_trainer,
)
from lorasa_jax.envs import Env
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import Trainer
from lorasa_jax.running.programs import compiler_options
from lorasa_jax.running.state import Best

FLOAT, INT, BOOL = 4, 4, 1


def nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def formula(trainer: Trainer, held_by_env: int) -> dict[str, int]:
    """Bytes of one seed; `held_by_env` are those of one state of the environment itself."""
    system, spec = trainer.system, trainer.system.env.spec
    config, params = system.config, count_params(trainer)
    n, d, s, a = spec.n_agents, spec.obs_dim, spec.state_dim, spec.n_actions
    v = system.critic.sharing.n_agents
    width = n * (config.actor.hidden if config.actor.recurrent else 0)
    critic_width = v * (config.critic.hidden if config.critic.recurrent else 0)
    carries = FLOAT * (width + critic_width)
    trained, slots = 0, 0
    if "shared" in system.train:
        apart = params["shared"] == 0
        trained += n * params["per_agent"] if apart else params["shared"]
        slots += system.actor.sharing.n_trunks
    if "agents" in system.train:
        trained, slots = trained + n * params["per_agent"], slots + n
    seen = FLOAT * (n * d + s) + BOOL * (n * a + n)
    actions = n * a if spec.continuous else n
    parts = a if spec.continuous and config.ppo.ratio == "per_dim" else 1
    a_step = seen + FLOAT * (actions + n * parts + 2 * v + n) + 3 * BOOL
    return {
        "actors": FLOAT * params["actors"],
        "the best team": FLOAT * params["actors"] + FLOAT + INT,
        "Adam of the actors": 2 * FLOAT * trained + INT * slots,
        "critic and its Adam": 3 * FLOAT * params["critic"] + INT * system.critic.sharing.n_trunks,
        "an environment": held_by_env + seen + FLOAT * n + 4 * BOOL + carries + FLOAT + INT,
        "a trajectory": config.n_envs
        * (config.rollout_length * a_step + config.rollout_length // config.chunk_length * carries),
    }


def measure(config: Config, env: Env, phase: str) -> tuple[Trainer, dict[str, int], tuple]:
    """A trainer, the bytes of its arrays, and the shapes of what its update takes."""
    first, key = make_trainer(config, env), jax.random.key(0)
    trainer = make_trainer(config, env, adapting=True) if phase == "adapters" else first
    start = (lambda key: attach_adapters(trainer, first.init(key))) if phase == "adapters" else first.init
    state = jax.eval_shape(start, key)
    weights = jax.eval_shape(trainer.weights, state)
    played = weights, state.learner.critic, state.rollout, state.key, state.iteration
    rollout, trajectory, _ = jax.eval_shape(trainer.collect, *played)
    learner = state.learner
    arrays = {
        "actors": nbytes(learner.actor),
        "the best team": nbytes(jax.eval_shape(Best.none, state)),
        "Adam of the actors": nbytes(learner.actor_opt),
        "critic and its Adam": nbytes((learner.critic, learner.critic_opt)),
        "an environment": nbytes(state.rollout) // config.n_envs,
        "a trajectory": nbytes(trajectory),
    }
    return trainer, arrays, (state, rollout, trajectory)


def set_aside(trainer: Trainer, shapes: tuple) -> int:
    """Bytes that the compiler sets aside for an update, besides its arguments and what it returns."""
    update = jax.jit(trainer.update).lower(*shapes).compile(compiler_options=compiler_options())
    return update.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="smax")
    parser.add_argument("--task", default="2s3z")
    parser.add_argument("--sharing", default="lorasa")
    parser.add_argument("--hidden", type=int, default=64, help="width of the networks")
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--rollout-length", type=int, default=32)
    options = parser.parse_args()
    network = {"hidden": options.hidden, "layers": 1, "layers_after": 1}
    config = Config(
        env=options.env,
        task=options.task,
        sharing=options.sharing,
        n_envs=options.n_envs,
        rollout_length=options.rollout_length,
        actor=NetworkConfig(**network),
        critic=CriticConfig(**network),
        ppo=PPOConfig(epochs=4, minibatches=2, chunk_length=16),
    )
    env = make_env(config)
    held_by_env = nbytes(jax.eval_shape(env.reset, jax.random.key(0))[0])
    print(
        f"{options.task}, {options.sharing}, width {options.hidden}, {options.n_envs} x {options.rollout_length} steps"
    )
    print(f"{jax.devices()[0].device_kind}; an environment's own state: {held_by_env:,} B; {env.spec}")
    for phase in ("shared", "adapters") if is_two_phase(config, env) else ("shared",):
        trainer, arrays, shapes = measure(config, env, phase)
        expected = formula(trainer, held_by_env)
        print(f"\n{phase:24} {'formula':>12} {'measured':>12}")
        for name, size in arrays.items():
            print(f"{name:24} {expected[name]:12,} {size:12,}")
            assert expected[name] == size, f"the formula is wrong about {name}"
        bigger, _, twice = measure(replace(config, n_envs=2 * config.n_envs), env, phase)
        aside = set_aside(trainer, shapes)
        slope = (set_aside(bigger, twice) - aside) / config.n_envs
        print(f"{'set aside by the update':24} {'':12} {aside:12,} ({slope:,.0f} per environment)")


if __name__ == "__main__":
    main()
