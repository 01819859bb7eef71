"""Multi-agent MuJoCo: Gymnasium-Robotics' own environment as the oracle, purity to the bit, threads and devices."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from PIL import ImageColor

from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.config import Config, ConfigError, MujocoConfig
from lorasa_jax.envs import make_env
from lorasa_jax.envs._sealed import sealed
from lorasa_jax.envs.base import Env
from lorasa_jax.envs.mujoco import load_physics, make_mujoco, skeleton_of
from lorasa_jax.envs.mujoco_physics import SPEC, Physics, Record
from lorasa_jax.envs.mujoco_robots import ROBOTS, robot_of
from lorasa_jax.envs.mujoco_views import agents_of, maps_of

KEY = jax.random.key(3)
PACKAGE = Path(__file__).parents[2]

# MaMuJoCo's robots and splits.
THEIRS = {
    "ant": "Ant",
    "halfcheetah": "HalfCheetah",
    "hopper": "Hopper",
    "humanoid": "Humanoid",
    "manysegmentswimmer": "ManySegmentSwimmer",
    "swimmer": "Swimmer",
    "walker2d": "Walker2d",
}
SPLITS = (
    "ant_2x4", "ant_2x4d", "ant_4x2", "halfcheetah_2x3", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8",
    "manysegmentswimmer_2x3", "manysegmentswimmer_6x2", "swimmer_2x1", "walker2d_2x3",
)  # fmt: skip
OURS = ("walker2d_3x2", "humanoid_17x1", "ant_8x1", "halfcheetah_1x6", "manysegmentant_2x2")


@cache
def mamujoco() -> ModuleType:
    with sealed():
        from gymnasium_robotics import mamujoco_v1
    return mamujoco_v1


@cache
def oracle(task: str, obsk: int | None) -> Any:
    name, _, split = task.partition("_")
    with sealed():
        env = mamujoco().parallel_env(THEIRS[name], split, agent_obsk=obsk)
        env.reset(seed=0)
    return env


def put(theirs: Any, bits: Any) -> None:
    """Starts the oracle's episode where ours has started."""
    numbers, game = np.asarray(bits).view(np.float64), theirs.single_agent_env.unwrapped
    nq, nv = game.model.nq, game.model.nv
    mujoco.mj_resetData(game.model, game.data)
    theirs.reset(seed=0)
    mujoco.mj_resetData(game.model, game.data)
    game.set_state(numbers[1 : 1 + nq], numbers[1 + nq : 1 + nq + nv])


@cache
def compiled(task: str, obsk: Any = None) -> tuple[Env, Any, Any]:
    env = make_mujoco(task, MujocoConfig(obsk=obsk, threads=1))
    return env, jax.jit(env.reset), jax.jit(env.step)


def records(physics: Physics, count: int) -> Record:
    """Room for robots, filled with rubbish that must not show."""
    shapes = (count, physics.state_size), (count, physics.told_size), (count, 2)
    return Record(*(np.full(shape, 7.0, kind) for shape, kind in zip(shapes, ("d", "f", "f"), strict=True)))


# The oracle


LONG = [pytest.param(task, 300, marks=pytest.mark.slow) for task in SPLITS if task != "manysegmentswimmer_6x2"]


