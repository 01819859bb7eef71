"""MABrax through our protocol: brax's own physics and pay, maps that follow from the robot, silence, and pictures."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageColor

from lorasa_jax.config import Config, ConfigError, MabraxConfig
from lorasa_jax.envs import mabrax, make_env
from lorasa_jax.envs._jaxmarl import load_mabrax_maps
from lorasa_jax.envs.base import Env
from lorasa_jax.envs.mabrax import load_robot, make_mabrax, skeleton_of
from lorasa_jax.envs.mabrax_maps import ROBOTS, Maps, Skeleton, hops, maps_of

PACKAGE = Path(mabrax.__file__).parents[1]
KEY = jax.random.key(3)

# The paper's four, JaxMARL's five, and splits that no table lists.
PAPER = ("halfcheetah_2x3", "walker2d_3x2", "ant_4x2", "humanoid_9|8")
UPSTREAM = ("ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8", "walker2d_2x3")
OTHERS = ("ant_8x1", "ant_2x4", "ant_1x8", "walker2d_6x1", "humanoid_17x1", "hopper_1x3", "halfcheetah_3x2")
TASKS = tuple(dict.fromkeys((*PAPER, *UPSTREAM, *OTHERS)))

# What is stepped for real, each compiled once: one robot that falls, and one that never does.
PLAYED = {"hopper_3x1": "positional", "halfcheetah_2x3": "spring"}


@cache
def robot(task: str) -> tuple[Any, Skeleton]:
    game = load_robot(task.partition("_")[0], "positional")
    return game, skeleton_of(game.sys)


def mapped(task: str, **config: Any) -> Maps:
    return maps_of(task, robot(task)[1], MabraxConfig(**config))


def seen_joints(task: str, obsk: int) -> list[set[int]]:
    """The joints each agent sees, found by walking MuJoCo's model body by body; joints by their number."""
    model = robot(task)[0].sys.mj_model
    joints = [j for j in range(model.njnt) if model.jnt_bodyid[j] != 1]
    holds = {j: {int(model.jnt_bodyid[j]), int(model.body_parentid[model.jnt_bodyid[j]])} for j in joints}
    found = []
    for motors in mapped(task).motors:
        seen = {int(model.actuator_trnid[m, 0]) for m in motors}
        for _ in range(obsk):
            seen |= {j for j in joints if any(holds[j] & holds[k] for k in seen)}
        found.append(seen)
    return found


# Who moves what


@pytest.mark.parametrize("task", TASKS)
def test_every_motor_has_exactly_one_agent(task):
    game, _ = robot(task)
    motors = mapped(task).motors
    assert sorted(m for own in motors for m in own) == list(range(game.action_size))
    split = task.partition("_")[2]
    sizes = [9, 8] if split == "9|8" else [int(split.split("x")[1])] * int(split.split("x")[0])
    assert [len(own) for own in motors] == sizes


@pytest.mark.parametrize(
    ("task", "groups"),
    [
        ("ant_4x2", ["hip_1 ankle_1", "hip_2 ankle_2", "hip_3 ankle_3", "hip_4 ankle_4"]),
        ("ant_2x4", ["hip_1 ankle_1 hip_2 ankle_2", "hip_3 ankle_3 hip_4 ankle_4"]),
        ("halfcheetah_2x3", ["bthigh bshin bfoot", "fthigh fshin ffoot"]),
        ("halfcheetah_6x1", ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]),
        ("hopper_3x1", ["thigh_joint", "leg_joint", "foot_joint"]),
        ("walker2d_2x3", ["thigh_joint leg_joint foot_joint", "thigh_left_joint leg_left_joint foot_left_joint"]),
        (
            "walker2d_3x2",
            ["thigh_joint thigh_left_joint", "leg_joint foot_joint", "leg_left_joint foot_left_joint"],
        ),
        (
            "humanoid_9|8",
            [
                "abdomen_z abdomen_y abdomen_x right_shoulder1 right_shoulder2 right_elbow "
                "left_shoulder1 left_shoulder2 left_elbow",
                "right_hip_x right_hip_z right_hip_y right_knee left_hip_x left_hip_z left_hip_y left_knee",
            ],
        ),
    ],
)
def test_neighbouring_joints_are_grouped(task, groups):
    model = robot(task)[0].sys.mj_model
    names = [" ".join(model.joint(int(model.actuator_trnid[m, 0])).name for m in own) for own in mapped(task).motors]
    assert names == groups


