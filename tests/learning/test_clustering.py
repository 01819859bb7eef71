"""Agents whom the world treats alike belong together; who they are is found from what happens to them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, make_diary, small_config
from hypothesis import given
from hypothesis import strategies as st

from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.config import ConfigError
from lorasa_jax.envs import make_env, toy
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep
from lorasa_jax.learning import clustering as grouping
from lorasa_jax.learning.clustering import (
    Experience,
    choose_groups,
    common_refinement,
    find_groups,
    k_means,
    observations_alone,
    play,
    reward_alone,
    silhouette,
    with_groups,
)
from lorasa_jax.learning.system import make_system
from lorasa_jax.running import loop
from lorasa_jax.running.callbacks import Callback
from lorasa_jax.running.state import Result

CONFIG = small_config(sharing="seps", groups=None, n_envs=64)


def kinds_env(*kinds: int) -> Env:
    """The toy game of two kinds, with the kinds in any order."""
    game = toy.Game(partial(toy.two_kinds, kinds=kinds), n_agents=len(kinds))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(toy.GAMES, "two_kinds", game)
        return toy.make_toy("two_kinds")


def movers(*pushes: float) -> Env:
    """Agents on a line, pushed by the first dimension of their action, each by a length of its own.

    The second dimension does nothing, and agent 0 does not have it.
    """
    n, limit = len(pushes), 4

    def show(place, time) -> TimeStep:
        obs, no = jnp.stack([place, jnp.ones(n)], axis=-1), jnp.bool_(False)
        avail = jnp.ones((n, 2), bool).at[0, 1].set(False)
        return TimeStep(obs, obs.reshape(-1), avail, jnp.ones(n, bool), jnp.zeros(n), no, time == limit, no)

    def reset(key):
        place = jax.random.uniform(key, (n,), minval=-1.0)
        return (place, jnp.int32(0)), show(place, jnp.int32(0))

    def step(key, state, action):
        place, time = state[0] + jnp.array(pushes) * action[:, 0], state[1] + 1
        return (place, time), show(place, time)

    return Env(EnvSpec("movers", n, 2, 2 * n, 2, limit, team_reward=True, continuous=True), reset, step)


# ---------------------------------------------------------------- from play to groups


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [(0, 0, 1, 1), (0, 1, 0, 0)])
def test_agents_of_one_kind_are_found(kinds):
    """Over several keys; the kinds are numbered in the order of first appearance."""
    env = kinds_env(*kinds)
    assert {find_groups(CONFIG, env, jax.random.key(seed)) for seed in range(3)} == {kinds}


def test_agents_that_continuous_actions_push_differently_are_apart():
    assert find_groups(CONFIG, movers(1.0, -1.0, -1.0, 1.0), KEY) == (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("task", "n", "groups"),
    [
        ("specialisation", 3, (0, 0, 0)),  # nothing sets agents apart
        # Each is paid for something else, though episodes last one step.
        pytest.param("own_number", 2, (0, 1), marks=pytest.mark.slow),
        ("probe_value", 1, (0,)),
    ],
)
def test_all_may_be_alike_or_nobody(task, n, groups):
    assert find_groups(CONFIG, toy.make_toy(task, n), KEY) == groups


COLOURS = parse(RunConfig, ["--env", "particles", "--task", "spread_6x3", "--sharing", "seps"])


def test_agents_that_differ_in_what_they_are_paid_for_are_found():
    env = make_env(COLOURS)
    assert find_groups(COLOURS, env, KEY) == env.spec.roles == (0, 0, 1, 1, 2, 2)


@pytest.mark.slow
def test_they_are_not_found_where_one_code_predicts_all():
    env = make_env(COLOURS)
    assert find_groups(replace(COLOURS, grouping="joint"), env, KEY) != env.spec.roles


@pytest.mark.slow
@pytest.mark.parametrize("task", ["spread_10x5", "spread_30x5", "spread_4+4+2", "dynamics_8x4", "spread_10x1"])
def test_roles_of_particle_games_are_found(task):
    config = replace(COLOURS, task=task)
    env = make_env(config)
    assert [find_groups(config, env, jax.random.key(seed)) for seed in range(2)] == [env.spec.roles] * 2


@pytest.mark.parametrize(
    ("partitions", "groups"),
    [
        ([(0, 0, 1, 1)], (0, 0, 1, 1)),
        ([(0, 0, 1, 1), (0, 0, 0, 0)], (0, 0, 1, 1)),
        ([(0, 1, 0, 1), (0, 0, 1, 1)], (0, 1, 2, 3)),
        ([(0, 0, 1, 0), (0, 1, 1, 0)], (0, 1, 2, 0)),
    ],
)
def test_agents_belong_together_if_all_partitions_say_so(partitions, groups):
    assert common_refinement(partitions) == groups


def test_a_reward_alone_is_in_its_own_units():
    rng = np.random.default_rng(0)
    before, after = rng.uniform(size=(100, 3)), rng.uniform(size=(100, 4))
    before[:, 1] = 0.5
    whole = Experience(np.zeros(100, int), before, after, rng.random((100, 4)) < 0.5)
    alone = reward_alone(whole)
    np.testing.assert_allclose(alone.after, (after[:, 3:] - after[:, 3].mean()) / after[:, 3].std())
    np.testing.assert_allclose(alone.before.std(axis=0), [1, 0, 1])
    np.testing.assert_array_equal(alone.known, whole.known[:, 3:])
    rest = observations_alone(whole)
    np.testing.assert_array_equal(rest.before, before)
    np.testing.assert_array_equal(rest.after, after[:, :3])


def test_a_run_finds_its_groups_once_for_all_seeds(monkeypatch):
    config, keys, said = replace(CONFIG, task="two_kinds", seeds=2, seed=5), [], []
    used = []

    class Listener(Callback):
        def status(self, text):
            said.append(text)

    def find(config, env, key):
        keys.append(jax.random.key_data(key).tolist())
        return (0, 1, 0, 1)

    monkeypatch.setattr(grouping, "find_groups", find)
    programs = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(loop, "_Runner", lambda config, *_: SimpleNamespace(config=config, programs=programs))
    monkeypatch.setattr(loop, "_run", lambda runner, *_: used.append(runner.config) or Result(*[None] * 7))
    for seed in (5, 5, 6):
        loop.run(replace(config, seed=seed), toy.make_toy("two_kinds"), [Listener()])
        assert used.pop() == replace(config, seed=seed, groups=(0, 1, 0, 1))
    assert said == ["grouping agents", "groups of agents: 0 1 0 1"] * 3
    assert keys[0] == keys[1] != keys[2]


def test_groups_are_found_only_where_they_are_needed_and_not_given():
    env = toy.make_toy("two_kinds")
    for config in (replace(CONFIG, groups=(0, 1, 1, 0)), small_config(sharing="lorasa")):
        assert with_groups(config, env, pytest.fail) is config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sharing": "seps", "groups": None}, "seps needs groups: give --groups, or "),
        ({"sharing": "seps_lora", "groups": None}, "seps_lora needs groups: give --groups, or "),
        (
            {"sharing": "seps", "groups": (0, 1)},
            r"groups must name a cluster for each of the 3 agents, got 2: \(0, 1\)",
        ),
        ({"sharing": "lorasa", "groups": (0, 1, 0)}, "groups have no meaning under sharing lorasa; leave them out"),
    ],
)
def test_groups_that_cannot_work_are_refused_in_one_line(changes, said):
    with pytest.raises(ConfigError, match=f"^{said}[^\n]*$"):
        make_system(small_config(**changes), make_diary(3))


# ---------------------------------------------------------------- what is played


@cache
def diary() -> tuple:
    """What happened in three-agent episodes of unequal length, in which agents die."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "STEPS", 40 * 4)
        config = small_config(sharing="seps", groups=None, rollout_length=16, standardise=True)
        return jax.device_get(jax.jit(partial(play, config, make_diary(3)))(KEY))


