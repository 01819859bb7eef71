"""SMAX through our protocol: the same game, the two kinds of end, a scaled state, silence, and pictures."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_shapes
from PIL import Image, ImageSequence

import lorasa_jax.envs.base
from lorasa_jax.config import Config, ConfigError, CriticConfig, NetworkConfig, SmaxConfig
from lorasa_jax.envs import drawing
from lorasa_jax.envs._jaxmarl import load_smax
from lorasa_jax.envs.base import Env, TimeStep
from lorasa_jax.envs.smax import make_smax, observe, scenario_names
from lorasa_jax.running.loop import run

PACKAGE = Path(lorasa_jax.envs.base.__file__).parents[1]
STOP, FIRST_ATTACK = 4, 5
KEY = jax.random.key(7)

# name: (agents, enemies, columns of a unit in the global state)
SHAPES = {"2s3z": (5, 5, 5), "3m": (3, 3, 5), "5m_vs_6m": (5, 6, 5), "smacv2_5_units": (5, 5, 10)}
MAPS = (
    "3m", "2s3z", "25m", "3s5z", "8m", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m", "3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z",
    "smacv2_5_units", "smacv2_10_units", "smacv2_20_units",
)  # fmt: skip


@cache
def battle(task: str) -> Env:
    """One environment per map, compiled once for all tests."""
    env = make_smax(task, SmaxConfig())
    return env._replace(reset=jax.jit(env.reset), step=jax.jit(env.step))


def stack(records: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


@cache
def play(task: str, episodes: int = 1, limit: int = 101) -> list[tuple[Any, TimeStep, np.ndarray]]:
    """Episodes of random available actions: states and time steps [T + 1, ...], actions [T, N]."""
    env, found = battle(task), []
    for episode in range(episodes):
        key = jax.random.fold_in(KEY, episode)
        state, shown = env.reset(key)
        states, seen, actions = [state], [shown], []
        for t in range(limit):
            key_action, key_step = jax.random.split(jax.random.fold_in(key, t))
            action = jax.random.categorical(key_action, jnp.where(shown.avail, 0.0, -jnp.inf))
            state, shown = env.step(key_step, state, action)
            states.append(state), seen.append(shown), actions.append(action)
            if shown.terminated | shown.truncated:
                break
        found.append((stack(states), stack(seen), np.stack(actions)))
    return found


def craft(state: Any, **units: Any) -> Any:
    """The same battle with some of the units' arrays replaced."""
    leaves = {name: jnp.asarray(value, getattr(state.state, name).dtype) for name, value in units.items()}
    return state.replace(state=state.state.replace(**leaves))


def check_play(seen: TimeStep) -> None:
    """What holds at every moment of every battle."""
    for array in seen:
        assert np.isfinite(array).all()
    assert (seen.state >= 0).all() and (seen.state <= 1).all()
    assert seen.avail.any(axis=-1).all()
    assert (seen.obs[~seen.alive] == 0).all() and (seen.obs[seen.alive] != 0).any(axis=-1).all()
    assert (seen.avail[~seen.alive] == (np.arange(seen.avail.shape[-1]) == STOP)).all()
    assert (seen.reward == seen.reward[..., :1]).all() and (seen.reward[0] == 0).all()
    assert not (seen.terminated | seen.truncated)[:-1].any() and not seen.won[:-1].any()


@pytest.mark.parametrize("task", SHAPES)
def test_arrays_have_the_shapes_of_the_spec(task):
    env, (n, enemies, columns) = battle(task), SHAPES[task]
    spec = env.spec
    assert (spec.name, spec.n_agents, spec.n_actions, spec.episode_limit) == (task, n, 5 + enemies, 101)
    assert (spec.obs_dim, spec.state_dim) == (13 * (n + enemies - 1) + 10, columns * (n + enemies))
    assert spec.team_reward
    check_shapes(env)


@pytest.mark.parametrize("settings", [{"normalise_state": False}, {"attack_mode": "random"}])
def test_settings_keep_to_the_spec(settings):
    check_shapes(make_smax("5m_vs_6m", SmaxConfig(**settings)))


def test_settings_reach_the_game(monkeypatch):
    passed = {}

    class Game(load_smax().HeuristicEnemySMAX):
        def __init__(self, **settings):
            passed.update(settings)
            super().__init__(**settings)

    monkeypatch.setattr(load_smax(), "HeuristicEnemySMAX", Game)
    settings = {"attack_mode": "random", "see_enemy_actions": False, "walls_cause_death": False}
    make_smax("3m", SmaxConfig(**settings))
    assert {name: passed[name] for name in settings} == settings