@pytest.mark.parametrize("task", ["ant_4x2", "ant_2x4", "halfcheetah_3x2", "walker2d_3x2", "walker2d_2x3"])
def test_the_joints_of_a_group_hang_together(task):
    _, skeleton = robot(task)
    distance = hops(skeleton)
    for own in mapped(task).motors:
        dofs = skeleton.motors[list(own)]
        reached = {int(dofs[0])}
        for _ in dofs:
            reached |= {int(dof) for dof in dofs if (distance[dof, list(reached)] <= 1).any()}
        assert reached == set(map(int, dofs))


@pytest.mark.parametrize("task", TASKS)
def test_each_entry_of_the_joint_action_reaches_its_motor(task, monkeypatch):
    torques: list[Any] = []
    env = stubbed(task, monkeypatch, torques)
    avail = np.asarray(env.reset(KEY)[1].avail)
    spec, maps = env.spec, mapped(task)
    action = np.arange(1, 1 + spec.n_agents * spec.n_actions).reshape(spec.n_agents, -1) / 1000
    env.step(KEY, env.reset(KEY)[0], jnp.asarray(np.where(avail, action, np.nan)))
    expected = {m: action[i, j] for i, own in enumerate(maps.motors) for j, m in enumerate(own)}
    np.testing.assert_allclose(torques[0], [expected[m] for m in range(len(expected))], rtol=1e-6)
    assert (avail == (np.arange(spec.n_actions) < [[len(own)] for own in maps.motors])).all()


# Who sees what


@pytest.mark.parametrize("obsk", [0, 1, 2])
@pytest.mark.parametrize("task", ["ant_4x2", "halfcheetah_6x1", "hopper_3x1", "walker2d_3x2", "humanoid_17x1"])
def test_exactly_those_who_are_near_enough_see_a_joint_move(task, obsk):
    """Nudges every position and velocity of the robot in brax's own observation."""
    game, _ = robot(task)
    model, columns = game.sys.mj_model, mapped(task, obsk=obsk).columns
    seen = seen_joints(task, obsk)
    calm = observe(game)
    for name, addresses in (("q", model.jnt_qposadr), ("qd", model.jnt_dofadr)):
        for joint in range(model.njnt):
            changed = np.flatnonzero(observe(game, **{name: int(addresses[joint])}) != calm)
            trunk = model.jnt_bodyid[joint] == 1
            if not trunk:
                assert len(changed) == 1
            for i, own in enumerate(columns):
                assert set(changed) <= set(own) if trunk or joint in seen[i] else not set(changed) & set(own)


@pytest.mark.parametrize("obsk", [0, 1, 2])
def test_exactly_those_who_see_a_joint_see_its_torque_and_its_body(obsk):
    game, skeleton = robot("humanoid_9|8")
    model, n_links = game.sys.mj_model, len(skeleton.parent)
    for task in ("humanoid_9|8", "humanoid_17x1"):
        columns, seen = mapped(task, obsk=obsk).columns, seen_joints(task, obsk)
        calm = observe(game)
        for motor in range(game.action_size):
            (changed,) = np.flatnonzero(observe(game, torque=motor) != calm)
            joint = int(model.actuator_trnid[motor, 0])
            assert [changed in own for own in columns] == [joint in joints for joints in seen]
        for link in range(n_links):
            moved = np.flatnonzero(observe(game, spin=link) != calm)
            behind = 22 + 23 + 10 * n_links  # positions, velocities, inertias
            assert len(moved) >= 3 and set(moved) <= set(range(behind + 6 * link, behind + 6 * link + 6))
            # The same link's inertia: ten columns, the last of them its mass.
            first = 22 + 23 + 10 * link
            assert calm[first + 9] == pytest.approx(float(game.sys.link.inertia.mass[link]), rel=0.5)
            told = {*moved, *range(first, first + 10)}
            on_it = {j for j in range(model.njnt) if model.jnt_bodyid[j] == link + 1}
            for i, own in enumerate(columns):
                assert told <= set(own) if link == 0 or on_it & seen[i] else not told & set(own)