def test_enough_is_played_and_nothing_else():
    before, after, known, alive = diary()
    assert before.shape == (47, 4, 3, 4 + 3)  # three rollouts of 16 steps, the last without a successor
    assert after.shape == known.shape == (47, 4, 3, 4 + 1)
    assert alive.shape == (47, 4, 3)
    for x in (before, after):
        assert x.min() == 0.0
        assert x.max() == 1.0


def test_what_is_seen_next_is_the_next_observation_of_the_same_episode():
    before, after, known, _ = diary()
    episode, time = before[..., 0], before[..., 1]  # as the diary shows them: number, and share of the time
    assert known[..., -1].all()
    seen = known[..., 0]
    assert (known[..., :-1] == seen[..., None]).all()
    np.testing.assert_array_equal(after[:-1, ..., :-1], before[1:, ..., :4])
    np.testing.assert_array_equal(after[..., 0][seen], episode[seen])  # the next episode is never looked at
    assert (after[..., 1][seen] > time[seen]).all()
    assert (after[..., 1][~seen] == 0).all()
    assert 0.1 < (~seen).mean() < 0.5


def test_actions_are_shown_as_they_are_taken():
    before, *_, alive = diary()
    action = before[..., 4:]
    assert (action.sum(axis=-1) == 1).all()
    assert not action[alive][:, 0].any()  # only the dead may take action 0
    pushed = jax.device_get(jax.jit(partial(play, CONFIG, movers(1.0, -1.0)))(KEY))[0]
    assert np.abs(pushed[..., 2:]).max() <= 1.0
    assert not pushed[:, :, 0, 3].any()  # a dimension that the agent does not have
    assert pushed[:, :, 1, 3].std() > 0.1


