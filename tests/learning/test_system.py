"""A configuration becomes the parts it names."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_close, every_scheme, make_diary, random_params, small_config, with_roles

from lorasa_jax.config import ConfigError
from lorasa_jax.learning.system import alone, is_two_phase, make_system, own_weights

ENV = make_diary()
N = ENV.spec.n_agents
OBS, STATE = (np.random.default_rng(0).normal(size=(2, 4, *shape)).astype(np.float32) for shape in ((N, 4), (2,)))


def make(scheme: str = "ps", adapting: bool = False, **changes):
    return make_system(small_config(sharing=scheme, **changes), ENV, adapting=adapting)


def test_a_value_for_the_team_needs_a_reward_for_the_team():
    selfish = ENV._replace(spec=replace(ENV.spec, team_reward=False))
    with pytest.raises(ConfigError, match=r"use critic\.scope agent or own"):
        make_system(small_config(critic={"scope": "team"}), selfish)
    for scope in ("auto", "agent", "own"):
        assert make_system(small_config(critic={"scope": scope}), selfish).critic.sharing.n_agents == N


@pytest.mark.parametrize(("algo", "values"), [("mappo", 1), ("a2po", N), ("sequential", N)])
def test_left_to_itself_the_critic_has_a_value_per_agent_where_agents_move_one_by_one(algo, values):
    assert make(algo=algo).critic.sharing.n_agents == values


@pytest.mark.parametrize("scope", ["team", "agent", "own"])
def test_the_critic_sees_the_state_or_what_the_agent_sees(scope):
    system = make(critic={"scope": scope})
    view = system.critic_view(jnp.asarray(OBS), jnp.asarray(STATE))
    values = 1 if scope == "team" else N
    expected = OBS if scope == "own" else STATE[:, :, None]  # one view for all values
    np.testing.assert_array_equal(view, expected)
    carry, first = system.critic.initial_carry(4), jnp.zeros((2, 4), bool)
    _, value = jax.eval_shape(system.critic.unroll, random_params(system.critic), carry, view, first)
    assert value.shape == (2, 4, values, 1)


@pytest.mark.parametrize("reset_on_death", [False, True])
@pytest.mark.parametrize("scope", ["team", "agent", "own"])
def test_memories_start_from_zero_with_the_episode_and_if_asked_after_death(scope, reset_on_death):
    system = make(critic={"scope": scope}, reset_on_death=reset_on_death)
    first, alive = jnp.array([True, False]), jnp.array([[True, True, False], [False, True, True]])
    expected = np.array([[True] * N, [reset_on_death, False, False]])
    np.testing.assert_array_equal(system.actor_first(first, alive), expected)
    # A team's value outlives its members.
    np.testing.assert_array_equal(system.critic_first(first, alive), first[:, None] if scope == "team" else expected)


@every_scheme
def test_only_trunks_are_trained_in_the_first_phase_and_only_adapters_in_the_second(scheme):
    two_phase = is_two_phase(small_config(sharing=scheme), ENV)
    assert two_phase == (scheme in ("lorasa", "lorasa_joint", "seps_lora", "ps_restart"))
    from_scratch = ("shared", "agents") if scheme in ("mtl", "hyper", "mask") else ("shared",)
    second = {"lorasa": ("agents",), "seps_lora": ("agents",), "lorasa_joint": ("shared", "agents")}  # a free trunk
    assert make(scheme).train == from_scratch
    assert make(scheme, adapting=True).train == second.get(scheme, from_scratch)
    assert bool(random_params(make(scheme).actor).agents) == (len(from_scratch) == 2)


@pytest.mark.parametrize("adapting", [False, True])
@every_scheme
def test_what_plays_is_what_is_trained(scheme, adapting):
    system = make(scheme, adapting)
    params = random_params(system.actor)
    inputs = system.actor.initial_carry(4), jnp.asarray(OBS), jnp.zeros((2, 4), bool)
    expected = jax.jit(system.actor.unroll)(params, *inputs)
    assert_close(jax.jit(system.acting.unroll)(system.weights(params), *inputs), expected)


@every_scheme
def test_both_phases_play_with_the_same_program(scheme):
    shapes = [
        jax.eval_shape(lambda key, s=system: s.weights(s.actor.init(key)), KEY)
        for system in (make(scheme), make(scheme, adapting=True))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("roles", "changes", "message"),
    [
        ({}, {}, "levels of scope unit_type need agents with roles, and those of diary have none"),
        ({"n_roles": 2}, {"algo": "a2po"}, "in diary roles change, and with them who shares an adapter"),
    ],
)
def test_roles_that_do_not_fit_are_refused_in_one_line(roles, changes, message):
    config = small_config(sharing="lorasa", levels=("unit_type",), **changes)
    with pytest.raises(ConfigError) as error:
        make_system(config, with_roles(ENV, **roles))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@every_scheme
def test_alone_every_agent_decides_as_in_its_team(scheme):
    system = make(scheme, adapting=is_two_phase(small_config(sharing=scheme), ENV))
    params, apart = random_params(system.actor), alone(system)
    played = system.actor.initial_carry(4), jnp.asarray(OBS), jnp.zeros((2, 4), bool)
    expected = jax.jit(system.actor.unroll)(params, *played)
    weights = own_weights(system, params)
    assert {len(leaf) for leaf in jax.tree.leaves(weights)} == {N}
    assert_close(jax.jit(apart.acting.unroll)(weights, *played), expected)


def test_where_owners_change_nobody_is_alone():
    env = with_roles(ENV, n_roles=2)
    system = make_system(small_config(sharing="lorasa", levels=("unit_type",)), env, adapting=True)
    with pytest.raises(ConfigError, match="no agent has its own network"):
        alone(system)