def observe(game: Any, q: int = -1, qd: int = -1, torque: int = -1, spin: int = -1) -> np.ndarray:
    """Brax's observation of a made-up moment, with one number of it changed."""
    from brax.base import Motion, Transform

    def noise(*shape: int, nudge: int = -1) -> Any:
        numbers = np.random.default_rng(0).normal(size=shape)
        if nudge >= 0:
            numbers[nudge] += 0.25
        return jnp.asarray(numbers, jnp.float32)

    n_links = game.sys.num_links()
    position = noise(game.sys.q_size(), nudge=q)
    # The planar robots tell the height of the trunk by its place in the world.
    place = noise(n_links, 3).at[0, 2].set(position[1])
    turned = jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (n_links, 1))
    moment = SimpleNamespace(
        q=position,
        qd=noise(game.sys.qd_size(), nudge=qd),
        x=Transform(place, turned),
        xd=Motion(vel=noise(n_links, 3), ang=noise(n_links, 3, nudge=spin)),
    )
    extra = [noise(game.action_size, nudge=torque) * 0.1] if game.sys.link_types.startswith("f2") else []
    return np.asarray(game._get_obs(moment, *extra))


@pytest.mark.parametrize("task", TASKS)
def test_agents_see_their_own_joints_and_nothing_that_does_not_exist(task):
    _, skeleton = robot(task)
    width = len(observe(robot(task)[0]))
    for obsk in (None, 0, 1):
        maps = mapped(task, obsk=obsk)
        for motors, columns in zip(maps.motors, maps.columns, strict=True):
            assert len(set(columns)) == len(columns) and min(columns) >= 0 and max(columns) < width
            velocities = {
                len(skeleton.position) - ROBOTS[task.partition("_")[0]].hidden + int(skeleton.motors[m]) for m in motors
            }
            assert velocities <= set(columns)


@pytest.mark.parametrize("name", ROBOTS)
def test_sight_grows_with_obsk_up_to_everything_and_is_mutual(name):
    task = {"humanoid": "humanoid_17x1", "ant": "ant_8x1", "hopper": "hopper_3x1"}.get(name, f"{name}_6x1")
    game, skeleton = robot(task)
    distance = hops(skeleton)
    assert (distance == distance.T).all()
    joints = np.sort(skeleton.motors)
    assert (distance[np.ix_(joints, joints)] < len(distance)).all()
    before = [set() for _ in joints]
    for obsk in range(int(distance[np.ix_(joints, joints)].max()) + 1):
        now = [set(own) for own in mapped(task, obsk=obsk).columns]
        assert all(less <= more for less, more in zip(before, now, strict=True))
        before = now
    assert all(own == set(range(len(observe(game)))) for own in before)
    default = mapped(task).columns
    assert default == mapped(task, obsk=99 if name == "humanoid" else 1).columns


def test_like_limbs_stand_in_like_columns():
    """Every leg of the ant finds the trunk, then its own hip and ankle, in the same columns."""
    trunk = (0, 1, 2, 3, 4, *range(13, 19))
    for leg, own in enumerate(mapped("ant_4x2").columns):
        assert own[:11] == trunk
        assert own[11:15] == (5 + 2 * leg, 6 + 2 * leg, 19 + 2 * leg, 20 + 2 * leg)


# Upstream's tables


@pytest.mark.parametrize("task", UPSTREAM)
def test_upstream_maps_are_jaxmarls_with_indices_clamped(task):
    tables, maps = load_mabrax_maps(), mapped(task, maps="upstream")
    whole = jnp.asarray(observe(robot(task)[0]))
    for i, agent in enumerate(tables._agent_observation_mapping[task]):
        np.testing.assert_array_equal(
            whole[jnp.array(maps.columns[i])], whole[tables._agent_observation_mapping[task][agent]]
        )
        assert maps.motors[i] == tuple(map(int, tables._agent_action_mapping[task][agent]))


def test_upstream_tables_have_the_faults_the_documentation_tells():
    tables = load_mabrax_maps()._agent_observation_mapping
    reach = {task: max(int(row.max()) for row in rows.values()) for task, rows in tables.items()}
    width = {task: len(observe(robot(task)[0])) for task in UPSTREAM}
    beyond = {task: (reach[task], width[task]) for task in UPSTREAM if reach[task] >= width[task]}
    assert beyond == {"halfcheetah_6x1": (17, 17), "humanoid_9|8": (375, 244)}
    angle = 1
    assert not any(angle in own for own in mapped("walker2d_2x3", maps="upstream").columns)
    assert all(angle in own for own in mapped("walker2d_2x3").columns)
    # Each of the ant's agents moves the leg behind the one it watches.
    for i, motors in enumerate(mapped("ant_4x2", maps="upstream").motors):
        (leg,) = (i for i, own in enumerate(mapped("ant_4x2").motors) if own == motors)
        assert leg == (i - 1) % 4
        assert {19 + 2 * i, 20 + 2 * i} <= set(mapped("ant_4x2", maps="upstream").columns[i])
        assert not {19 + 2 * leg, 20 + 2 * leg} & set(mapped("ant_4x2", maps="upstream").columns[i])


