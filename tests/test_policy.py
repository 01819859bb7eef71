"""Every agent's column is its own network alone; agents and environments never mix."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from helpers import KEY, TRIO, assert_close, assert_same, differs, every_scheme, random_params, row_of, small_config

from lorasa_jax.networks import Network
from lorasa_jax.policy import make_policy
from lorasa_jax.sharing import SCHEMES, merged, trunks_only

T, E, N, D, OUT = 5, 4, 3, 4, 2
CONFIG = small_config(recurrent=True, groups=TRIO)
HIDDEN = CONFIG.actor.hidden
NETWORK = Network(CONFIG.actor, OUT, head_gain=0.01)


@cache
def team(scheme: str) -> SimpleNamespace:
    """A team far from its start, its compiled unroll, and what it made of some inputs."""
    policy = make_policy(SCHEMES[scheme](N, CONFIG), NETWORK, D)
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(E, N, HIDDEN)), rng.normal(size=(T, E, N, D)), rng.random((T, E)) < 0.3
    inputs = *(jnp.asarray(x, jnp.float32) for x in inputs[:2]), jnp.asarray(inputs[2])
    params, unroll = random_params(policy), jax.jit(policy.unroll)
    return SimpleNamespace(policy=policy, params=params, unroll=unroll, inputs=inputs, outputs=unroll(params, *inputs))


@cache
def network_alone():
    return jax.jit(NETWORK.apply)


@every_scheme
def test_shapes(scheme):
    t = team(scheme)
    carries, outputs = t.outputs
    assert (carries.shape, outputs.shape) == ((T, E, N, HIDDEN), (T, E, N, OUT))
    sharing = t.policy.sharing
    assert {leaf.shape[0] for leaf in jax.tree.leaves(t.params.shared)} == {sharing.n_trunks}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(t.params.agents)} <= {N}
    start = t.policy.initial_carry(E)
    assert (start.shape, np.any(start)) == ((E, N, HIDDEN), False)


@every_scheme
def test_each_agent_is_its_own_network_alone(scheme):
    t, (carry, obs, first) = team(scheme), team(scheme).inputs
    sharing = t.policy.sharing
    for i, group in enumerate(sharing.groups):
        trunk, own = (row_of(tree, k) for tree, k in zip(t.params, (group, i), strict=True))
        ids = np.broadcast_to(np.eye(N, dtype=np.float32)[i], (T, E, N))
        seen = np.concatenate([obs[:, :, i], ids], axis=-1) if sharing.agent_id else obs[:, :, i]
        alone = network_alone()({"params": sharing.adapter.merge(trunk, own)}, carry[:, i], seen, first)
        assert_close([leaf[:, :, i] for leaf in t.outputs], list(alone))


@every_scheme
def test_a_block_equals_its_columns_of_the_team(scheme):
    t, (carry, obs, first) = team(scheme), team(scheme).inputs
    block = jnp.array([2, 0])
    expected = [leaf[:, :, block] for leaf in t.outputs]
    assert_close(list(t.unroll(t.params, carry[:, block], obs[:, :, block], first, block)), expected)


@every_scheme
def test_permuted_environments_give_permuted_outputs(scheme):
    t, (carry, obs, first) = team(scheme), team(scheme).inputs
    order = np.array([2, 0, 3, 1])
    expected = [leaf[:, order] for leaf in t.outputs]
    assert_close(list(t.unroll(t.params, carry[order], obs[:, order], first[:, order])), expected)


@every_scheme
def test_every_agent_may_have_its_environments_in_an_order_of_its_own(scheme):
    t, inputs = team(scheme), team(scheme).inputs
    carry, obs, first = *inputs[:2], jnp.broadcast_to(inputs[2][..., None], (T, E, N))

    def reorder(x, axis):
        return jnp.stack([jnp.roll(jnp.take(x, m, axis=axis + 1), m, axis=axis) for m in range(N)], axis=axis + 1)

    outputs = t.unroll(t.params, reorder(carry, 0), reorder(obs, 1), reorder(first, 1))
    assert_close(list(outputs), [reorder(leaf, 1) for leaf in t.outputs])


@every_scheme
def test_an_observation_changes_what_its_own_agent_does_from_then_on_and_nothing_else(scheme):
    t, (carry, obs, first) = team(scheme), team(scheme).inputs
    time, env, agent = 1, 2, 1
    _, changed = t.unroll(t.params, carry, obs.at[time, env, agent, 0].add(1.0), first & False)
    _, before = t.unroll(t.params, carry, obs, first & False)
    moved = np.abs(changed - before).max(axis=-1) > 1e-4
    expected = np.zeros_like(moved)
    expected[time:, env, agent] = True
    np.testing.assert_array_equal(moved, expected)


@every_scheme
def test_agents_who_see_the_same_differ_only_by_what_sets_them_apart(scheme):
    t, (carry, obs, first) = team(scheme), team(scheme).inputs
    same = [jnp.broadcast_to(x[..., :1, :], x.shape) for x in (carry, obs)]
    _, outputs = t.unroll(t.params, *same, first)
    sharing = t.policy.sharing
    apart = sharing.agent_id or sharing.n_trunks > 1 or bool(t.params.agents)
    assert apart == (scheme != "ps")
    assert np.allclose(outputs[:, :, 0], outputs[:, :, 1], atol=1e-5) == (not apart)


@every_scheme
def test_merged_weights_play_like_the_factored_team(scheme):
    t = team(scheme)
    acting = make_policy(merged(t.policy.sharing), NETWORK, D)
    full = t.policy.merge(t.params)
    assert jax.tree.map(jnp.shape, full) == jax.tree.map(jnp.shape, jax.eval_shape(acting.init, KEY))
    assert_close(jax.jit(acting.unroll)(full, *t.inputs), t.outputs)


def test_grafted_agents_equal_their_trunk():
    t = team("lorasa")
    shared = make_policy(trunks_only(t.policy.sharing), NETWORK, D)
    grafted = jax.jit(t.policy.graft)(KEY, t.params._replace(agents={}))
    assert_same(grafted.shared, t.params.shared)
    assert_close(t.unroll(grafted, *t.inputs), jax.jit(shared.unroll)(t.params._replace(agents={}), *t.inputs), 1e-6)
    other = jax.jit(t.policy.graft)(jax.random.key(1), t.params)
    assert any(differs(grafted.agents, other.agents))


def test_separate_networks_start_apart():
    kernels = jax.jit(team("nps").policy.init)(KEY).shared["fc1"]["kernel"]
    assert len(np.unique(kernels)) == kernels.size
