"""Every answer the toy games claim to have, by enumeration of all that chance can deal and agents can do."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorasa_jax.config import ConfigError
from lorasa_jax.envs.base import TimeStep
from lorasa_jax.envs.toy import GAMES, ceilings, make_toy

TEAMS = {
    "own_number": (2, 4),
    "specialisation": (2, 3),
    "synchronisation": (2, 3),
    "two_kinds": (2, 3),
    "probe_value": (1,),
    "probe_death": (2, 3),
    "probe_clock": (1,),
}
ALL = [(task, n, "bootstrap") for task in GAMES for n in TEAMS.get(task, (2,))]
ALL += [("probe_clock", 1, "terminal"), ("probe_discount", 2, "terminal")]
ONE_SHOT = [(task, n) for task in ("own_number", "specialisation", "synchronisation") for n in TEAMS[task]]
HANDS = {
    "two_kinds": lambda n: 2**n,
    "drawn_kinds": lambda n: 2**n,
    "probe_observation": lambda n: 2,
    "probe_policy": lambda n: 2**n,
    "probe_memory": lambda n: 2**n,
    "probe_mask": lambda n: 16**n,
}
KEY = jax.random.key(0)

every_game = pytest.mark.parametrize(("task", "n", "limit"), ALL)


class Play(NamedTuple):
    """Every hand [H] against every sequence of joint actions [Q].

    Attributes:
        seen: the time steps, [H, Q, T + 1, ...]: the reset and what followed each action.
        action: [Q, T, N].
        count: how often each hand was dealt, [H].
    """

    seen: TimeStep
    action: np.ndarray
    count: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """Return of every episode, averaged over agents, [H, Q]."""
        return self.seen.reward.sum(axis=2).mean(axis=-1)

    @property
    def chosen(self) -> np.ndarray:
        """Which sequences draw only on what is available, and how likely chance is to play them, [H, Q]."""
        avail = self.seen.avail[:, :, :-1]
        taken = np.take_along_axis(avail, np.broadcast_to(self.action, avail.shape[:-1])[..., None], axis=-1)[..., 0]
        return (taken / avail.sum(axis=-1)).prod(axis=(2, 3))


def play(task: str, n: int, limit: str = "bootstrap") -> Play:
    return _play(task, n, limit)  # the cache takes a default left out for another game


@cache
def _play(task: str, n: int, limit: str) -> Play:
    env = make_toy(task, n, limit)
    deals = 4096 if task in HANDS else 1
    states, openings = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, deals))
    cards = [np.asarray(leaf).reshape(deals, -1) for leaf in jax.tree.leaves(states.hand)]
    _, index, count = np.unique(
        np.hstack([np.zeros((deals, 1)), *cards]), axis=0, return_index=True, return_counts=True
    )
    states, openings = jax.tree.map(lambda leaf: np.asarray(leaf)[index], (states, openings))
    steps = env.spec.episode_limit
    action = np.array(list(product(range(env.spec.n_actions), repeat=steps * n)), np.int32).reshape(-1, steps, n)

    def episode(state, opening, actions):
        _, rest = jax.lax.scan(lambda state, action: env.step(KEY, state, action), state, actions)
        return jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), opening, rest)

    everything = jax.vmap(jax.vmap(episode, (None, None, 0)), (0, 0, None))
    return Play(jax.tree.map(np.asarray, jax.jit(everything)(states, openings, action)), action, count)


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


@every_game
def test_time_steps_match_the_spec(task, n, limit):
    spec = make_toy(task, n, limit).spec
    assert (spec.name, spec.n_agents) == (task, n)
    expected = TimeStep(
        obs=((n, spec.obs_dim), np.float32),
        state=((spec.state_dim,), np.float32),
        avail=((n, spec.n_actions), np.bool_),
        alive=((n,), np.bool_),
        reward=((n,), np.float32),
        terminated=((), np.bool_),
        truncated=((), np.bool_),
        won=((), np.bool_),
        role=((n,), np.int32) if spec.n_roles else (),
    )
    # Played under jit, vmap and scan, which holds the state to one shape.
    p = play(task, n, limit)
    assert jax.tree.map(lambda leaf: (leaf.shape[3:], leaf.dtype), p.seen) == expected
    assert p.seen.obs.shape[1:3] == (spec.n_actions ** (n * spec.episode_limit), spec.episode_limit + 1)


@pytest.mark.parametrize("task", GAMES)
def test_a_game_knows_the_size_of_its_team(task):
    assert make_toy(task).spec.n_agents == (4 if task in ("own_number", "two_kinds", "drawn_kinds") else 2)
    assert ceilings(task) == ceilings(task, make_toy(task).spec.n_agents)


@every_game
def test_hands_are_all_dealt_and_equally_likely(task, n, limit):
    count = play(task, n, limit).count
    expected = count.sum() / len(count)
    assert len(count) == HANDS.get(task, lambda n: 1)(n)
    assert np.abs(count - expected).max() < 6 * np.sqrt(expected)


@every_game
def test_episodes_end_with_the_limit_and_in_one_way(task, n, limit):
    seen = play(task, n, limit).seen
    over = seen.terminated | seen.truncated
    assert not (seen.terminated & seen.truncated).any()
    assert not over[:, :, :-1].any()
    assert over[:, :, -1].all()
    assert seen.truncated.any() == (task == "probe_clock" and limit == "bootstrap")


@every_game
def test_someone_can_act_and_everyone_has_an_action(task, n, limit):
    seen = play(task, n, limit).seen
    assert seen.avail.any(axis=-1).all()
    assert seen.alive.any(axis=-1).all()
    assert seen.alive[:, :, 0].all()
    assert not seen.reward[:, :, 0].any()


@every_game
def test_team_rewards_are_the_same_for_all(task, n, limit):
    reward = play(task, n, limit).seen.reward
    alike = (reward == reward[..., :1]).all()
    assert alike == make_toy(task, n, limit).spec.team_reward


@every_game
def test_an_episode_is_won_when_none_could_pay_more(task, n, limit):
    p = play(task, n, limit)
    assert not p.seen.won[:, :, :-1].any()
    np.testing.assert_array_equal(p.seen.won[:, :, -1], np.isclose(p.gain, p.gain.max()))


@every_game
def test_observations_survive_layer_norm(task, n, limit):
    seen = play(task, n, limit).seen
    for vectors in (seen.obs[seen.alive], seen.state.reshape(-1, seen.state.shape[-1])):
        distinct = np.unique(vectors, axis=0)
        normed = layer_norm(distinct)
        assert np.abs(normed).max(axis=-1).min() > 0.5
        apart = np.abs(normed[:, None] - normed[None]).max(axis=-1)
        assert apart[~np.eye(len(distinct), dtype=bool)].min(initial=np.inf) > 0.5


@every_game
def test_agents_see_as_many_symbols_as_the_game_has(task, n, limit):
    seen = play(task, n, limit).seen
    symbols = {"probe_memory": 3, "probe_clock": 1 if limit == "bootstrap" else 5}
    symbols |= dict.fromkeys(
        ("two_kinds", "probe_observation", "probe_discount", "probe_policy", "probe_mask", "probe_death"), 2
    )
    assert len(np.unique(seen.obs[seen.alive], axis=0)) == symbols.get(task, 1)


@every_game
def test_optimum_and_chance(task, n, limit):
    p, known = play(task, n, limit), ceilings(task, n)
    assert p.chosen.sum(axis=1) == pytest.approx(1.0)
    assert (p.chosen * p.gain).sum(axis=1).mean() == pytest.approx(known.chance)
    assert np.where(p.chosen > 0, p.gain, -np.inf).max(axis=1).mean() == pytest.approx(known.optimum)


@pytest.mark.parametrize(("task", "n"), ONE_SHOT)
def test_ceilings_of_one_policy_for_all(task, n):
    p, known = play(task, n), ceilings(task, n)
    assert np.unique(p.seen.obs[:, :, 0].reshape(-1, p.seen.obs.shape[-1]), axis=0).shape[0] == 1
    action, gain = p.action[:, 0], p.gain[0]
    n_actions = make_toy(task, n).spec.n_actions
    # 1 / grain divides by 2, 3 and 4, so that the grid holds every uniform policy.
    grain = {2: 120, 3: 24, 4: 12}[n_actions]
    grid = np.array([x for x in product(range(grain + 1), repeat=n_actions) if sum(x) == grain]) / grain
    sampled = grid[:, action].prod(axis=-1) @ gain
    greedy = gain[(action == action[:, :1]).all(axis=-1)]
    assert sampled.max() == pytest.approx(known.shared_sampled)
    assert greedy.max() == pytest.approx(known.shared_greedy)


SHARED = {
    "probe_policy": lambda obs, avail: np.repeat(obs[:1].argmax(axis=-1), len(obs), axis=0),
    "probe_memory": lambda obs, avail: np.repeat(obs[:1].argmax(axis=-1), len(obs), axis=0),
    "probe_mask": lambda obs, avail: (avail * np.arange(3)).max(axis=-1),
    "probe_death": lambda obs, avail: avail[..., 1].astype(int),
}


@pytest.mark.parametrize(("task", "n", "limit"), [game for game in ALL if game[0].startswith("probe")])
def test_one_policy_for_all_reaches_the_optimum_of_every_probe(task, n, limit):
    p, known = play(task, n, limit), ceilings(task, n)
    gains = []
    for obs, avail, gain in zip(p.seen.obs[:, 0, :-1], p.seen.avail[:, 0, :-1], p.gain, strict=True):
        action = SHARED.get(task, lambda obs, avail: np.zeros(obs.shape[:2], int))(obs, avail)
        gains.append(gain[(p.action == action).all(axis=(1, 2))].item())
    assert np.mean(gains) == pytest.approx(known.optimum)
    assert known.shared_sampled == known.shared_greedy == known.optimum


@pytest.mark.parametrize(
    ("task", "n", "table"),
    [
        ("specialisation", 2, [[0.5, 1.0], [1.0, 0.5]]),
        ("synchronisation", 2, [[1.0, 0.0], [0.0, 1.0]]),
        ("own_number", 2, [[0.5, 1.0], [0.0, 0.5]]),
    ],
)
def test_pay_of_two_players(task, n, table):
    np.testing.assert_array_equal(play(task, n).gain[0].reshape(2, 2), table)


@pytest.mark.parametrize("n", [2, 3])
def test_what_an_agent_shows_is_its_action_or_the_opposite_as_its_kind_has_it(n):
    p, kind = play("two_kinds", n), np.arange(n) % 2
    shown = p.seen.obs.argmax(axis=-1)[:, :, 1]
    np.testing.assert_array_equal(shown, np.broadcast_to(p.action[:, 0] ^ kind, shown.shape))
    np.testing.assert_allclose(p.gain, shown.mean(axis=-1), rtol=1e-6)


@pytest.mark.parametrize("n", [2, 3])
def test_one_policy_for_two_kinds_serves_the_larger(n):
    p, known = play("two_kinds", n), ceilings("two_kinds", n)
    first = p.seen.obs.argmax(axis=-1)[:, 0, 0]  # [hand, agent]
    grid = np.linspace(0, 1, 21)
    played = p.action[:, 0]
    earned = []
    for policy in product(grid, repeat=2):  # the probability of action 1 after each symbol
        chance = np.array(policy)[first][:, None]
        weight = np.where(played, chance, 1 - chance).prod(axis=-1)  # of each sequence; the second actions earn nothing
        earned.append((weight * p.gain).sum(axis=1).mean() / 2**n)
        if set(policy) <= {0.0, 1.0}:
            assert earned[-1] <= known.shared_greedy + 1e-6
    assert max(earned) == pytest.approx(known.shared_sampled) == known.shared_greedy


def test_pay_of_more_players():
    specialisation, synchronisation = play("specialisation", 3), play("synchronisation", 3)
    distinct = [len(set(joint)) / 3 for joint in specialisation.action[:, 0].tolist()]
    np.testing.assert_allclose(specialisation.gain[0], distinct, rtol=1e-6)
    alike = [float(len(set(joint)) == 1) for joint in synchronisation.action[:, 0].tolist()]
    np.testing.assert_allclose(synchronisation.gain[0], alike)
    own = play("own_number", 4)
    np.testing.assert_array_equal(own.seen.reward[0, :, 1], own.action[:, 0] == np.arange(4))


@pytest.mark.parametrize(("task", "n", "values"), [("probe_value", 1, [1.0]), ("probe_discount", 2, [0.9, 1.0])])
def test_value_of_every_state(task, n, values):
    reward = play(task, n).seen.reward[:, :, 1:]
    gamma = 0.9 ** np.arange(len(values))
    for step, value in enumerate(values):
        later = np.einsum("hqtn,t->hqn", reward[:, :, step:], gamma[: len(values) - step])
        np.testing.assert_allclose(later, value, rtol=1e-6)


def test_observation_probe_pays_what_it_shows():
    seen = play("probe_observation", 2).seen
    shown = seen.obs[:, :, 0] @ np.array([-1.0, 1.0])
    np.testing.assert_array_equal(seen.reward[:, :, 1], shown)


@pytest.mark.parametrize("task", ["probe_policy", "probe_memory"])
def test_blind_policies_recall_half(task):
    assert play(task, 2).gain.mean(axis=0) == pytest.approx(0.5)


def test_memory_probe_hides_the_cue_when_it_counts():
    seen = play("probe_memory", 2).seen
    for name in ("obs", "state", "avail"):
        later = getattr(seen, name)[:, :, 1:]
        np.testing.assert_array_equal(later, np.broadcast_to(later[:1, :1, :1], later.shape))
    assert len(np.unique(seen.obs[:, 0, 0], axis=0)) == 4
    assert not seen.reward[:, :, :-1].any()


def test_mask_probe_pays_the_highest_and_fines_the_unavailable():
    p = play("probe_mask", 2)
    avail = p.seen.avail[:, :, :-1]
    action = np.broadcast_to(p.action, avail.shape[:-1])
    highest = 2 - avail[..., ::-1].argmax(axis=-1)
    taken = np.take_along_axis(avail, action[..., None], axis=-1)[..., 0]
    pay = np.where(taken, action == highest, -1.0).mean(axis=-1)
    np.testing.assert_array_equal(p.seen.reward[:, :, 1:, 0], pay)
    assert avail[..., 0].all()


def test_mask_probe_cannot_be_played_without_the_mask():
    p = play("probe_mask", 2)
    assert (p.seen.obs[:, :, :2] == p.seen.obs[:1, :1, :2]).all()
    assert p.gain.mean(axis=0).max() == pytest.approx(0.5)


@pytest.mark.parametrize("n", [2, 3])
def test_death_probe_credits_the_dead_and_ignores_what_they_do(n):
    p = play("probe_death", n)
    seen, survivor = p.seen, np.arange(n) == 0
    assert (seen.alive[:, :, 1:] == survivor).all()
    assert not seen.obs[~seen.alive].any()
    assert (seen.avail[~seen.alive] == [True, False, False]).all()
    assert (seen.avail[seen.alive] == [False, True, True]).all()
    assert not seen.reward[:, :, 1].any()
    last_act = np.where(survivor, p.action[:, 1], p.action[:, 0])
    np.testing.assert_allclose(seen.reward[0, :, 2, 0], (last_act == 1).mean(axis=-1), rtol=1e-6)


def test_clock_probe_is_worth_what_the_clock_means():
    gamma = 0.9
    endless, finite = (play("probe_clock", 1, limit).seen for limit in ("bootstrap", "terminal"))
    for step in range(5):
        discount = gamma ** np.arange(5 - step)
        # What is seen never changes, so one value must do: bootstrapped at the end, it reproduces itself.
        value = 1 / (1 - gamma)
        later = (
            endless.reward[:, :, step + 1 :, 0] @ discount + gamma ** (5 - step) * value * endless.truncated[..., -1]
        )
        np.testing.assert_allclose(later, value, rtol=1e-6)
        later = finite.reward[:, :, step + 1 :, 0] @ discount
        np.testing.assert_allclose(later, (1 - gamma ** (5 - step)) / (1 - gamma), rtol=1e-6)
    assert (endless.obs == endless.obs[:, :, :1]).all()
    assert (endless.state == endless.state[:, :, :1]).all()
    assert finite.obs[0, 0, :5, 0].argmax(axis=-1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("specialization",), "no toy game 'specialization' (did you mean 'specialisation' or"),
        (("zzz",), "no toy game 'zzz'; games: own_number, specialisation, "),
        (("own_number", 1), "n-agents must be 2 or more in own_number, got 1"),
        (("probe_death", 1), "n-agents must be 2 or more in probe_death, got 1"),
        (("probe_value", 0), "n-agents must be 1 or more in probe_value, got 0"),
        (("probe_clock", None, "never"), "time-limit must be bootstrap or terminal, got 'never'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError) as error:
        make_toy(*arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_ceilings_refuse_the_same():
    with pytest.raises(ConfigError, match="did you mean 'probe_mask'"):
        ceilings("probe_masks")
    with pytest.raises(ConfigError, match="2 or more"):
        ceilings("synchronisation", 1)


def test_a_joint_action_of_the_wrong_size_is_refused():
    env = make_toy("specialisation")
    state, _ = env.reset(KEY)
    with pytest.raises(AssertionError):
        env.step(KEY, state, jnp.zeros(3, jnp.int32))