# One line for what cannot be


@pytest.mark.parametrize(
    ("task", "config", "said"),
    [
        ("antt_4x2", {}, "unknown robot 'antt' in 'antt_4x2' (did you mean 'ant'?); a task is a robot and a split"),
        ("swimmer_2x1", {}, "robots: ant, halfcheetah, hopper, humanoid, walker2d"),
        ("ant_3x2", {}, "ant cannot be split into '3x2': it has 8 joints; splits (agents x joints each): 1x8, 2x4, "),
        ("ant", {}, "ant cannot be split into ''"),
        ("ant_0x8", {}, "ant cannot be split into '0x8'"),
        ("ant_4x2\n", {}, "ant cannot be split into '4x2\\n'"),
        ("humanoid_8|9", {}, "splits (agents x joints each): 9|8, 1x17, 17x1"),
        ("ant_2x4", {"maps": "upstream"}, "mabrax.maps upstream has no table for 'ant_2x4'"),
        ("antt_4x2", {"maps": "upstream"}, "unknown robot 'antt'"),
    ],
)
def test_an_unknown_task_is_one_line_that_names_what_there_is(task, config, said):
    with pytest.raises(ConfigError) as error:
        make_mabrax(task, MabraxConfig(**config))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_settings_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="obsk must be 0 or more, got -1"):
        MabraxConfig(obsk=-1)
    with pytest.raises(ConfigError, match=r"mabrax\.obsk 1 has no effect with mabrax\.maps upstream"):
        MabraxConfig(obsk=1, maps="upstream")
    with pytest.raises(ConfigError, match="n-agents is fixed by the split in mabrax; ant_4x2 says"):
        make_env(Config(env="mabrax", n_agents=3))


# The protocol, on physics that stands still


def stubbed(task: str, monkeypatch: pytest.MonkeyPatch, torques: list[Any], **after: Any) -> Env:
    """An environment whose robot never moves: it keeps the torques it gets, and shows what it is told to."""
    game, _ = robot(task)
    width = len(observe(game))
    still = {"obs": jnp.arange(1.0, width + 1), "reward": jnp.asarray(2.5), "done": jnp.asarray(0.0), **after}

    def advance(game: Any, physics: Any, torque: Any) -> Any:
        torques.append(np.asarray(torque))
        return SimpleNamespace(pipeline_state=physics, **still)

    fresh = SimpleNamespace(pipeline_state=jnp.zeros(1), obs=jnp.arange(1.0, width + 1))
    stand_in = SimpleNamespace(sys=game.sys, reset=lambda key: fresh)
    monkeypatch.setattr(mabrax, "_advance", advance)
    monkeypatch.setattr(mabrax, "load_robot", lambda name, backend: stand_in)
    return make_mabrax(task, MabraxConfig())


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("steps", [0, 998, 999, 1000])
def test_the_clock_is_told_from_a_failure(monkeypatch, steps, failed):
    env = stubbed("hopper_3x1", monkeypatch, [], done=jnp.asarray(float(failed)))
    state, shown = env.reset(KEY)
    assert not (shown.terminated | shown.truncated | shown.won).any() and (shown.reward == 0).all()
    state, shown = env.step(KEY, state._replace(steps=jnp.asarray(steps)), jnp.zeros((3, 1)))
    late = steps + 1 >= env.spec.episode_limit
    assert bool(shown.terminated) == failed
    assert bool(shown.truncated) == (late and not failed)
    assert int(state.steps) == steps + 1 and not shown.won and shown.alive.all()
    assert (shown.reward == 2.5).all() and env.spec.team_reward