@pytest.mark.parametrize(("task", "steps"), [("halfcheetah_2x3", 50), ("ant_4x2", 50), ("humanoid_9|8", 30), *LONG])
def test_a_team_sees_and_earns_what_it_does_in_mamujoco(task, steps):
    """Only at an end is the oracle put where ours begins; in between it is not touched, and states agree to the bit."""
    (env, reset, step), theirs = compiled(task, 1), oracle(task, 1)
    game = theirs.single_agent_env.unwrapped
    limit = game.model.actuator_ctrlrange[0, 1]
    rng, ends = np.random.default_rng(0), 0

    def compare(shown: Any, observed: dict[str, Any]) -> None:
        for i, obs in enumerate(observed.values()):
            np.testing.assert_allclose(shown.obs[i, : len(obs)], obs, rtol=1e-5, atol=1e-5)
            assert env.spec.obs_widths[i] == len(obs) and not np.any(shown.obs[i, len(obs) :])
        np.testing.assert_allclose(shown.state, theirs.state(), rtol=1e-5, atol=1e-5)

    state = None
    for t in range(steps):
        if state is None:
            state, shown = reset(jax.random.fold_in(KEY, ends))
            put(theirs, state.bits)
            compare(shown, theirs._get_obs())
        if t % 5 == 0:  # held for a while, so that robots fall
            action = rng.uniform(-1, 1, (env.spec.n_agents, env.spec.n_actions)).astype(np.float32)
        state, shown = step(KEY, state, action)
        orders = {
            name: limit * action[i, : space.shape[0]].astype(float)
            for i, (name, space) in enumerate(theirs.action_spaces.items())
        }
        observed, reward, terminated, _, _ = theirs.step(orders)
        compare(shown, observed)
        np.testing.assert_allclose(shown.reward, list(reward.values()), rtol=1e-5, atol=1e-5)
        assert bool(shown.terminated) == bool(terminated["agent_0"]) and not shown.truncated
        integrated = np.empty(mujoco.mj_stateSize(game.model, SPEC))
        mujoco.mj_getState(game.model, game.data, integrated, SPEC)
        np.testing.assert_array_equal(np.asarray(state.bits).view(np.float64)[:-1], integrated)
        if shown.terminated:
            state, ends = None, ends + 1
    falls = {"hopper": True, "humanoid": True, "walker2d": True, "ant": None}.get(task.split("_")[0], False)
    assert falls is None or (ends > 0) == falls


@pytest.mark.parametrize("task", SPLITS)
def test_every_split_and_distance_shows_what_mamujoco_shows(task):
    name, robot, split = robot_of(task)
    physics = load_physics(task if callable(robot.file) else name)
    size = [0.3] * physics.sizes.positions + [15.0] * physics.sizes.velocities  # some are seen clipped
    out = records(physics, 1)
    physics.reset(out, np.random.default_rng(0).uniform(-1, 1, (1, len(size))).astype(np.float32) * np.float32(size))
    agents = agents_of(name, robot, split, skeleton_of(physics.model))
    for obsk in range(5):
        theirs = oracle(task, obsk)
        put(theirs, out.state[0].view(np.uint32))
        maps = maps_of(robot, agents, physics.sizes, MujocoConfig(obsk=obsk))
        for columns, motors, (agent, obs) in zip(maps.columns, maps.motors, theirs._get_obs().items(), strict=True):
            np.testing.assert_allclose(out.told[0, list(columns)], obs, rtol=1e-6, atol=1e-6)
            partition = theirs.agent_action_partitions[theirs.possible_agents.index(agent)]
            assert motors == tuple(node.act_ids for node in partition)


# Who moves what


@pytest.mark.parametrize("task", [*SPLITS, *OURS])
def test_every_motor_has_one_agent_and_moves_the_joint_that_its_agent_sees(task):
    name, robot, split = robot_of(task)
    physics = load_physics(task if callable(robot.file) else name)
    agents = agents_of(name, robot, split, skeleton_of(physics.model))
    assert sorted(joint.motor for own in agents for joint in own) == list(range(physics.model.nu))
    for joint in (joint for own in agents for joint in own):
        if joint.name in ("abdomen_y", "abdomen_z"):
            continue  # each is shown the other's position, as in MaMuJoCo
        driven = int(physics.model.actuator_trnid[joint.motor, 0])
        assert joint.slot % physics.model.nq == physics.model.jnt_qposadr[driven]