# ---------------------------------------------------------------- from codes to groups


def plain_silhouette(points, labels) -> float:
    """Point by point, as Rousseeuw defines it."""
    n, values = len(points), []
    for i in range(n):
        to = {
            k: [np.linalg.norm(points[i] - points[j]) for j in range(n) if j != i and labels[j] == k]
            for k in set(labels)
        }
        own = to.pop(labels[i])
        if not own:
            values.append(0.0)
            continue
        a, b = np.mean(own), min(np.mean(other) for other in to.values())
        values.append((b - a) / max(a, b))
    return np.mean(values)


def spread(labels, points) -> float:
    return sum(np.sum((points[labels == k] - points[labels == k].mean(axis=0)) ** 2) for k in set(labels.tolist()))


@given(seed=st.integers(0, 10**6), n=st.integers(3, 7), k=st.integers(2, 4))
def test_silhouettes_are_those_of_the_definition(seed, n, k):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n)])
    points = rng.normal(size=(n + k, 3))
    assert silhouette(points, labels) == pytest.approx(plain_silhouette(points, labels.tolist()))


@pytest.mark.parametrize("k", [2, 3])
def test_k_means_finds_the_best_partition_of_all(k):
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(6, 2))
        partitions = (np.array(x) for x in product(range(k), repeat=6) if len(set(x)) == k)
        found = k_means(points, k)
        assert len(set(found)) == k
        assert spread(found, points) == pytest.approx(min(spread(x, points) for x in partitions))


@given(seed=st.integers(0, 10**6))
def test_clusters_are_numbered_as_they_appear_and_do_not_hang_on_the_order(seed):
    rng = np.random.default_rng(seed)
    points, order = rng.normal(size=(6, 2)), rng.permutation(6)
    labels, permuted = k_means(points, 3), k_means(points[order], 3)
    for found in (labels, permuted):
        assert [*dict.fromkeys(found.tolist())] == [0, 1, 2]
    assert ((labels[order][:, None] == labels[order]) == (permuted[:, None] == permuted)).all()


def test_points_that_coincide_form_one_cluster():
    assert set(k_means(np.zeros((4, 2)), 3)) == {0}


@pytest.mark.parametrize(
    ("places", "deviation", "groups"),
    [
        ((0, 0), 1.0, (0, 0)),
        ((0, 2), 1.0, (0, 0)),  # apart by sqrt(2) deviations
        ((0, 9), 1.0, (0, 1)),
        ((0, 2), 0.1, (0, 1)),
        ((0, 0.1, 0), 1.0, (0, 0, 0)),
        ((0, 0.1, 9), 1.0, (0, 0, 1)),
        ((9, 0.1, 0, 9.1, 0), 1.0, (0, 1, 1, 0, 1)),
        ((0, 9, 18, 27), 0.1, (0, 1, 2, 3)),  # evenly apart: no structure
        ((0, 9, 99, 108), 0.1, (0, 0, 1, 1)),  # all apart, but in pairs
        ((0, 0.1, 9, 30), 1.0, (0, 0, 0, 1)),  # silhouettes look at the greatest distances
    ],
)
def test_who_is_told_apart_and_who_stands_alone(places, deviation, groups):
    mean = np.outer(places, [1.0, 0.0])
    assert choose_groups(mean, np.full(mean.shape, deviation)) == groups