@pytest.mark.parametrize("task", ["hopper_3x1", "walker2d_6x1", "humanoid_17x1"])
def test_short_observations_end_in_zeros(task, monkeypatch):
    env = stubbed(task, monkeypatch, [])
    obs = np.asarray(env.step(KEY, env.reset(KEY)[0], jnp.zeros((env.spec.n_agents, 1)))[1].obs)
    assert obs.shape == (env.spec.n_agents, env.spec.obs_dim)
    assert max(env.spec.obs_widths) == env.spec.obs_dim
    for row, own in zip(obs, mapped(task).columns, strict=True):
        np.testing.assert_array_equal(row, [*(np.array(own) + 1.0), *[0.0] * (env.spec.obs_dim - len(own))])


def test_wild_actions_are_clipped_before_they_reach_a_motor(monkeypatch):
    torques: list[Any] = []
    env = stubbed("halfcheetah_2x3", monkeypatch, torques)
    env.step(KEY, env.reset(KEY)[0], jnp.array([[1e30, -jnp.inf, 0.5], [jnp.inf, -3.0, -0.5]]))
    np.testing.assert_array_equal(torques[0], [1, -1, 0.5, 1, -1, -0.5])


@pytest.mark.parametrize("broken", [{"obs": jnp.arange(1.0, 12).at[4].set(jnp.nan)}, {"reward": jnp.asarray(jnp.inf)}])
def test_physics_that_blows_up_is_a_failure_that_nobody_else_sees(monkeypatch, broken):
    env = stubbed("hopper_3x1", monkeypatch, [], **broken)
    _, shown = env.step(KEY, env.reset(KEY)[0], jnp.zeros((3, 1)))
    assert shown.terminated and not shown.truncated
    assert all(np.isfinite(leaf).all() for leaf in shown)
    assert (shown.reward == 0).all() and (shown.obs == 0).all() and (shown.state == 0).all()


@pytest.mark.parametrize("task", PAPER)
def test_arrays_have_the_shapes_of_the_spec(task):
    env = make_env(Config(env="mabrax", task=task))
    spec = env.spec
    assert spec.continuous and spec.name == task and spec.episode_limit == 1000
    _, shown = jax.eval_shape(env.reset, KEY)
    assert shown.obs.shape == (spec.n_agents, spec.obs_dim) and shown.state.shape == (spec.state_dim,)
    assert shown.avail.shape == (spec.n_agents, spec.n_actions) and shown.reward.shape == (spec.n_agents,)
    # brax's own observation is as wide as the maps take it to be.
    assert jax.eval_shape(robot(task)[0].reset, KEY).obs.shape == (spec.state_dim,)


@pytest.mark.parametrize("backend", ["generalized", "mjx"])
def test_every_physics_keeps_the_shape_of_its_state(backend):
    """Else no loop could carry it. The other two are played below."""
    env = make_mabrax("hopper_3x1", MabraxConfig(backend=backend))
    before = jax.eval_shape(env.reset, KEY)
    after = jax.eval_shape(env.step, KEY, before[0], jax.ShapeDtypeStruct((3, 1), "float32"))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype, one.weak_type) == (other.shape, other.dtype, other.weak_type)


# brax's physics


@cache
def played(task: str) -> tuple[Env, Any, Any]:
    """One robot under our environment and, independently, as brax's single agent, in one compiled program each."""
    backend = PLAYED[task]
    env = make_mabrax(task, MabraxConfig(backend=backend))
    single = load_robot(task.partition("_")[0], backend)
    from brax.envs.wrappers.training import EpisodeWrapper  # silent by now

    counted = EpisodeWrapper(single, 1000, 1)

    def firm(theirs: Any) -> Any:
        """The same without weak types, for which the step would be compiled again."""
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), theirs)

    def both_resets(key: Any) -> Any:
        return env.reset(key), firm(counted.reset(key))

    def both_steps(state: Any, ours: Any, theirs: Any, torque: Any) -> Any:
        return env.step(KEY, state, ours), firm(counted.step(theirs, torque))

    return env, jax.jit(both_resets), jax.jit(both_steps)


def joint_action(task: str, torque: np.ndarray) -> Any:
    motors = mapped(task).motors
    action = np.zeros((len(motors), max(map(len, motors))), np.float32)
    for i, own in enumerate(motors):
        action[i, : len(own)] = torque[list(own)]
    return jnp.asarray(action)


