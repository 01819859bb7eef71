"""Schemes, as data."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from helpers import every_scheme, make_diary, small_config

from lorasa_jax.sharing.schemes import SCHEMES, acting, count, critic_sharing, make_sharing, trunks_only

N = 3
KNOWN = {  # trunks, whether agents own something, whether they see their id, whether there are two phases
    "ps": (1, False, False, False),
    "ps_id": (1, False, True, False),
    "ps_restart": (1, False, True, True),
    "nps": (N, False, False, False),
    "mtl": (1, True, False, False),
    "hyper": (1, True, False, False),
    "mask": (1, True, False, False),
    "lorasa": (1, True, True, True),
    "lorasa_joint": (1, True, True, True),  # unless agents can start at once
    "seps": (2, False, False, False),
    "seps_lora": (2, True, False, True),
}


def make(scheme: str, n: int = N):
    return SCHEMES[scheme](n, small_config(groups=tuple(i % 2 for i in range(n))))


@every_scheme
def test_who_shares_what(scheme):
    sharing = make(scheme)
    owns = bool(sharing.levels)
    assert (sharing.n_trunks, owns, sharing.agent_id, sharing.two_phase) == KNOWN[scheme]


@pytest.mark.parametrize("n", [1, 2, 5])
@every_scheme
def test_every_agent_has_a_trunk_and_every_trunk_a_tenant(scheme, n):
    sharing = make(scheme, n)
    assert sharing.n_agents == len(sharing.groups) == n
    assert set(sharing.groups) == set(range(sharing.n_trunks))


@every_scheme
def test_the_first_phase_has_the_same_trunks_and_nothing_on_top(scheme):
    sharing, first = make(scheme), trunks_only(make(scheme))
    assert (first.groups, first.agent_id) == (sharing.groups, sharing.agent_id)
    assert not first.levels
    assert not first.two_phase


@every_scheme
def test_agents_act_on_the_same_trunks_with_what_each_has_for_itself(scheme):
    sharing, plays = make(scheme), acting(make(scheme))
    assert (plays.groups, plays.agent_id) == (sharing.groups, sharing.agent_id)
    assert [level.scope for level in plays.levels] == (["agent"] if sharing.levels else [])
    assert plays.two_phase == (scheme == "ps_restart")


@pytest.mark.parametrize(
    ("team_reward", "switch_step", "two_phase"),
    [(True, "auto", True), (True, 0, False), (True, 100, True), (False, "auto", False), (False, 100, True)],
)
def test_joint_training_waits_for_the_switch_if_all_agents_receive_the_same_reward(team_reward, switch_step, two_phase):
    spec = replace(make_diary(N).spec, team_reward=team_reward)
    sharing = make_sharing(spec, small_config(sharing="lorasa_joint", switch_step=switch_step))
    assert (sharing.two_phase, sharing.frozen) == (two_phase, False)


@pytest.mark.parametrize(("team_reward", "auto"), [(True, 1 / N), (False, 1.0)])
def test_the_rate_of_owners_begins_lower_and_follows_play_where_all_are_paid_the_same(team_reward, auto):
    spec = replace(make_diary(N).spec, team_reward=team_reward)
    config = small_config(sharing="lorasa_joint", levels=("team@auto", "agent@auto"))
    levels = make_sharing(spec, config).levels
    assert [(level.factor, level.paced) for level in levels] == [(1.0, False), (auto, team_reward)]
    given = make_sharing(spec, replace(config, levels=("agent@0.3",)))
    assert [(level.factor, level.paced) for level in given.levels] == [(0.3, False)] and not given.paced


@pytest.mark.parametrize(
    ("levels", "scheme"),
    [
        (("unit_type@auto",), "lorasa_joint"),  # owners change
        (("unit_type@auto", "agent@auto"), "lorasa_joint"),  # so no agent has weights of its own
        (("team@auto",), "lorasa_joint"),  # one owner
    ],
)
def test_no_rate_follows_play_where_own_and_pooled_weights_cannot_be_told_apart(levels, scheme):
    spec = replace(make_diary(N).spec, roles=None, n_roles=2)
    assert not make_sharing(spec, small_config(sharing=scheme, levels=levels)).paced


@pytest.mark.parametrize(("groups", "paced"), [((0, 1, 2), False), ((0, 1, 1), True)])
def test_the_rate_follows_play_where_agents_of_a_trunk_differ(groups, paced):
    config = small_config(sharing="seps_lora", levels=("agent@auto",), groups=groups)
    assert make_sharing(make_diary(N).spec, config).paced == paced


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"sharing": "lorasa"}, 1.0),
        ({"sharing": "lorasa", "freeze_trunk": False}, 1 / N),
        ({"sharing": "lorasa_joint"}, 1 / N),
        ({"sharing": "lorasa_joint", "levels": ("agent@1",)}, 1.0),
    ],
)
def test_without_a_factor_adapters_have_the_papers_rate_on_a_frozen_trunk_and_auto_beside_a_free_one(settings, factor):
    sharing = make_sharing(make_diary(N).spec, small_config(**settings))
    assert [level.factor for level in sharing.levels] == [pytest.approx(factor)]


@pytest.mark.parametrize(("scope", "values", "agent_id"), [("team", 1, False), ("agent", N, True), ("own", N, True)])
def test_the_critic_is_one_network(scope, values, agent_id):
    sharing = critic_sharing(scope, N)
    assert (sharing.n_agents, sharing.n_trunks, sharing.agent_id) == (values, 1, agent_id)


@pytest.mark.parametrize("scope", ["agent", "own"])
def test_separate_critics_are_a_network_per_agent(scope):
    sharing = critic_sharing(scope, N, separate=True)
    assert (sharing.n_agents, sharing.n_trunks, sharing.agent_id) == (N, N, False)


def test_count_is_of_scalars_in_arrays_and_in_shapes():
    tree = {"a": jnp.zeros((2, 3)), "b": [jnp.zeros(()), jax.ShapeDtypeStruct((4,), float)]}
    assert count(tree) == 11
    assert count({}) == 0
