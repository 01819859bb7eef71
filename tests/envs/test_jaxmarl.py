"""Environments of JaxMARL at large: the same games, the two kinds of end, and agents that are not alike."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_shapes

from lorasa_jax.config import Config, ConfigError, JaxmarlConfig
from lorasa_jax.envs import jaxmarl, make_env
from lorasa_jax.envs._jaxmarl import load_jaxmarl, make_game
from lorasa_jax.envs.base import Env, TimeStep
from lorasa_jax.envs.jaxmarl import LONGEST, make_jaxmarl

KEY = jax.random.key(5)
SPREAD, SPEAKER, RIDDLE = "MPE_simple_spread_v3", "MPE_simple_speaker_listener_v4", "switch_riddle"
DOCS = Path(__file__).parents[2] / "docs"
LINES = (DOCS / "environments.md").read_text(encoding="utf-8").splitlines()
SHOWN = [match[1] for line in LINES if (match := re.match(r"\| `(.+?)` \| (yes|no) \|", line))]
"""Games in the table of the documents."""
COMM = "MPE_simple_world_comm_v3"  # actions in boxes of unequal size


@cache
def world(task: str) -> Env:
    return make_jaxmarl(task)


@cache
def stepper(task: str) -> Any:
    return jax.jit(world(task).step)


def drawn(key: Any, avail: Any) -> Any:
    return jax.random.categorical(key, jnp.where(avail, 0.0, -jnp.inf))


def play(task: str) -> tuple[list[TimeStep], list[Any], list[Any]]:
    """One episode of random available actions: what was seen, the states, the actions."""
    env, step = world(task), stepper(task)
    state, shown = env.reset(KEY)
    seen, states, actions = [shown], [state], []
    for t in range(LONGEST + 1):
        key_action, key_step = jax.random.split(jax.random.fold_in(KEY, t))
        actions.append((key_step, drawn(key_action, shown.avail)))
        state, shown = step(key_step, state, actions[-1][1])
        seen.append(shown), states.append(state)
        if shown.terminated | shown.truncated:
            break
    return seen, states, actions


def test_actions_in_boxes_are_told_to_the_game_in_its_own_units():
    game, env = make_game(COMM), world(COMM)
    sizes = [game.action_space(agent).shape[0] for agent in game.agents]
    assert len(set(sizes)) > 1 and env.spec.continuous and env.spec.n_actions == max(sizes)
    state, shown = env.reset(KEY)
    np.testing.assert_array_equal(shown.avail.sum(axis=-1), sizes)
    action = jax.random.uniform(KEY, shown.avail.shape, minval=-1.5, maxval=1.5)
    later, _ = stepper(COMM)(KEY, state, action)
    # Its boxes are [0, 1]; what lies outside ours is held at the border.
    told = {a: (np.clip(action[i, :k], -1, 1) + 1) / 2 for i, (a, k) in enumerate(zip(game.agents, sizes, strict=True))}
    _, expected, *_ = game.step_env(KEY, state.game, told)
    for ours, theirs in zip(jax.tree.leaves(later.game), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", [SPREAD, SPEAKER])
def test_the_game_is_upstreams(task):
    game = make_game(task)
    seen, _, actions = play(task)
    obs, state = game.reset(KEY)
    for now, (key, action) in zip(seen[1:], actions, strict=True):
        obs, state, reward, done, _ = game.step_env(key, state, {a: action[i] for i, a in enumerate(game.agents)})
        for i, agent in enumerate(game.agents):
            np.testing.assert_allclose(now.obs[i, : obs[agent].size], obs[agent], rtol=1e-6, atol=1e-6)
            assert not now.obs[i, obs[agent].size :].any()
            np.testing.assert_allclose(now.reward[i], reward[agent], rtol=1e-5)
        np.testing.assert_allclose(now.state, np.concatenate([obs[a] for a in game.agents]), rtol=1e-6, atol=1e-6)
        assert bool(now.truncated) == bool(done["__all__"]) and not now.terminated and not now.won


def test_agents_may_be_unlike():
    env = world(SPEAKER)
    assert (env.spec.obs_dim, env.spec.obs_widths, env.spec.n_actions, env.spec.state_dim) == (11, (3, 11), 5, 14)
    shown = env.reset(KEY)[1]
    np.testing.assert_array_equal(shown.avail, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert world(SPREAD).spec.obs_widths is None
    assert not env.spec.team_reward and not world(SPREAD).spec.team_reward


def test_agents_are_paid_each_for_itself():
    """Agents that bump into one another pay for it by themselves."""
    env = world(SPREAD)
    state, _ = env.reset(KEY)
    places = jnp.zeros_like(state.game.p_pos).at[0].set(jnp.array([3.0, 0.0]))
    _, shown = stepper(SPREAD)(KEY, state._replace(game=state.game.replace(p_pos=places)), jnp.zeros(3, jnp.int32))
    assert shown.reward[0] > shown.reward[1] == shown.reward[2]


def test_the_clock_truncates():
    seen = play(SPREAD)[0]
    assert len(seen) - 1 == 26 == world(SPREAD).spec.episode_limit  # 25 and one: the game asks before it counts
    assert seen[-1].truncated and not seen[-1].terminated
    assert all(now.alive.all() for now in seen)


def test_an_end_of_the_games_own_is_told_from_the_clock():
    env, step = world(RIDDLE), stepper(RIDDLE)
    game = make_game(RIDDLE)
    state, _ = env.reset(KEY)
    nothing, tell = (jnp.full(env.spec.n_agents, game.game_actions[word]) for word in ("NOTHING", "TELL"))
    _, shown = step(KEY, state, tell)
    assert shown.terminated and not shown.truncated and (shown.reward == shown.reward[0]).all()
    for t in range(game.max_steps):
        assert not shown.truncated, t
        state, shown = step(jax.random.fold_in(KEY, t), state, nothing)
    assert shown.truncated and not shown.terminated


def test_a_game_without_a_clock_is_cut():
    env = world("hanabi")
    assert env.spec.episode_limit == LONGEST
    seen, states, _ = play("hanabi")
    assert seen[-1].terminated and not seen[-1].truncated
    # The game says who may do what: whoever is not to move can only wait.
    assert sorted((now.avail.sum(axis=-1) > 1).sum() for now in seen[:-1])[-1] == 1
    late = states[0]._replace(steps=jnp.asarray(LONGEST - 1, jnp.int32))
    shown = stepper("hanabi")(KEY, late, drawn(KEY, seen[0].avail))[1]
    assert shown.truncated and not shown.terminated


def test_an_agent_that_is_done_before_the_others_is_dead(monkeypatch):
    game = make_game(SPREAD)

    class Fading:
        """The same game, of which the second agent takes its leave at once."""

        def __getattr__(self, name):
            return getattr(game, name)

        def step_env(self, *args):
            *shown, done, info = game.step_env(*args)
            return *shown, {**done, game.agents[1]: True}, info

    monkeypatch.setattr(jaxmarl, "make_game", lambda task, **options: Fading())
    env = make_jaxmarl(SPREAD)
    state, shown = env.reset(KEY)
    assert shown.alive.all()
    state, shown = env.step(KEY, state, jnp.zeros(3, jnp.int32))
    assert shown.alive.tolist() == [True, False, True] and shown.avail[1].any()
    assert not shown.terminated and not shown.truncated


@pytest.mark.parametrize("task", [SPREAD, SPEAKER, COMM, "MPE_simple_adversary_v3", "overcooked", "HeuristicEnemySMAX"])
def test_arrays_have_the_shapes_of_the_spec(task):
    check_shapes(world(task))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("MPE_simple_spred_v3", "unknown JaxMARL environment 'MPE_simple_spred_v3' (did you mean 'MPE_simple_spread"),
        ("hopper_3x1", "hopper_3x1 is a robot; use --env mabrax --task hopper_3x1"),
        ("JaxRobotarium_rware", "JaxRobotarium_rware cannot be made: "),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(task, said):
    with pytest.raises(ConfigError) as error:
        make_env(Config(env="jaxmarl", task=task))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_options_are_arguments_of_the_games_constructor():
    config = Config(env="jaxmarl", task=SPREAD, jaxmarl=JaxmarlConfig(("num_agents=5", "num_landmarks=4")))
    assert (make_env(config).spec.n_agents, make_env(config).spec.obs_dim) == (5, 4 + 2 * 4 + 4 * 4)
    assert make_jaxmarl("overcooked", layout="coord_ring").spec.obs_dim == 26 * 25
    assert JaxmarlConfig(("a=5", "b=coord_ring", "c=[1, 2]", "d=False", "e=0.5")).arguments == {
        "a": 5, "b": "coord_ring", "c": [1, 2], "d": False, "e": 0.5
    }  # fmt: skip


def test_an_instance_of_a_game_is_an_environment():
    game = make_game(SPREAD, num_agents=4)
    env = jaxmarl.jaxmarl_env(game)
    assert (env.spec.name, env.spec.n_agents) == ("SimpleSpreadMPE", 4)
    check_shapes(env)


@pytest.mark.parametrize(
    ("task", "option", "said"),
    [
        (SPREAD, "num_agent=5", f"{SPREAD} has no option 'num_agent' (did you mean 'num_agents'"),
        (SPREAD, "num_agents=many", f"{SPREAD} cannot be made with num_agents='many': "),
        ("overcooked", "layout=coord_rin", "unknown layout 'coord_rin' of overcooked (did you mean 'coord_ring'?)"),
        ("overcooked", "layout", "jaxmarl.options must be words NAME=VALUE, such as num_agents=5; got 'layout'"),
    ],
)
def test_an_option_that_the_game_does_not_take_is_said_in_one_line(task, option, said):
    with pytest.raises(ConfigError) as error:
        make_env(Config(env="jaxmarl", task=task, jaxmarl=JaxmarlConfig((option,))))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_robot_prints_nothing_while_it_is_refused(capfd):
    with pytest.raises(ConfigError):
        make_jaxmarl("halfcheetah_6x1")
    assert capfd.readouterr() == ("", "")


def test_making_a_game_prints_nothing(capfd):
    make_game("hopper_3x1")
    assert capfd.readouterr() == ("", "")


# Every game that is registered


@cache
def table() -> Any:
    """The module that writes the table of games."""
    spec = importlib.util.spec_from_file_location("jaxmarl_games", DOCS / "jaxmarl_games.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")  # of jaxnav
@pytest.mark.parametrize("task", SHOWN)
def test_every_game_fits_its_spec_or_is_refused_in_one_line_as_its_table_says(task):
    """Without a compilation: `row` traces `reset` and `step`."""
    assert table().row(task.replace("\\|", "|")) in LINES


def test_the_table_has_every_game():
    assert [name.replace("\\|", "|") for name in SHOWN] == load_jaxmarl().registered_envs


def test_what_a_game_says_of_agents_may_be_in_a_dictionary_a_sequence_or_an_array():
    obs = {"grid": jnp.arange(4.0).reshape(2, 2), "bag": jnp.array([7], jnp.int8)}
    for values in ({"a": obs, 3: obs}, (obs, obs), jnp.stack([jnp.arange(5)] * 2)):
        assert jaxmarl._is_by_agent(values, ("a", 3))
        (first, second) = jaxmarl._vectors(values, ("a", 3))
        assert first.shape == second.shape == (5,) and first.dtype == jnp.float32
    for values in ({"a": obs, "b": obs}, (obs,), jnp.zeros((3, 2)), jnp.zeros(())):
        assert not jaxmarl._is_by_agent(values, ("a", 3))


def test_a_match_of_rounds_is_cut_when_all_have_been_played():
    env = world("coin_game")
    assert env.spec.episode_limit == 101  # 10 rounds of 10 steps, and one: some games ask before they count
    seen = play("coin_game")[0]
    assert len(seen) - 1 == 100 and seen[-1].truncated and not seen[-1].terminated


def test_a_particle_world_is_drawn_where_it_is_in_the_colours_of_the_game():
    from lorasa_jax.envs.particles_drawing import HEADER, WIDTH

    env = world("MPE_simple_tag_v3")  # three adversaries and one good agent
    state, _ = env.reset(KEY)
    corners = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    at = np.concatenate([corners, np.zeros((len(state.game.p_pos) - 4, 2))])
    places = np.stack([at, np.concatenate([np.roll(corners, 1, axis=0), at[4:]])])
    states = state._replace(game=state.game.replace(p_pos=jnp.asarray(places)))
    frames = env.draw(states)
    assert len(frames) == 2 and frames[0].size == (WIDTH, HEADER + WIDTH)
    colours = [(243, 115, 115)] * 3 + [(115, 243, 115)]
    for frame, place in zip(frames, places, strict=True):
        for (x, y), colour in zip(place, colours, strict=False):
            pixel = (WIDTH / 2 + x * WIDTH / 2.2, HEADER + WIDTH / 2 - y * WIDTH / 2.2)
            assert frame.getpixel(tuple(map(int, pixel))) == colour


def test_an_agent_that_runs_away_does_not_shrink_the_picture():
    env = world(SPREAD)
    state, _ = env.reset(KEY)
    at = jnp.zeros_like(state.game.p_pos).at[0].set(1.0)
    states = state._replace(game=state.game.replace(p_pos=jnp.stack([at, at.at[1].set(9.0)])))
    frame = env.draw(states)[0]
    side, top = frame.width, frame.height - frame.width
    assert frame.getpixel((side // 2 + side // 4, top + side // 4)) == (115, 243, 115)


def test_other_games_are_not_drawn():
    assert world(RIDDLE).draw is None