@pytest.mark.parametrize("task", ["hopper_3x1", pytest.param("halfcheetah_2x3", marks=pytest.mark.slow)])
def test_a_team_earns_and_moves_as_the_single_agent_does(task):
    """200 steps, each from the single agent's own state: contacts would amplify rounding."""
    env, reset, step = played(task)
    rng, n_motors = np.random.default_rng(0), len(robot(task)[1].motors)
    (state, shown), theirs = reset(KEY)
    np.testing.assert_array_equal(shown.state, theirs.obs)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), (state, shown))
    ends = 0
    for t in range(200):
        if t % 10 == 0:  # held for a while, so that the hopper falls
            torque = (rng.choice([-1, 1], size=n_motors) * rng.uniform(0.7, 1, size=n_motors)).astype(np.float32)
        (state, shown), theirs = step(state, joint_action(task, torque), theirs, jnp.asarray(torque))
        np.testing.assert_allclose(shown.reward, np.full(env.spec.n_agents, theirs.reward), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(shown.state, theirs.obs, rtol=1e-5, atol=1e-5)
        for ours, other in zip(jax.tree.leaves(state.physics), jax.tree.leaves(theirs.pipeline_state), strict=True):
            np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)
        for row, own in zip(shown.obs, mapped(task).columns, strict=True):
            np.testing.assert_allclose(row[: len(own)], theirs.obs[jnp.array(own)], rtol=1e-5, atol=1e-5)
        assert bool(shown.terminated) == bool(theirs.done) and not shown.truncated
        assert int(state.steps) == int(theirs.info["steps"])
        # Weak types count: where they differ, a compiled step is compiled again for its own output.
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), (state, shown)) == shapes
        if shown.terminated:
            ends += 1
            (state, shown), theirs = reset(jax.random.fold_in(KEY, ends))
        state = state._replace(physics=theirs.pipeline_state)
    assert ends > 2 if task == "hopper_3x1" else ends == 0


def test_a_fresh_key_is_a_fresh_start():
    _, reset, _ = played("hopper_3x1")
    shown = [reset(jax.random.fold_in(KEY, i))[0][1].state for i in range(3)]
    assert all((one != other).any() for one, other in combinations(shown, 2))


@pytest.mark.slow
def test_a_whole_episode_ends_with_the_clock_and_not_before():
    """The half-cheetah cannot fail; brax's own wrapper says when its time is up."""
    _, reset, step = played("halfcheetah_2x3")
    (state, _), theirs = reset(KEY)
    theirs.info["steps"] = jnp.full_like(theirs.info["steps"], 998)
    state = state._replace(steps=jnp.asarray(998, jnp.int32))
    ends = []
    for _ in range(2):
        (state, shown), theirs = step(state, jnp.zeros((2, 3)), theirs, jnp.zeros(6))
        ends.append((bool(shown.truncated), bool(shown.terminated), bool(theirs.info["truncation"])))
    assert ends == [(False, False, False), (True, False, True)]


@pytest.mark.slow
@pytest.mark.parametrize("task", [*PAPER, "hopper_3x1"])
def test_1e5_wild_steps_give_no_nan(task):
    env = make_mabrax(task, MabraxConfig())
    n_envs, steps = 128, 800

    def step(state: Any, key: Any) -> Any:
        push = 1e6 * jax.random.rademacher(key, (n_envs, env.spec.n_agents, env.spec.n_actions), jnp.float32)
        after, shown = jax.vmap(env.step)(jax.random.split(key, n_envs), state, push)
        done = shown.terminated | shown.truncated
        sound = jnp.array([jnp.isfinite(leaf).all() for leaf in shown])
        state = jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *(1,) * (a.ndim - 1)), a, b), starts, after)
        # A terminated robot is one that fell, not one whose physics blew up.
        return state, (sound.all(), jnp.isfinite(after.physics.q).all(), done.sum())

    starts, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, n_envs))
    _, (shown, physics, ends) = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(KEY, steps)))(starts)
    assert shown.all() and physics.all()
    assert (ends.sum() > 0) == (not task.startswith("halfcheetah"))


# Silence


