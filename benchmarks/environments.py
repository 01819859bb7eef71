"""How fast environments are stepped and trained in: python benchmarks/environments.py.

* A battle: our environment as rollouts step it, with a pool of start states, against JaxMARL's `env.step`, which resets
  by itself; the same random numbers choose among the available actions.
* A robot of brax: training with the preset `fast`, collecting and updating, against brax's single-agent environment
  with random actions in brax's own training wrapper, which counts steps, keeps metrics and resets: an update costs it
  nothing.
* A robot of MuJoCo (`--env mujoco`): the same against MuJoCo's own `rollout` in one thread, which neither observes nor
  pays. Beside them our environment alone, gymnasium-robotics' one team (MaMuJoCo), and Gymnasium's vector of
  single-agent environments. All get random actions like those of an untrained policy: contacts make steps dear.

Both sides run in turn in one process. Ratios are those of neighbours in time, by seconds of the processor, which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from lorasa_jax import Config, make_env, make_trainer
from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.envs._jaxmarl import load_smax
from lorasa_jax.envs.mabrax import load_robot
from lorasa_jax.envs.mabrax_maps import ROBOTS, robot_name
from lorasa_jax.learning.rollout import select, start_pool
from lorasa_jax.running.programs import compiler_options

TASKS = "2s3z", "3s5z", "3s5z_vs_3s6z", "10m_vs_11m", "ant_4x2", "walker2d_2x3"
N_ENVS, STEPS = 64, 128
RECURRENT = ["--actor.recurrent", "True", "--critic.recurrent", "True", "--ppo.chunk-length", "16"]


def total(tree: Any) -> Any:
    """The sum of all that is in a tree, so that the compiler leaves nothing out."""
    return sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(tree))


def compiled(function: Callable, *inputs: Any) -> Callable[[], Any]:
    """The compiled program, to be called with these inputs."""
    program = jax.jit(function).lower(*inputs).compile(compiler_options=compiler_options())
    return lambda: jax.block_until_ready(program(*inputs))


def seconds(program: Callable[[], Any]) -> float:
    """The processor's seconds that one call takes."""
    began = time.process_time()
    program()
    return time.process_time() - began


def best(noise: Any, avail: Any) -> Any:
    """The available action with the largest number."""
    return jnp.argmax(jnp.where(avail, noise, -1.0), axis=-1)


def their_battles(task: str) -> Callable:
    """JaxMARL's battles, as its users step them."""
    smax = load_smax()
    game = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario(task))

    def play(key: Any, noise: Any) -> Any:
        def step(state: Any, now: Any) -> tuple[Any, Any]:
            key, noise = now
            avail = jax.vmap(game.get_avail_actions)(state)
            action = best(noise, jnp.stack([avail[agent] for agent in game.agents], axis=1))
            orders = {agent: action[:, i] for i, agent in enumerate(game.agents)}
            obs, state, reward, done, _ = jax.vmap(game.step)(jax.random.split(key, N_ENVS), state, orders)
            return state, total((obs, avail, reward, done))

        _, state = jax.vmap(game.reset)(jax.random.split(key, N_ENVS))
        state, sums = jax.lax.scan(step, state, (jax.random.split(key, STEPS), noise))
        return sums.sum() + total(state)

    return play


def our_battles(env: Any) -> Callable:
    """Ours, as `lorasa_jax.learning.rollout.collect` steps them."""

    def play(key: Any, noise: Any) -> Any:
        pool, everyone = start_pool(env, key, N_ENVS, STEPS), jnp.arange(N_ENVS)

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            (state, seen, used), (key, noise) = carry, now
            after = jax.vmap(env.step)(jax.random.split(key, N_ENVS), state, best(noise, seen.avail))
            done = after[1].terminated | after[1].truncated
            begin = jax.tree.map(lambda leaf: leaf[used % len(leaf), everyone], pool)
            return (*select(done, begin, after), used + done), total(after[1])

        start = jax.vmap(env.reset)(jax.random.split(key, N_ENVS))
        carry = *start, jnp.zeros(N_ENVS, int)
        carry, sums = jax.lax.scan(step, carry, (jax.random.split(key, STEPS), noise))
        return sums.sum() + total(carry)

    return play


def bare_robots(task: str, config: Config) -> Callable:
    """brax's robot in the wrapper that brax trains with."""
    from brax.envs.wrappers.training import wrap

    robot = wrap(load_robot(robot_name(task), config.mabrax.backend))

    def play(key: Any) -> Any:
        def step(state: Any, action: Any) -> tuple[Any, Any]:
            state = robot.step(state, action)
            return state, total((state.obs, state.reward, state.done))

        shape = config.rollout_length, config.n_envs, robot.action_size
        state = robot.reset(jax.random.split(key, config.n_envs))
        state, sums = jax.lax.scan(step, state, jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))
        return sums.sum() + total(state.metrics)

    return play


def untrained(*shape: int) -> np.ndarray:
    """Random actions as an untrained policy takes them."""
    return np.tanh(0.365 * np.random.default_rng(0).normal(size=shape))