@pytest.mark.parametrize(
    ("task", "groups"),
    [
        (
            "walker2d_3x2",
            [["thigh_joint", "thigh_left_joint"], ["leg_joint", "foot_joint"], ["leg_left_joint", "foot_left_joint"]],
        ),
        ("hopper_1x3", [["thigh_joint", "leg_joint", "foot_joint"]]),
        (
            "manysegmentant_1x2",
            [["hip1_0", "ankle1_0", "hip2_0", "ankle2_0", "hip1_1", "ankle1_1", "hip2_1", "ankle2_1"]],
        ),
    ],
)
def test_splits_that_mamujoco_lacks_are_those_of_mabrax(task, groups):
    name, robot, split = robot_of(task)
    model = load_physics(task if callable(robot.file) else name).model
    assert [[joint.name for joint in own] for own in agents_of(name, robot, split, skeleton_of(model))] == groups


def test_the_humanoid_is_seen_whole_and_others_from_near_by_default():
    for task, obsk in (("humanoid_17x1", "all"), ("hopper_3x1", 1)):
        assert compiled(task)[0].spec == compiled(task, obsk)[0].spec
    env, reset, _ = compiled("humanoid_17x1")
    _, shown = reset(KEY)
    np.testing.assert_array_equal(shown.obs, np.tile(shown.state, (17, 1)))
    assert env.spec.obs_dim == env.spec.state_dim == 348


# Purity


def actions(env: Env, *shape: int) -> Any:
    return jax.random.uniform(KEY, (*shape, env.spec.n_agents, env.spec.n_actions), minval=-1.5, maxval=1.5)


def test_rows_of_environments_in_a_scan_move_as_a_plain_loop_moves_each():
    env, reset, step = compiled("ant_4x2")
    push, keys = actions(env, 6, 2, 3), jax.random.split(KEY, (2, 3))

    def play(state: Any, push: Any) -> Any:
        return jax.vmap(jax.vmap(lambda state, action: env.step(KEY, state, action)))(state, push)

    start, _ = jax.jit(jax.vmap(jax.vmap(env.reset)))(keys)
    end, shown = jax.device_get(jax.jit(lambda start: jax.lax.scan(play, start, push))(start))
    for row, place in np.ndindex(2, 3):
        state, _ = reset(keys[row, place])
        for t in range(6):
            state, seen = step(KEY, state, push[t, row, place])
            for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(shown), strict=True):
                np.testing.assert_array_equal(one, other[t, row, place])
        np.testing.assert_array_equal(state.bits, end.bits[row, place])


def test_an_episode_goes_on_from_its_saved_numbers_to_the_bit():
    """A fresh simulation, as after a restart, knows nothing but the numbers; the humanoid's solver stops half-way."""
    env, reset, step = compiled("humanoid_9|8")
    push = actions(env, 40)
    state, _ = reset(KEY)
    for t in range(20):
        state, _ = step(KEY, state, push[t])
    saved = jax.tree.map(np.array, state)
    load_physics.cache_clear()
    again = make_mujoco("humanoid_9|8", MujocoConfig())
    fresh, other = jax.jit(again.step), jax.tree.map(jnp.asarray, saved)
    for t in range(20, 40):
        fresh(KEY, jax.tree.map(jnp.asarray, saved), push[0])  # leaves no trace in the simulation
        (state, seen), (other, shown) = step(KEY, state, push[t]), fresh(KEY, other, push[t])
        assert all(
            (np.asarray(a) == np.asarray(b)).all()
            for a, b in zip((*state, *seen[:3]), (*other, *shown[:3]), strict=True)
        )


def test_threads_change_nothing():
    physics = load_physics("ant")
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (7, 29)).astype(np.float32)
    torque = np.random.default_rng(1).uniform(-1, 1, (7, 8)).astype(np.float32)
    found = []
    for threads in (1, 2, 3, 20):
        start, after = records(physics, 7), records(physics, 7)
        physics.reset(start, noise, threads)
        physics.step(after, start.state, torque, threads)
        found.append((*start, *after))
    for other in found[1:]:
        assert all((one == same).all() for one, same in zip(found[0], other, strict=True))