def test_all_maps_are_there():
    assert set(MAPS) <= set(scenario_names())


def test_a_colossus_is_a_seventh_type_in_its_own_map_alone():
    env = battle("1c3s5z")
    assert (env.spec.n_agents, env.spec.n_actions, env.spec.obs_dim) == (9, 14, 14 * 17 + 11)
    state, seen = jax.jit(env.reset)(KEY)
    kinds = np.asarray(state.state.unit_types)
    np.testing.assert_array_equal(kinds, [6, 2, 2, 2, 3, 3, 3, 3, 3] * 2)
    np.testing.assert_array_equal(state.state.unit_health[:2], [350, 160])
    check_shapes(env)
    ((_, seen, _),) = play("1c3s5z")
    check_play(seen)
    assert battle("3s5z").spec.obs_dim == 13 * 15 + 10


def test_mmm2_comes_without_its_medivacs():
    env = battle("MMM2_without_medivacs")
    assert (env.spec.n_agents, env.spec.n_actions) == (9, 5 + 11)
    state, _ = jax.eval_shape(env.reset, KEY)
    assert state.state.unit_types.shape == (20,)


@pytest.mark.slow
@pytest.mark.parametrize("task", MAPS)
def test_every_map_can_be_played(task):
    check_shapes(battle(task))
    ((_, seen, _),) = play(task)
    check_play(seen)


def test_a_map_of_a_race_draws_units_of_its_types_alone():
    env = battle("protoss_5_vs_6")
    check_shapes(env)
    assert (env.spec.n_agents, env.spec.n_roles, env.spec.role_names) == (5, 2, ("zealot", "stalker"))
    starts, shown = jax.vmap(env.reset)(jax.random.split(KEY, 40))
    kinds, health = starts.state.unit_types, starts.state.unit_health
    assert kinds.shape == (40, 11) and set(np.unique(kinds)) == {0, 1}
    assert 0.4 < kinds.mean() < 0.6
    np.testing.assert_array_equal(health, np.where(kinds == 0, 150.0, 160.0))
    np.testing.assert_array_equal(shown.role, kinds[:, :5])


@pytest.mark.parametrize("task", ["2s3z", "smacv2_5_units"])
def test_random_play_keeps_the_protocol(task):
    for _, seen, _ in play(task, episodes=3):
        check_play(seen)
        assert seen.terminated[-1] ^ seen.truncated[-1]
        assert not seen.alive.all()  # or nothing was said of the dead


LONG = ("3s5z_vs_3s6z", "10m_vs_11m", "smacv2_5_units")


def same(one: Any, other: Any) -> None:
    """Equal; numbers with a point up to rounding, which may differ wherever compilers fuse differently."""
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype == np.float32:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("task", ["2s3z", *(pytest.param(task, marks=pytest.mark.slow) for task in LONG)])
def test_play_is_upstreams_up_to_the_reset(task):
    """The same keys and actions give the same battle, until upstream starts the next one."""
    smax = load_smax()
    game = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario(task))
    env = battle(task)
    obs, theirs = game.reset(KEY)
    ours, shown = env.reset(KEY)
    for t in range(env.spec.episode_limit):
        avail = game.get_avail_actions(theirs)
        for i, agent in enumerate(game.agents):
            same(shown.obs[i], obs[agent])
            same(shown.avail[i], avail[agent].astype(bool))
        for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            same(mine, other)
        if t == 0:
            theirs = ours  # equal, but upstream's first state has a weakly typed leaf: one more compilation
        key, key_action = jax.random.split(jax.random.fold_in(KEY, t))
        action = jax.random.categorical(key_action, jnp.where(shown.avail, 0.0, -jnp.inf))
        obs, theirs, reward, done, _ = game.step(key, theirs, dict(zip(game.agents, action, strict=True)))
        ours, shown = env.step(jax.random.split(key)[0], ours, action)
        same(shown.reward, [reward[agent] for agent in game.agents])
        same(~shown.alive, [done[agent] for agent in game.agents])
        assert (shown.terminated | shown.truncated) == done["__all__"]
        if done["__all__"]:
            break
    assert done["__all__"] and theirs.state.step == 0
    assert ours.state.step == t + 1  # ours stays where the battle ended


