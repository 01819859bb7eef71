"""In a game whose answer is known, every number of a diagnosis is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, make_diary, random_params, small_config, with_roles

from lorasa_jax.analysis import diversity
from lorasa_jax.analysis.corrections import corrections
from lorasa_jax.analysis.diagnosis import (
    DROPPED,
    Diagnosis,
    _how_they_learn,
    diagnose,
    draw_gradients,
    drop_changes,
    make_player,
    names_of,
    swap_changes,
)
from lorasa_jax.analysis.diversity import gradient_noise
from lorasa_jax.analysis.plots import pictures
from lorasa_jax.core.types import Learner, Weights
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.rollout import collect, initial_state
from lorasa_jax.learning.system import System, alone, is_two_phase, make_system, own_weights
from lorasa_jax.sharing.schemes import SCHEMES

N = 3
ASKS = (0, 0, 2)
"""The action that each agent's adapter asks for: agents 0 and 2 are right, agent 1 has agent 0's adapter."""


def learner_of(system: System, actor=None) -> Learner:
    actor = random_params(system.actor) if actor is None else actor
    return Learner(actor, random_params(system.critic), {}, {}, system.value_norm.init(), system.inputs.init())


@cache
def own_numbers() -> SimpleNamespace:
    """A team by the hand of one who knows the game; all layers but the last are the trunk's."""
    system = make_system(small_config(sharing="lorasa", rank=8), make_toy("own_number", N), adapting=True)
    params = random_params(system.actor)
    shared, agents = {**params.shared}, jax.tree.map(jnp.zeros_like, params.agents)
    shared["after1_norm"] = {"scale": jnp.zeros((1, 8)), "bias": jnp.ones((1, 8))}  # the head's input
    shared["head"] = jax.tree.map(jnp.zeros_like, shared["head"])
    head = jnp.broadcast_to(jax.nn.one_hot(jnp.array(ASKS), N)[:, None], (N, 8, N))
    params = params._replace(shared=shared, agents={"agent": {**agents["agent"], "head": {"full": head}}})
    team, learner = alone(system), learner_of(system, own_weights(system, params))
    play = make_player(team, learner, KEY, greedy=True)
    return SimpleNamespace(system=system, params=params, actors=learner.actor, play=play, before=play(learner.actor))


def test_who_takes_an_equal_adapter_plays_on_as_before_and_who_takes_another_is_lost():
    it = own_numbers()
    assert it.before["return"].tolist() == pytest.approx([2 / 3] * 16)
    change = swap_changes(it.play, it.actors, np.ones((N, N), bool), it.before)["return"]
    for part in change:
        assert not np.diagonal(part).any()
        assert part[0, 1] == part[1, 0] == part[1, 2] == 0  # to the bit; agent 1 is wrong either way
        np.testing.assert_allclose([part[0, 2], part[2, 0], part[2, 1]], -1 / 3, atol=1e-6)


def test_pairs_that_cannot_be_compared_are_not_swapped():
    it = own_numbers()
    same = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
    said: list[str] = []
    change = swap_changes(it.play, it.actors, same, it.before, said.append)["return"].mean
    assert said == ["swap 1 of 2", "swap 2 of 2"]
    np.testing.assert_array_equal(np.isnan(change), ~same)
    unwinnable = {"return": it.before["return"]}
    assert list(swap_changes(it.play, it.actors, same, unwinnable)) == ["return"]


def test_without_its_corrections_a_team_plays_as_its_trunk():
    it = own_numbers()
    layers = corrections(it.system, it.params)
    change = drop_changes(it.play, it.actors, layers, it.before)["return"].mean
    trunk = it.system.actor.init_adapters(KEY, it.params)  # fresh adapters add nothing
    alone_plays = it.play(own_weights(it.system, trunk))["return"].mean()
    assert change[0] == 0
    assert it.before["return"].mean() + change[-1] == pytest.approx(alone_plays)
    # Sixteen of the head's 24 entries are zeros: dropping half of them drops nothing.
    assert change[DROPPED.index(0.5)] == 0
    assert change[-1] == pytest.approx(-1 / 3)


def test_agents_are_called_by_their_roles():
    env = make_diary()
    assert names_of(env.spec) == ["agent 0", "agent 1", "agent 2"]
    assert names_of(with_roles(env, roles=(1, 0, 1)).spec) == [f"agent {i} (role {r})" for i, r in enumerate((1, 0, 1))]
    named = replace(with_roles(env, roles=(1, 0, 1)).spec, role_names=("scout", "guard"))
    assert names_of(named) == ["guard 0", "scout 1", "guard 2"]