def test_devices_that_are_no_processors_get_copies_and_the_same_numbers(monkeypatch):
    env, reset, step = compiled("hopper_3x1")
    state, _ = reset(KEY)
    push = actions(env, 3)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), state)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        copied = jax.jit(jax.vmap(env.step, (None, 0, 0)))(KEY, states, push)
    for i in range(3):
        for one, other in zip(jax.tree.leaves(step(KEY, state, push[i])), jax.tree.leaves(copied), strict=True):
            np.testing.assert_array_equal(one, other[i])


SPREAD = """
import jax, numpy as np
from lorasa_jax.config import MujocoConfig
from lorasa_jax.envs.mujoco import make_mujoco
from lorasa_jax.running.devices import _mesh
from jax.sharding import NamedSharding, PartitionSpec as P

env = make_mujoco("hopper_3x1", MujocoConfig())
def play(keys):
    def step(state, key):
        action = jax.random.uniform(key, (*state.steps.shape, 3, 1), minval=-1.0)
        return jax.vmap(jax.vmap(env.step, (None, 0, 0)), (None, 0, 0))(key, state, action)
    return jax.lax.scan(step, jax.vmap(jax.vmap(env.reset))(keys)[0], jax.random.split(jax.random.key(1), 20))

keys = jax.random.split(jax.random.key(0), (3, 4))
alone = jax.jit(play)(keys)
mesh = _mesh("envs", jax.devices())
assert mesh.size == 2
spread = NamedSharding(mesh, P(None, "envs"))
with jax.set_mesh(mesh):
    program = jax.jit(play, in_shardings=spread).lower(keys).compile()
found = program(jax.device_put(keys, spread))
for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(found)):
    assert (np.asarray(one) == np.asarray(other)).all()
assert len(found[0].bits.sharding.device_set) == 2, found[0].bits.sharding
assert "all-gather" not in program.as_text(), "each device steps its own"
print("equal")
"""


def test_each_device_steps_its_own_environments():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, "-c", SPREAD], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


# Ends


def test_the_clock_cuts_an_episode_after_1000_steps():
    env, reset, step = compiled("halfcheetah_2x3")
    state, _ = reset(KEY)
    for before, cut in ((998, False), (999, True)):
        state, shown = step(KEY, state._replace(steps=jnp.asarray(before, jnp.int32)), jnp.zeros((2, 3)))
        assert bool(shown.truncated) == cut and not shown.terminated
    assert env.spec.episode_limit == 1000 and int(state.steps) == 1000


@pytest.mark.parametrize("speed", [1e12, np.nan, np.inf])
def test_a_simulation_that_blows_up_is_a_failure_that_nobody_else_sees(speed, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo would write a log
    _, reset, step = compiled("halfcheetah_2x3")
    state, _ = reset(KEY)
    numbers = np.array(state.bits).view(np.float64)
    numbers[1 + 9 + 4] = speed
    _, shown = step(KEY, state._replace(bits=jnp.asarray(numbers.view(np.uint32))), jnp.ones((2, 3)))
    assert shown.terminated and not shown.truncated
    assert not shown.reward.any() and not shown.obs.any() and not shown.state.any()
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())
    _, well = step(KEY, state, jnp.ones((2, 3)))  # by the same simulation
    assert not well.terminated and well.state.any()


def test_wild_actions_are_clipped_before_they_reach_a_motor():
    _, reset, step = compiled("halfcheetah_2x3")
    state, _ = reset(KEY)
    wild, tame = jnp.array([[1e30, -jnp.inf, 0.5]] * 2), jnp.array([[1.0, -1.0, 0.5]] * 2)
    np.testing.assert_array_equal(step(KEY, state, wild)[0].bits, step(KEY, state, tame)[0].bits)