SILENCE = """
import io, logging, os, random, sys, warnings
import jax

def surroundings():
    return (
        [getattr(sys, name) for name in names],
        list(warnings.filters),
        warnings.showwarning,
        (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        dict(os.environ),
        dict(jax.config.values),
        random.getstate(),
    )

names = "stdout", "stderr", "__stdout__", "__stderr__"
sinks = [io.StringIO() for _ in names]
real = [getattr(sys, name) for name in names]
import lorasa_jax.envs.mabrax
assert not {"brax", "jaxmarl", "mujoco", "PIL"} & set(sys.modules), "imported too early"
for name, sink in zip(names, sinks):
    setattr(sys, name, sink)
before = surroundings()
for task in ("halfcheetah_2x3", "ant_4x2"):
    lorasa_jax.envs.mabrax.make_mabrax(task, lorasa_jax.config.MabraxConfig())
after = surroundings()
for name, stream in zip(names, real):
    setattr(sys, name, stream)
assert "brax" in sys.modules and "jaxmarl" not in sys.modules
for old, new in zip(before, after):
    assert old == new, (old, new)
assert not any(sink.getvalue() for sink in sinks), [sink.getvalue() for sink in sinks]
assert not os.listdir(), os.listdir()
"""


def test_making_a_robot_is_silent_and_leaves_everything_as_it_was(tmp_path):
    """Neither does MuJoCo write to the terminal, nor a log into the working directory."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        SILENCE.replace("import io", f"import sys\nsys.path.insert(0, {str(PACKAGE.parent)!r})\nimport io", 1),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Pictures


def film(task: str, positions: Any) -> list[Any]:
    env = make_mabrax(task, MabraxConfig())
    assert env.draw is not None
    return env.draw(SimpleNamespace(physics=SimpleNamespace(q=jnp.asarray(positions))))


def poses(task: str, count: int) -> np.ndarray:
    return np.tile(np.asarray(robot(task)[0].sys.init_q, np.float32), (count, 1))


@pytest.mark.parametrize("task", [*PAPER, "hopper_3x1"])
def test_every_agent_is_drawn_in_its_colour(task):
    from lorasa_jax.envs.mabrax_drawing import AGENTS, ARENA, HEADER

    pose = poses(task, 1)
    if task == "walker2d_3x2":  # at rest, one leg hides the other
        pose[:, 3] = 0.6
    (frame,) = film(task, pose)
    arena = np.asarray(frame, int)[HEADER : HEADER + ARENA].reshape(-1, 3)
    for colour in AGENTS[: len(mapped(task).motors)]:
        assert (np.abs(arena - ImageColor.getrgb(colour)).max(axis=-1) <= 2).sum() > 20


def test_a_joint_that_turns_moves_its_agents_limb_alone():
    from lorasa_jax.envs.mabrax_drawing import AGENTS

    pose = poses("halfcheetah_2x3", 2)
    pose[1, 6] += 0.5  # the front thigh
    calm, turned = (np.asarray(frame, int) for frame in film("halfcheetah_2x3", pose))
    back, front = (
        (np.abs(picture - ImageColor.getrgb(colour)).max(axis=-1) <= 2)
        for picture, colour in ((calm, AGENTS[0]), (calm, AGENTS[1]))
    )
    still, moved = ((np.abs(turned - ImageColor.getrgb(colour)).max(axis=-1) <= 2) for colour in AGENTS[:2])
    assert (back == still).all() and (front != moved).sum() > 100


def test_the_view_follows_the_trunk_over_a_floor_that_stays():
    from lorasa_jax.envs.mabrax_drawing import ARENA, HEADER

    pose = poses("ant_4x2", 3)
    pose[1, 0] += 2.0  # four tiles, two posts: the same floor
    pose[2, 0] += 2.25
    calm, far, between = (np.asarray(frame, int)[HEADER + 24 : HEADER + ARENA] for frame in film("ant_4x2", pose))
    robot_rows = slice(60, 150)
    middle = slice(200, 220)
    np.testing.assert_allclose(calm[robot_rows, middle], far[robot_rows, middle], atol=2)
    assert (np.abs(calm - between).max(axis=-1) > 5).sum() > 1000


@pytest.mark.parametrize(
    ("task", "steps", "pictures"), [("hopper_3x1", 101, 17), ("ant_4x2", 41, 41), ("ant_4x2", 401, 300)]
)
def test_a_film_runs_in_the_robots_own_time(task, steps, pictures, monkeypatch):
    from lorasa_jax.envs import mabrax_drawing

    monkeypatch.setattr(mabrax_drawing, "_frame", lambda parts, t, movers, title: Image.new("I", (1, 1), t))
    env = make_mabrax(task, MabraxConfig())
    shown = [frame.getpixel((0, 0)) for frame in film(task, poses(task, steps))]
    assert len(shown) == pictures and shown[0] == 0
    assert np.allclose(np.diff(shown) * float(robot(task)[0].dt), 1 / env.fps, atol=0.003)