@pytest.mark.parametrize("see", [True, False])
@pytest.mark.parametrize("task", ["5m_vs_6m", "smacv2_5_units"])
def test_both_teams_see_what_upstream_shows_them(task, see):
    smax = load_smax()
    game = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario(task), see_enemy_actions=see)
    _, state = game.reset(KEY)
    n_units, rng = state.state.unit_health.size, np.random.default_rng(0)

    @jax.jit
    def views(state):
        theirs = game.get_all_unit_obs(state)
        teams = [jnp.stack([theirs[unit] for unit in team]) for team in (game.agents, game.enemy_agents)]
        return teams, [observe(game, state.state, team) for team in (0, 1)]

    for _ in range(10):
        scattered = craft(
            state,
            unit_positions=rng.uniform(10, 22, (n_units, 2)),
            unit_alive=rng.random(n_units) < 0.8,
            unit_health=rng.random(n_units) * state.state.unit_health,
            unit_weapon_cooldowns=rng.normal(size=n_units),
            prev_movement_actions=rng.normal(size=(n_units, 2)),
            prev_attack_actions=rng.integers(0, 8, n_units),
        )
        theirs, ours = views(scattered)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
            assert 0.02 < np.mean(other != 0) < 0.9


STOPPED = jnp.full(3, STOP, jnp.int32)
NOBODY, ALL = [False] * 3, [True] * 3


@pytest.mark.parametrize(
    ("ours", "theirs", "won"),
    [(ALL, NOBODY, True), ([False, True, False], NOBODY, True), (NOBODY, ALL, False), (NOBODY, NOBODY, False)],
    ids=["win", "win by one", "loss", "draw"],
)
@pytest.mark.parametrize("time", [0, 100], ids=["early", "as time runs out"])
def test_a_wiped_out_team_terminates(ours, theirs, won, time):
    env = battle("3m")
    state, _ = env.reset(KEY)
    state, shown = env.step(KEY, craft(state, unit_health=45.0 * np.array(ours + theirs), step=time), STOPPED)
    assert shown.alive.tolist() == ours
    assert (bool(shown.terminated), bool(shown.truncated), bool(shown.won)) == (True, False, won)


def test_a_draw_that_pays_like_a_win_is_not_won():
    env = battle("3m")
    state, _ = env.reset(KEY)
    positions = state.state.unit_positions.at[3:].set(0.0)  # the enemy stands on the border, which kills
    state = craft(state, unit_health=[0, 0, 0, 45, 45, 45], unit_positions=positions)
    _, shown = env.step(KEY, state, STOPPED)
    assert shown.reward.tolist() == [1, 1, 1] and shown.terminated and not shown.won


def test_the_clock_ends_the_longest_episode_at_its_limit():
    env = battle("3m")
    state, _ = env.reset(KEY)
    state = craft(state, unit_health=np.full(6, 1e9))
    ends = []
    for t in range(env.spec.episode_limit):
        state, shown = env.step(jax.random.fold_in(KEY, t), state, STOPPED)
        ends.append((bool(shown.terminated), bool(shown.truncated)))
        assert not shown.won
    assert ends[:-1] == [(False, False)] * 100
    assert ends[-1] == (False, True)


def test_the_state_says_where_everybody_stands():
    env = battle("2s3z")
    state, _ = env.reset(KEY)
    # One unit far outside, one dead; weapons idle, busy and freshly fired.
    health = state.state.unit_health.at[0].set(80.0).at[3].set(0.0)
    positions = state.state.unit_positions.at[0].set(jnp.array([8.0, 24.0]))
    cooldowns = jnp.zeros(10).at[0].set(1.87 / 2 + 0.5).at[1].set(-50.0).at[2].set(99.0)
    still = craft(state, unit_health=health, unit_positions=positions, unit_weapon_cooldowns=cooldowns)
    _, shown = env.step(KEY, still, jnp.full(5, STOP, jnp.int32))
    units = shown.state.reshape(10, 5)
    np.testing.assert_allclose(units[0], [0.5, 0.25, 0.75, 0.5, 1.0], rtol=1e-5)
    assert units[1, 3] == 0 and units[2, 3] == 1
    assert not units[3].any() and units[:, 4].sum() == 9


def test_the_state_tells_the_types_where_they_are_drawn():
    states, seen, _ = play("smacv2_5_units", episodes=3)[0]
    bits = seen.state.reshape(-1, 10, 10)[..., 4:]
    alive = states.state.unit_alive
    assert (bits.sum(axis=-1) == alive).all()
    assert (bits.argmax(axis=-1)[alive] == states.state.unit_types[alive]).all()


def test_the_state_stays_scaled_where_units_start_outside():
    env = battle("smacv2_5_units")
    for seed in range(100):
        state, shown = env.reset(jax.random.key(seed))
        outside = (state.state.unit_positions < 0) | (state.state.unit_positions > 32)
        if outside.any():
            break
    assert outside.any()
    assert (shown.state >= 0).all() and (shown.state <= 1).all()


