"""Particle games: physics and pay held against plain NumPy, and known answers of scripted play."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, check_shapes
from PIL import ImageColor

from lorasa_jax.config import Config, ConfigError, ParticlesConfig
from lorasa_jax.envs import make_env
from lorasa_jax.envs.base import Env
from lorasa_jax.envs.particles import DRAG, MOVES, PUSH, eat, make_particles, rules_of

TASKS = ("spread_10x5", "spread_4+4+2", "roles_6x2", "dynamics_8x4", "dynamics_2+1", "dispersion_4")
EPISODES = 256

Script = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Moves [E, N] from positions [E, N, 2], velocities [E, N, 2] and landmarks [E, L, 2]."""


@cache
def env_of(task: str, reward: str = "agent") -> Env:
    return make_particles(task, ParticlesConfig(reward=reward))


@cache
def compiled(env: Env) -> tuple[Callable, Callable]:
    return jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step, (None, 0, 0)))


def play(env: Env, script: Script):
    """Returns states and time steps of scripted play, [T + 1, E, ...]; the reset comes first."""
    reset, step = compiled(env)
    state, seen = reset(jax.random.split(KEY, EPISODES))
    states, shown = [state], [seen]
    for _ in range(env.spec.episode_limit):
        action = script(*map(np.asarray, (state.place, state.velocity, state.landmark)))
        state, seen = step(KEY, state, action)
        states.append(state)
        shown.append(seen)
    return tuple(jax.tree.map(lambda *leaves: np.stack(leaves), *x) for x in (states, shown))


@cache
def play_at_random(task: str, reward: str = "agent"):
    """Returns states, time steps and the moves that led from one to the next, [T, E, N]."""
    env = env_of(task, reward)
    size = (env.spec.episode_limit, EPISODES, env.spec.n_agents)
    moves = np.random.default_rng(0).integers(0, len(MOVES), size)
    deck = iter(moves)
    return *play(env, lambda *_: next(deck)), moves