def test_of_roles_that_change_only_the_corrections_are_told():
    system = make_system(
        small_config(sharing="lorasa", levels=("unit_type",)), make_toy("drawn_kinds", N), adapting=True
    )
    found = diagnose(system, learner_of(system), KEY)
    assert found.owners == ["role 0", "role 1"]
    assert found.layers is not None
    assert found.layers["head"].norm.shape == (2,)
    assert found.swap is found.distance is found.dropped is found.gradient is None
    assert len(found.left_out) == 1 and "no agent has weights of its own" in found.left_out[0]
    assert set(pictures(found)) == {"layers", "sparsity"}


@pytest.mark.slow
def test_gradients_are_those_of_rollouts_that_follow_the_first_episodes():
    system = make_system(small_config(sharing="lorasa", rollout_length=2), make_diary(N), adapting=True)
    team, span = alone(system), -(-system.env.spec.episode_limit // 2)
    learner = learner_of(system, own_weights(system, random_params(system.actor)))
    said: list[str] = []
    gradients, samples = draw_gradients(team, learner, KEY, 3, said.append)
    assert span > 1 and said == ["playing first episodes"] * span + [f"gradient {k} of 3" for k in (1, 2, 3)]

    start_key, play_key = jax.random.split(KEY)
    now, play, gradient = (
        jax.jit(partial(initial_state, team))(start_key),
        jax.jit(partial(collect, team)),
        jax.jit(partial(diversity.gradients, team)),
    )
    for k, key in enumerate(jax.random.split(play_key, span + 3)):
        now, trajectory, _ = play(Weights(learner.actor, learner.inputs), learner.critic, now, key)
        if k >= span:
            expected = gradient(learner, trajectory)
            np.testing.assert_allclose(gradients[k - span], expected, atol=1e-5)
            np.testing.assert_array_equal(samples[k - span], trajectory.alive.sum(axis=(0, 1)))
    assert gradients.shape[:2] == samples.shape == (3, N)
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-3


def test_noise_is_told_of_all_samples_of_those_of_a_role_and_of_one_agent():
    """Agents 0 and 2 are of one role; samples differ from agent to agent and from rollout to rollout."""
    rng = np.random.default_rng(0)
    gradients, samples = rng.standard_normal((9, N, 5)), rng.integers(0, 9, (9, N))
    known = Diagnosis(["a", "b", "c"], (0, 1, 0), ["scout", "guard"], [], "")
    found = _how_they_learn(known, gradients, samples, np.ones((N, N), bool), 2)
    mixed = [(g[0] * n[0] + g[2] * n[2]) / max(n[0] + n[2], 1) for g, n in zip(gradients, samples, strict=True)]
    whole = [n @ g / n.sum() for g, n in zip(gradients, samples, strict=True)]
    expected = {"all agents": np.array(whole), "scout, all": np.array(mixed), "one agent": gradients}
    for name, drawn in expected.items():
        np.testing.assert_allclose(found.noise[name], gradient_noise(drawn, 2))
    assert list(found.noise) == ["all agents", "scout, all", "guard, all", "one agent"]
    first, second = gradients[:5, 1].mean(axis=0), gradients[5:, 1].mean(axis=0)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found.gradient_again[1] == pytest.approx(cosine)


def check_matrices(found: Diagnosis) -> None:
    for matrix in (found.distance, found.distance_with_ids):
        if matrix is not None:
            assert not np.diagonal(matrix).any()
            np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(np.diagonal(found.gradient), 1)
    np.testing.assert_allclose(found.gradient, np.transpose(found.gradient), atol=1e-12)
    assert found.swap is None or not np.diagonal(found.swap["return"].mean).any()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_diagnosed_as_far_as_it_goes(scheme):
    config, env = small_config(sharing=scheme), make_diary()
    system = make_system(config, env, adapting=is_two_phase(config, env))
    found = diagnose(system, learner_of(system), KEY, episodes=8)
    check_matrices(found)
    one_network = scheme in ("ps", "ps_id", "ps_restart")
    assert (found.swap is None) == one_network
    assert (found.layers is None) == (found.dropped is None) == (scheme not in ("lorasa", "seps_lora"))
    assert (found.distance_with_ids is None) == (scheme not in ("ps_id", "ps_restart", "lorasa"))
    if one_network:
        assert not found.distance.any()
    assert len(found.left_out) == one_network + (found.layers is None)


@pytest.mark.slow
def test_robots_with_unequal_bodies_are_compared_in_part():
    from lorasa_jax.envs.mabrax import make_mabrax

    config = small_config(env="mabrax", task="hopper_3x1", sharing="lorasa", rollout_length=1000, total_steps=10**6)
    system = make_system(config, make_mabrax("hopper_3x1", config.mabrax), adapting=True)
    found = diagnose(system, learner_of(system), KEY, episodes=2)
    check_matrices(found)
    assert found.measure == "2-Wasserstein"
    assert list(found.played) == list(found.swap) == list(found.dropped) == ["return"]  # nothing can be won
    assert len(pictures(found)["swap"].axes) == 2  # one panel, and its scale