def test_the_raw_state_is_upstreams():
    env = make_smax("3m", SmaxConfig(normalise_state=False))
    smax = load_smax()
    game = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario("3m"))
    state, shown = env.reset(KEY)
    np.testing.assert_array_equal(shown.state, game.get_world_state(state))
    assert shown.state.max() > 1


@pytest.mark.parametrize("word", ["2s3zz", "corridor"])
def test_an_unknown_map_is_named_with_its_neighbours(word):
    with pytest.raises(ConfigError) as error:
        make_smax(word, SmaxConfig())
    message = str(error.value)
    assert "\n" not in message and repr(word) in message and ", ".join(scenario_names()) in message
    assert ("did you mean '2s3z'" in message) == (word == "2s3zz")


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
import lorasa_jax.envs.smax
assert not {"jaxmarl", "PIL"} & set(sys.modules), "imported too early"
for name, sink in zip(names, sinks):
    setattr(sys, name, sink)
before = surroundings()
lorasa_jax.envs.smax.make_smax("3m", lorasa_jax.config.SmaxConfig())
after = surroundings()
for name, stream in zip(names, real):
    setattr(sys, name, stream)
assert "jaxmarl" in sys.modules
for old, new in zip(before, after):
    assert old == new, (old, new)
assert not any(sink.getvalue() for sink in sinks), [sink.getvalue() for sink in sinks]
import absl.logging
absl.logging.use_absl_handler()
assert absl.logging.get_absl_handler().python_handler.stream is sinks[1], "its log goes nowhere"
"""

OTHERS = """
import sys
from lorasa_jax.envs._jaxmarl import load_jaxmarl, load_smax
smax = load_smax()
others = {"brax", "matplotlib", "jaxmarl.environments.hanabi"}
assert not others & set(sys.modules), "imported for nothing"
import jaxmarl.environments.smax
from jaxmarl.environments.smax import register_scenario
assert jaxmarl.environments.smax is smax and not others & set(sys.modules)
from jaxmarl.environments import SMAX, Hanabi
assert SMAX is smax.SMAX and sys.modules["jaxmarl.environments.hanabi"].Hanabi is Hanabi
assert load_jaxmarl() is jaxmarl and type(jaxmarl.make("SMAX")) is SMAX
assert not hasattr(jaxmarl, "nothing")
"""


def test_making_a_battle_is_silent_and_leaves_everything_as_it_was():
    command = [sys.executable, "-W", "error", "-c", SILENCE]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_games_are_imported_when_they_are_asked_for():
    done = subprocess.run(
        [sys.executable, "-c", OTHERS], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_playing_prints_nothing(capsys):
    streams = sys.stdout, sys.stderr
    env = make_smax("3m", SmaxConfig())
    jax.eval_shape(env.reset, KEY)
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr() == ("", "")


def test_jaxmarl_is_imported_in_one_place():
    def imported(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module or ""
            elif isinstance(node, ast.Call):
                yield from (str(word.value) for word in node.args if isinstance(word, ast.Constant))

    module = re.compile(r"jaxmarl(\.\w+)*")
    sources = {path: imported(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    guilty = {path.name for path, names in sources.items() if any(map(module.fullmatch, names))}
    assert guilty == {"_jaxmarl.py"}


def difference(one: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max(axis=-1)


def duel(**units: Any) -> Any:
    """A battle of three against three in a row, as a film of one state."""
    state, _ = battle("3m").reset(KEY)
    row = [[8, 10], [8, 14], [8, 18], [11, 10], [11, 14], [11, 18]]
    return stack([craft(state, unit_positions=row, **units)])


def test_every_state_has_its_picture():
    states, *_ = play("2s3z", episodes=3)[0]
    frames = battle("2s3z").draw(states)
    assert len(frames) == len(states.state.step)
    assert {frame.size for frame in frames} == {(420, 420)}
    assert all(difference(one, other).any() for one, other in pairwise(frames))


@pytest.mark.parametrize(
    ("attacker", "action", "target"), [(0, FIRST_ATTACK, 3), (2, FIRST_ATTACK + 2, 5), (3, FIRST_ATTACK + 2, 0)]
)
def test_a_shot_is_drawn_between_attacker_and_target(attacker, action, target):
    """Both fight within their row of the picture; the enemy counts its targets from our last unit."""
    attack = np.zeros(6)
    attack[attacker] = action
    draw = battle("3m").draw
    (shot,), (calm,) = draw(duel(prev_attack_actions=attack)), draw(duel())
    rows, columns = np.nonzero(difference(shot, calm) > 50)
    assert columns.size and np.ptp(columns) > 2 * np.ptp(rows)
    (other,) = draw(duel(unit_alive=np.arange(6) != target, unit_health=45.0 * (np.arange(6) != target)))
    fallen = np.nonzero(difference(other, calm) > 50)[0]
    assert fallen.min() <= rows.mean() <= fallen.max()


def test_no_shot_is_drawn_out_of_range_or_at_the_dead():
    draw = battle("3m").draw
    attack = np.array([FIRST_ATTACK + 2, 0, 0, 0, 0, 0])  # from one end to the other
    assert not difference(draw(duel(prev_attack_actions=attack))[0], draw(duel())[0]).any()
    dead = {"unit_alive": np.arange(6) != 3, "unit_health": 45.0 * (np.arange(6) != 3)}
    attack = np.array([FIRST_ATTACK, 0, 0, 0, 0, 0])
    assert not difference(draw(duel(prev_attack_actions=attack, **dead))[0], draw(duel(**dead))[0]).any()


@pytest.mark.parametrize("task", ["2s3z", "smacv2_5_units"])
def test_shots_are_found_exactly_where_units_are_hurt(task):
    from lorasa_jax.envs.smax_drawing import find_shots

    smax = load_smax()
    game = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario(task))
    for states, _, _ in play(task, episodes=3):
        units = states.state
        shots = find_shots(units, game)
        hit = np.zeros_like(units.unit_alive)
        np.logical_or.at(hit, (np.nonzero(shots.fired)[0], shots.target[shots.fired]), True)
        hurt = np.diff(units.unit_health, axis=0) < 0
        inside = ((units.unit_positions > 0) & (units.unit_positions < 32)).all(axis=-1)[1:]
        assert hurt.any()
        np.testing.assert_array_equal(hit[1:][inside], hurt[inside])


def test_a_gif_holds_the_film(tmp_path):
    states, *_ = play("2s3z", episodes=3)[0]
    frames = battle("2s3z").draw(states)
    path = tmp_path / "battle.gif"
    drawing.save_gif(frames, path, fps=8)
    assert path.stat().st_size < 5_000 * len(frames)
    with Image.open(path) as film:
        assert film.n_frames == len(frames) and film.info["loop"] == 0
        found = [(frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(film)]
    assert {duration for _, duration in found[:-1]} == {120} and found[-1][1] == drawing.LAST_FRAME_MS
    for (one, _), other in zip(found, frames, strict=True):
        assert difference(one, other).mean() < 3


def test_equal_pictures_keep_their_time(tmp_path):
    calm, other = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    drawing.save_gif([calm, calm, calm, other], tmp_path / "calm.gif", fps=10)
    with Image.open(tmp_path / "calm.gif") as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert sum(durations) == 300 + drawing.LAST_FRAME_MS


def test_a_gif_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "battle.gif"
    path.write_bytes(b"old")

    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 2
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"):
        drawing.save_gif([Image.new("RGB", (8, 8))], path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_roles_are_types_of_units():
    assert battle("2s3z").spec.roles == (0, 0, 1, 1, 1)
    assert battle("2s3z").spec.role_names == ("stalker", "zealot")
    assert make_smax("MMM2_without_medivacs", SmaxConfig()).spec.roles == (0,) * 2 + (1,) * 7
    env = battle("smacv2_5_units")
    assert (env.spec.roles, env.spec.n_roles) == (None, 6)
    states, seen, _ = play("smacv2_5_units", episodes=3)[0]
    np.testing.assert_array_equal(seen.role, states.state.unit_types[:, :5])
    assert env.reset(KEY)[1].role.tolist() != env.reset(jax.random.key(1))[1].role.tolist()


@pytest.mark.slow
def test_adapters_of_types_that_are_drawn_anew_train_on_smax():
    network = {"hidden": 8, "layers": 1, "layers_after": 0}
    config = Config(
        task="smacv2_5_units", levels=("unit_type:2", "agent:1"), n_envs=2, rollout_length=10, total_steps=60,
        switch_step=20, evaluations=1, eval_episodes=2, actor=NetworkConfig(**network), critic=CriticConfig(**network),
    )  # fmt: skip
    result = run(config, battle("smacv2_5_units"))
    agents = result.states.learner.actor.agents
    assert {key: jax.tree.leaves(own)[0].shape[:2] for key, own in agents.items()} == {
        "unit_type": (1, 6),
        "agent": (1, 5),
    }
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(agents))
    assert np.any(agents["unit_type"]["fc1"]["left"])