def bare_mujoco(task: str, config: Config) -> Callable[[], Any]:
    """MuJoCo's steps alone, from the same start states, with random actions."""
    import mujoco
    from mujoco.rollout import Rollout

    from lorasa_jax.envs.mujoco import load_physics
    from lorasa_jax.envs.mujoco_robots import robot_of

    name, robot, _ = robot_of(task)
    model, rng = load_physics(name).model, np.random.default_rng(0)
    data, spec = mujoco.MjData(model), int(mujoco.mjtState.mjSTATE_FULLPHYSICS)
    start = np.empty((config.n_envs, mujoco.mj_stateSize(model, spec)))
    for row in start:
        mujoco.mj_resetData(model, data)
        data.qpos += robot.noise * rng.uniform(-1, 1, model.nq)
        mujoco.mj_getState(model, data, row, spec)
    push = model.actuator_ctrlrange[:, 1] * untrained(config.rollout_length, config.n_envs, 1, model.nu)

    def play() -> Any:
        state = start
        with Rollout(nthread=0) as rollout:
            for action in push:
                after, _ = rollout.rollout(model, data, state, np.repeat(action, robot.frame_skip, axis=1))
                state = after[:, -1]
        return state

    return play


def our_robots(config: Config) -> Callable:
    """Our environment, as it is stepped when nothing is learnt; robots that fall stay where they are."""
    env = make_env(config)

    pushes = untrained(config.rollout_length, config.n_envs, env.spec.n_agents, env.spec.n_actions)

    def play(key: Any) -> Any:
        def step(state: Any, now: Any) -> tuple[Any, Any]:
            key, push = now
            state, shown = jax.vmap(env.step)(jax.random.split(key, config.n_envs), state, push)
            return state, total(shown)

        state, _ = jax.vmap(env.reset)(jax.random.split(key, config.n_envs))
        inputs = jax.random.split(key, config.rollout_length), jnp.asarray(pushes, jnp.float32)
        return jax.lax.scan(step, state, inputs)[1].sum()

    return play


def their_robots(task: str, config: Config) -> dict[str, Callable[[], Any]]:
    """One team of gymnasium-robotics, and Gymnasium's vector of single-agent environments; both do all the steps."""
    import gymnasium
    from gymnasium_robotics import mamujoco_v1

    name, _, split = task.partition("_")
    scenario = {"halfcheetah": "HalfCheetah"}.get(name, name.capitalize())
    team = mamujoco_v1.parallel_env(scenario, split, agent_obsk=1)
    many = gymnasium.make_vec(f"{scenario}-v5", num_envs=config.n_envs, vectorization_mode="sync")
    limit = team.single_agent_env.action_space.high
    pushes = limit * untrained(config.rollout_length, config.n_envs, len(limit))
    push = [team.map_global_action_to_local_actions(action) for action in pushes.reshape(-1, len(limit))]

    def one() -> None:
        team.reset(seed=0)
        for action in push:
            _, _, terminated, truncated, _ = team.step(action)
            if terminated["agent_0"] or truncated["agent_0"]:
                team.reset()

    def vector() -> None:
        many.reset(seed=0)
        for action in pushes:
            many.step(action)

    return {"mamujoco": one, "gymnasium vector": vector}


def training(config: Config) -> dict[str, Callable[[], Any]]:
    """The two programs of an iteration, both with what the first iteration meets."""
    trainer = make_trainer(config, make_env(config))
    state = compiled(trainer.init, jax.random.key(0))()
    collect = compiled(
        trainer.collect, trainer.weights(state), state.learner.critic, state.rollout, state.key, state.iteration
    )
    rollout, trajectory, _ = collect()
    return {"collect": collect, "update": compiled(trainer.update, state, rollout, trajectory)}


def compare(task: str, options: argparse.Namespace) -> None:
    """Prints steps per second of both sides, and ours over theirs."""
    robot = task.partition("_")[0] in ROBOTS
    if robot:
        # brax's wrappers take keys of the old kind.
        recurrent = RECURRENT if options.recurrent else []
        config = parse(RunConfig, ["--env", options.env, "--task", task, *recurrent])
        steps, beside = config.n_envs * config.rollout_length, {}
        if options.env == "mujoco":
            bare = bare_mujoco(task, config)
            beside = {"ours": compiled(our_robots(config), jax.random.key(0)), **their_robots(task, config)}
        else:
            bare = compiled(bare_robots(task, config), jax.random.PRNGKey(0))
        programs = {"bare": bare, **training(config), **beside}
        network = "recurrent" if recurrent else "feed-forward"
        print(f"\n{task}, {network}, {config.n_envs} x {config.rollout_length} steps")
    else:
        env, key, steps = make_env(Config(env="smax", task=task)), jax.random.key(0), N_ENVS * STEPS
        inputs = key, jax.random.uniform(key, (STEPS, N_ENVS, env.spec.n_agents, env.spec.n_actions))
        programs = {"theirs": compiled(their_battles(task), *inputs), "ours": compiled(our_battles(env), *inputs)}
        print(f"\n{task}, {N_ENVS} x {STEPS} steps")
    for program in programs.values():
        program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.pairs):
        for name, program in programs.items():
            times[name].append(seconds(program))
    for name, found in times.items():
        print(f"{name:16} {steps / statistics.median(found):9,.0f} steps/s")
    first, *own = times.values()
    ratios = sorted(a / sum(b) for a, *b in zip(first, *own[:2], strict=True))
    print(f"{'training / bare' if robot else 'ours / theirs'}: {statistics.median(ratios):.2f}", end=" ")
    print(f"({ratios[0]:.2f} - {ratios[-1]:.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="maps of SMAX, and robots with their splits")
    parser.add_argument("--env", default="mabrax", choices=("mabrax", "mujoco"), help="whose robots")
    parser.add_argument("--recurrent", action="store_true", help="robots: the preset fast with a GRU, in chunks of 16")
    parser.add_argument("--pairs", type=int, default=7, help="how often each side is run")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores")
    for task in options.tasks:
        compare(task, options)


if __name__ == "__main__":
    main()