def test_fresh_keys_are_fresh_starts_near_the_rest_pose():
    for name, robot in ROBOTS.items():
        env, reset, _ = compiled({"humanoid": "humanoid_9|8"}.get(name, f"{name}_1x{len(robot.joints)}"))
        nq, nv, _ = load_physics(name).sizes
        start = np.stack([np.asarray(reset(jax.random.key(i))[0].bits).view(np.float64) for i in range(20)])
        away = start[:, 1 : 1 + nq + nv]
        away[:, :nq] -= load_physics(name).model.qpos0
        assert (np.abs(away[:, :nq]) <= robot.noise).all() and np.abs(away[:, :nq]).max() > 0.8 * robot.noise
        beyond = np.abs(away[:, nq:]).max() / robot.noise
        assert beyond > 1.5 if robot.normal else 0.8 < beyond <= 1
        assert env.spec.n_agents == (2 if name == "humanoid" else 1)


# One line for what cannot be


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("halfcheeta_2x3", "unknown robot 'halfcheeta' in 'halfcheeta_2x3' (did you mean 'halfcheetah'?); a task is"),
        (
            "ant_3x2",
            "ant cannot be split into '3x2': it has 8 joints; splits (agents x joints each): 2x4, 2x4d, 4x2, 1x8",
        ),
        ("humanoid_8|9", "splits (agents x joints each): 9|8, 1x17, 17x1"),
        ("manysegmentant_2", "write agents x segments of each, from 2 to 99 segments, such as manysegmentant_2x3"),
        ("manysegmentswimmer_99x99", "manysegmentswimmer cannot be split into '99x99'"),
    ],
)
def test_an_unknown_task_is_one_line_that_names_what_there_is(task, said):
    with pytest.raises(ConfigError) as error:
        make_mujoco(task, MujocoConfig())
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"obsk": -1}, "mujoco.obsk must be 0 or more, or all, got -1"),
        ({"obsk": "al"}, "got 'al' (did you mean 'all'?)"),
        ({"threads": 0}, "mujoco.threads must be 1 or more, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ConfigError) as error:
        MujocoConfig(**settings)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_split_says_how_many_agents_there_are():
    with pytest.raises(ConfigError, match="n-agents is fixed by the split in mujoco; ant_4x2 says"):
        make_env(Config(env="mujoco", n_agents=3))


@pytest.mark.parametrize(
    ("task", "package"), [("manysegmentant_2x4", "gymnasium_robotics"), ("hopper_3x1", "gymnasium")]
)
def test_a_missing_package_is_one_line_that_names_the_extra(task, package, monkeypatch):
    load_physics.cache_clear()
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.multiagent_mujoco.many_segment_ant", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        make_mujoco(task, MujocoConfig())
    said = str(error.value)
    assert package.replace("_", "-") in said and "pip install 'lorasa-jax[mujoco]'" in said and "\n" not in said


# Presets


def test_the_papers_preset_knows_the_robots():
    words = ["--env", "mujoco", "--task", "halfcheetah_2x3", "--preset", "paper"]
    config = parse(RunConfig, words)
    assert (config.n_envs, config.rollout_length, config.ppo.epochs, config.switch_step) == (16, 250, 5, 100_000)
    assert parse(RunConfig, [*words, "--algo", "a2po"]).switch_step == 3_000_000
    assert parse(RunConfig, ["--env", "mujoco"]).standardise


# Pictures


def test_every_agent_is_drawn_in_its_colour():
    from lorasa_jax.envs.mabrax_drawing import AGENTS, ARENA, HEADER

    for task in ("halfcheetah_2x3", "ant_4x2", "humanoid_9|8"):
        env, reset, _ = compiled(task)
        assert env.draw is not None
        (frame,) = env.draw(jax.tree.map(lambda leaf: leaf[None], reset(KEY)[0]))
        arena = np.asarray(frame, int)[HEADER : HEADER + ARENA].reshape(-1, 3)
        for colour in AGENTS[: env.spec.n_agents]:
            assert (np.abs(arena - ImageColor.getrgb(colour)).max(axis=-1) <= 2).sum() > 20