def towards(target: np.ndarray, place: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Returns the moves after which agents that only coast would come to rest nearest to their targets."""
    rest = place[..., None, :] + (DRAG * velocity[..., None, :] + PUSH * MOVES) / (1 - DRAG)
    return np.linalg.norm(rest - target[..., None, :], axis=-1).argmin(axis=-1)


def earned(shown) -> np.ndarray:
    """Returns of episodes, agents' mean, [E]."""
    return shown.reward.sum(axis=0).mean(axis=-1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Four standard errors around the mean."""
    error = 4 * values.std() / np.sqrt(len(values))
    return values.mean() - error, values.mean() + error


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("reward", ["agent", "team"])
def test_time_steps_match_the_spec(task, reward):
    env = env_of(task, reward)
    assert env.spec.team_reward == (reward == "team")
    check_shapes(env)


@pytest.mark.parametrize(
    ("task", "roles"),
    [
        ("spread_6x3", (0, 0, 1, 1, 2, 2)),
        ("spread_4+4+2", (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)),
        ("spread_3x3", (0, 1, 2)),
        ("roles_4x1", (0, 0, 0, 0)),
        ("dynamics_4x2", (0, 0, 1, 1)),
        ("dispersion_3", None),
    ],
)
def test_kinds_are_roles(task, roles):
    spec = env_of(task).spec
    assert (spec.name, spec.roles) == (task, roles)
    assert len(spec.role_names) == (max(roles) + 1 if roles else 0)


@pytest.mark.parametrize("task", ["spread_10x5", "dynamics_8x4"])
def test_physics_and_pay_are_those_of_the_definition(task):
    rules = rules_of(task)
    states, shown, action = play_at_random(task)
    place, velocity, mark = states.place[:-1], states.velocity, states.landmark
    np.testing.assert_allclose(states.place[1:], place + velocity[1:], atol=1e-6)
    push = (velocity[1:] - 0.75 * velocity[:-1]) / 0.05
    turn = 2 * np.pi * np.array(rules.roles) / 4 if task == "dynamics_8x4" else np.zeros(10)
    along = push[..., 0] * np.cos(turn) + push[..., 1] * np.sin(turn)
    across = push[..., 1] * np.cos(turn) - push[..., 0] * np.sin(turn)
    back = np.stack([along, across], axis=-1)
    np.testing.assert_allclose(back, MOVES[action], atol=1e-4)
    goal = mark[1:][:, :, list(rules.goal)]
    np.testing.assert_allclose(shown.reward[1:], -np.linalg.norm(states.place[1:] - goal, axis=-1), atol=1e-5)
    assert (shown.reward[0] == 0).all()
    assert np.abs(states.place[0]).max() <= 1 and np.abs(mark).max() <= 1 and (mark == mark[0]).all()


def test_an_agent_sees_where_it_is_and_all_landmarks_but_no_colour():
    states, shown, _ = play_at_random("spread_4+4+2")
    obs = shown.obs.reshape(*shown.obs.shape[:3], 5, 2)
    np.testing.assert_array_equal(obs[..., 0, :], states.place)
    np.testing.assert_array_equal(obs[..., 1, :], states.velocity)
    np.testing.assert_allclose(obs[..., 2:, :], states.landmark[:, :, None] - states.place[..., None, :], atol=1e-6)
    together = [x.reshape(*x.shape[:2], -1) for x in (states.place, states.velocity, states.landmark)]
    np.testing.assert_array_equal(shown.state, np.concatenate(together, axis=-1))


@pytest.mark.parametrize("task", ["spread_10x5", "dynamics_8x4", "dispersion_4"])
def test_an_episode_ends_by_the_clock_alone_unless_all_is_eaten(task):
    states, shown, _ = play_at_random(task)
    assert (shown.truncated[-1] | shown.terminated[-1]).all()
    assert not shown.truncated[:-1].any()
    eaten = ~states.left.any(axis=-1)
    assert (shown.terminated == eaten).all() and (shown.won == eaten).all()
    assert env_of(task).spec.winnable == (task == "dispersion_4")


@pytest.mark.parametrize("task", ["spread_10x5", "dispersion_4"])
def test_a_team_is_paid_the_mean(task):
    alone, team = play_at_random(task)[1], play_at_random(task, "team")[1]
    mean = alone.reward.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(team.reward, np.broadcast_to(mean, alone.reward.shape), rtol=1e-5)
    assert np.ptp(alone.reward, axis=-1).max() > 0.1


# ---------------------------------------------------------------- known answers


def landmarks(n: int, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, count, 2))


def test_random_play_earns_what_an_independent_simulation_says():
    rng, n = np.random.default_rng(1), 50_000
    place, goal = rng.uniform(-1, 1, (2, n, 2))
    velocity, total = np.zeros((n, 2)), np.zeros(n)
    for _ in range(25):
        velocity = 0.75 * velocity + 0.05 * MOVES[rng.integers(0, 5, n)]
        place = place + velocity
        total -= np.hypot(*(place - goal).T)
    for task in ("spread_10x5", "dynamics_8x4"):
        low, high = interval(earned(play_at_random(task)[1]))
        assert low < total.mean() < high
        assert high - low < 5


def median_distance(marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points with the smallest mean distance to landmarks [E, L, 2], and these distances (Weiszfeld)."""
    point = marks.mean(axis=1)
    for _ in range(200):
        weight = 1 / np.maximum(np.linalg.norm(marks - point[:, None], axis=-1), 1e-9)
        point = np.einsum("el,eld->ed", weight, marks) / weight.sum(axis=1, keepdims=True)
    return point, np.linalg.norm(marks - point[:, None], axis=-1).mean(axis=1)


@pytest.mark.parametrize("task", ["spread_10x5", "roles_10x5"])
def test_a_policy_blind_to_colours_stays_below_the_median_of_the_landmarks(task):
    """Where an agent is does not depend on its colour, so its mean distance is at least that of the best point."""

    def blind(place, velocity, marks):
        point, _ = median_distance(marks[:, :5])
        return towards(np.broadcast_to(point[:, None], place.shape), place, velocity)

    states, shown = play(env_of(task), blind)
    bound = -25 * median_distance(states.landmark[0][:, :5])[1].mean()
    assert bound == pytest.approx(-16.2, abs=0.5)
    # The best play of this kind: the bound, less the way there.
    assert bound - 3 < earned(shown).mean() < bound


def reachable(offset: np.ndarray) -> np.ndarray:
    """Returns the highest return of an agent at offsets [E, 2] from its goal.

    After t moves an agent is nowhere but in |x| + |y| <= sum of 0.2 (1 - 0.75^k), k = 1 ... t.
    """
    near, far = np.sort(np.abs(offset), axis=-1).T
    total = np.zeros(len(offset))
    for radius in np.cumsum(0.2 * (1 - 0.75 ** np.arange(1, 26))):
        over = (near + far - radius) / 2
        total -= np.where(over <= 0, 0, np.where(near >= over, np.sqrt(2) * over, np.hypot(far - radius, near)))
    return total


@pytest.mark.parametrize("task", ["spread_10x5", "spread_4+4+2", "roles_10x5"])
def test_agents_that_go_to_their_own_landmark_are_close_to_what_anybody_can_earn(task):
    goal = list(rules_of(task).goal)
    states, shown = play(env_of(task), lambda place, velocity, marks: towards(marks[:, goal], place, velocity))
    offset = states.place[0] - states.landmark[0][:, goal]
    bound = reachable(offset.reshape(-1, 2)).mean()
    # The same for every number of colours.
    assert bound == pytest.approx(-5.95, abs=0.3)
    assert bound - 2 < earned(shown).mean() < bound


def test_only_the_number_of_roles_changes_with_the_dial():
    few, many = env_of("roles_6x2"), env_of("roles_6x6")
    for key in jax.random.split(KEY, 3):
        for a, b in zip(*(jax.tree.leaves(env.reset(key)) for env in (few, many)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (few.spec.obs_dim, few.spec.state_dim) == (many.spec.obs_dim, many.spec.state_dim) == (16, 36)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_one_move_for_all_kinds_moves_the_team_nowhere_on_average(count):
    """So no policy that is blind to the kinds can choose where its agents go."""
    env = env_of(f"dynamics_{count}x{count}")
    state, _ = env.reset(KEY)
    for move in range(1, 5):
        after, _ = env.step(KEY, state, jnp.full(count, move))
        np.testing.assert_allclose(after.velocity.sum(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(after.velocity, axis=-1), PUSH, rtol=1e-5)


def test_kinds_that_allow_for_their_turn_reach_the_goal():
    def script(place, velocity, marks):
        straight = towards(np.broadcast_to(marks, place.shape), place, velocity)
        # A kind that is turned by a quarter must choose the move a quarter before: stay, right, left, up, down.
        before = np.array([0, 4, 3, 1, 2])
        for kind in range(1, 4):
            for _ in range(kind):
                straight[:, 2 * kind : 2 * kind + 2] = before[straight[:, 2 * kind : 2 * kind + 2]]
        return straight

    _, shown = play(env_of("dynamics_8x4"), script)
    assert -8.5 < earned(shown).mean() < -5.5


# ---------------------------------------------------------------- dispersion


def test_an_item_goes_to_the_nearest_and_is_shared_by_the_equally_near():
    distance = jnp.array([[0.14, 0.10, 0.50, 0.05], [0.02, 0.10, 0.16, 0.01]])
    reward, left = eat(distance, jnp.array([True, True, True, False]))
    assert reward.tolist() == [0.5, 1.5]  # item 1 is shared; item 3 was gone
    assert left.tolist() == [False, False, True, False]


def test_agents_that_stay_together_eat_as_one():
    """A shared policy that is greedy and sees no ids: all agents see the same, for ever."""

    def nearest_first(place, velocity, marks):
        gap = np.linalg.norm(marks - place[:, :1], axis=-1)
        target = np.take_along_axis(marks, gap.argmin(axis=1)[:, None, None], axis=1)
        return towards(np.broadcast_to(target, place.shape), place, velocity)

    states, shown = play(env_of("dispersion_4"), nearest_first)
    assert (states.place == states.place[:, :, :1]).all() and (shown.obs == shown.obs[:, :, :1]).all()
    assert (shown.reward == shown.reward[..., :1]).all()
    assert earned(shown).mean() < 0.55


def test_agents_with_an_item_each_eat_all():
    states, shown = play(env_of("dispersion_4"), lambda place, velocity, marks: towards(marks, place, velocity))
    assert earned(shown).mean() > 0.98
    assert shown.won.any(axis=0).mean() > 0.95
    np.testing.assert_allclose(earned(shown), 1 - states.left[-1].mean(axis=-1), rtol=1e-6)


def test_what_is_eaten_is_no_longer_seen():
    states, shown, _ = play_at_random("dispersion_4")
    gone = ~states.left
    items, left = shown.obs[..., 4:12].reshape(*shown.obs.shape[:3], 4, 2), shown.obs[..., 12:]
    assert gone.any() and not items[np.broadcast_to(gone[:, :, None], left.shape)].any()
    assert (left == states.left[:, :, None]).all() and (shown.state[..., -4:] == states.left).all()


# ---------------------------------------------------------------- settings and pictures


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("spred_10x5", r"no particle game 'spred_10x5' \(did you mean 'spread'\?\); games: spread_10x5, roles_10x5, "),
        ("spread", r"'spread' must name agents and groups \(spread_10x5\), or the sizes of the groups \(spread_4\+4\+"),
        ("spread_10", "'spread_10' must name agents and groups"),
        ("spread_0x5", "'spread_0x5' must name agents and groups"),
        ("spread_4+0", r"'spread_4\+0' must name agents and groups"),
        (
            "roles_10x4",
            "'roles_10x4': 10 agents do not fall into 4 equal groups; write the sizes of the groups, as in r",
        ),
        ("dispersion_4x2", "'dispersion_4x2' must name the number of agents: dispersion_4"),
    ],
)
def test_a_team_that_cannot_be_is_refused_in_one_line(task, message):
    with pytest.raises(ConfigError, match=f"^{message}[^\n]*$"):
        env_of(task)


def test_the_command_lines_settings_reach_the_game():
    assert make_env(Config(env="particles")).spec.name == "spread_10x5"
    assert make_env(Config(env="particles", particles=ParticlesConfig(reward="team"))).spec.team_reward
    with pytest.raises(ConfigError, match="n-agents is fixed by the task in particles; spread_10x5 says"):
        make_env(Config(env="particles", n_agents=3))
    with pytest.raises(ConfigError, match=r"particles\.reward must be one of agent \| team, got 'all'"):
        ParticlesConfig(reward="all")


def coloured(frame, colour: str) -> int:
    return int((np.abs(np.asarray(frame, int) - ImageColor.getrgb(colour)).max(axis=-1) <= 2).sum())


def test_every_colour_is_drawn_and_what_is_eaten_is_not():
    from lorasa_jax.envs.particles_drawing import ITEMS, palette

    states = play_at_random("spread_10x5")[0]
    frames = env_of("spread_10x5").draw(jax.tree.map(lambda leaf: leaf[:3, 0], states))
    assert len(frames) == 3
    for colour in palette(5):
        assert coloured(frames[2], colour) > 50
    env = env_of("dispersion_4")
    state, _ = env.reset(KEY)
    halves = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    full, half = env.draw(halves._replace(left=jnp.array([[True] * 4, [True, True, False, False]])))
    assert coloured(full, ITEMS) > coloured(half, ITEMS) + 60
