"""Every agent's column is its own network alone; agents and environments never mix."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, TRIO, assert_close, assert_same, differs, every_scheme, random_params, row_of, small_config

from lorasa_jax import deltas
from lorasa_jax.core.networks import Network
from lorasa_jax.core.trees import by_path
from lorasa_jax.core.types import PolicyParams
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.sharing import variants
from lorasa_jax.sharing.policy import make_policy
from lorasa_jax.sharing.schemes import SCHEMES, acting, independent, make_sharing, trunks_only

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
def network_alone(n_ids: int):
    return jax.jit(NETWORK.clone(n_ids=n_ids).apply)


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
        trunk, own = row_of(t.params.shared, group), row_of(t.policy.expand(t.params), i)
        weights = variants.merge(sharing.adapters, trunk, own)
        alone = network_alone(N * sharing.agent_id)({"params": weights}, carry[:, i], obs[:, :, i], first, i)
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
@pytest.mark.parametrize("block", [None, (2, 0)])
def test_what_all_agents_observe_may_be_given_once(scheme, block):
    t, (carry, obs, first) = team(scheme), team(scheme).inputs
    members = block if block is None else jnp.array(block)
    carry, common = carry if block is None else carry[:, members], obs[:, :, :1]
    repeated = jnp.broadcast_to(common, (T, E, carry.shape[1], D))
    assert_close(t.unroll(t.params, carry, common, first, members), t.unroll(t.params, carry, repeated, first, members))


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
    for scheme_of, weights in ((acting, t.policy.acting_params), (independent, t.policy.merge)):
        if not t.params.agents and scheme_of is independent:
            continue  # there is nothing to merge
        policy, params = make_policy(scheme_of(t.policy.sharing), NETWORK, D), weights(t.params)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(policy.init, KEY))
        assert_close(jax.jit(policy.unroll)(params, *t.inputs), t.outputs)


@every_scheme
def test_agents_that_act_have_only_what_their_adapters_change(scheme):
    t = team(scheme)
    params = t.policy.acting_params(t.params)
    changed = set(by_path(params.agents.get("agent", {})))
    kernels = {f"{name}/kernel" for name in CONFIG.actor.layer_names}
    expected = {"mtl": {"head/kernel", "head/bias"}}.get(scheme, kernels) if t.params.agents else set()
    assert changed == expected
    assert changed.isdisjoint(by_path(params.shared))


def test_attached_adapters_change_nothing():
    t = team("lorasa")
    shared = make_policy(trunks_only(t.policy.sharing), NETWORK, D)
    attached = jax.jit(t.policy.init_adapters)(KEY, t.params._replace(agents={}))
    assert_same(attached.shared, t.params.shared)
    assert_close(t.unroll(attached, *t.inputs), jax.jit(shared.unroll)(t.params._replace(agents={}), *t.inputs), 1e-6)
    other = jax.jit(t.policy.init_adapters)(jax.random.key(1), t.params)
    assert any(differs(attached.agents, other.agents))


def test_separate_networks_start_apart():
    kernels = jax.jit(team("nps").policy.init)(KEY).shared["fc1"]["kernel"]
    assert len(np.unique(kernels)) == kernels.size


# ---------------------------------------------------------------- owners that are not the agents

K = 4
SCALE = {1: 1.0, 2: 0.5}  # alpha / rank
WIDE = Network(CONFIG.actor, OUT, head_gain=0.01, log_std=-0.5)  # full-rank: the head at rank 2, the deviation
OWNERS = np.random.default_rng(4).integers(0, K - 1, (T, E, N))
both_keys = pytest.mark.parametrize("key", ["unit_type", "unit_type,agent"])


@cache
def keyed(key: str, changing: bool = False) -> SimpleNamespace:
    """A team whose adapters belong to roles: of fixed ones the last two agents share one; of others there are four."""
    ranks = (2, 1) if "," in key else (2,)
    levels = tuple(f"{scope}:{rank}" for scope, rank in zip(key.split(","), ranks, strict=True))
    config = replace(CONFIG, sharing="lorasa", groups=None, levels=levels, alpha=1.0)
    roles = {"n_roles": K} if changing else {"roles": (0, 1, 1)}
    policy = make_policy(make_sharing(EnvSpec("game", N, D, D, OUT, 1, True, **roles), config), WIDE, D)
    params, inputs = random_params(policy), team("lorasa").inputs
    # What is compiled for changing owners takes them last.
    unroll = jax.jit(lambda *args: policy.unroll(*args[:4], owner=args[4] if changing else None))
    outputs = unroll(params, *inputs, OWNERS)
    levels = {name: params.agents[name] for name in policy.sharing.stacks}
    return SimpleNamespace(
        policy=policy, params=params, levels=levels, ranks=ranks, unroll=unroll, inputs=inputs, outputs=outputs
    )


def weights_of(t: SimpleNamespace, owners: tuple[int, ...]) -> dict:
    """A trunk with the corrections of an owner at each level added up, product by product."""
    weights = jax.tree.map(np.array, row_of(t.params.shared, 0))
    for stack, k, rank in zip(t.levels.values(), owners, t.ranks, strict=True):
        for layer, parts in jax.tree.map(np.asarray, row_of(stack, k)).items():
            added = parts["full"] if "full" in parts else SCALE[rank] * parts["left"] @ parts["right"]
            kernel = weights[layer]["kernel"]
            kernel += added
    return weights


@cache
def wide_alone():
    return jax.jit(WIDE.clone(n_ids=N).apply)


@both_keys
def test_an_agent_is_its_trunk_with_what_its_role_and_it_itself_own(key):
    t, (carry, obs, first) = keyed(key), keyed(key).inputs
    assert {name: {len(x) for x in jax.tree.leaves(stack)} for name, stack in t.levels.items()} == (
        {"unit_type": {2}} if key == "unit_type" else {"unit_type": {2}, "agent": {N}}
    )
    for i, role in enumerate((0, 1, 1)):
        weights = weights_of(t, (role, i)[: len(t.ranks)])
        alone = wide_alone()({"params": weights}, carry[:, i], obs[:, :, i], first, i)
        assert_close([leaf[:, :, i] for leaf in t.outputs], list(alone))


@both_keys
def test_where_owners_change_every_step_is_its_owners_at_that_moment(key):
    t, (carry, obs, first) = keyed(key, changing=True), keyed(key, changing=True).inputs
    for i in range(N):
        now = np.asarray(carry[:, i])
        for step in range(T):
            seen = obs[step : step + 1, :, i]
            found = np.zeros((E, HIDDEN)), np.zeros((E, 2 * OUT))
            for k in range(K):
                weights = weights_of(t, (k, i)[: len(t.ranks)])
                pair = wide_alone()({"params": weights}, now, seen, first[step : step + 1], i)
                found = [np.where(OWNERS[step, :, i, None] == k, x[0], y) for x, y in zip(pair, found, strict=True)]
            assert_close([leaf[step, :, i] for leaf in t.outputs], found, atol=3e-5)
            now = found[0].astype(np.float32)


def test_a_role_for_every_agent_is_adapters_of_their_own():
    """By either way of applying them: gathered by agent, or chosen sample by sample."""
    spec, config = EnvSpec("game", N, D, D, OUT, 1, True), replace(CONFIG, sharing="lorasa", groups=None)
    policies = [
        make_policy(make_sharing(replace(spec, **roles), replace(config, levels=(key,))), NETWORK, D)
        for key, roles in (("agent", {}), ("unit_type", {"roles": (0, 1, 2)}), ("unit_type", {"n_roles": N}))
    ]
    params = team("lorasa").params
    started = [jax.jit(policy.init_adapters)(KEY, params) for policy in policies]
    own = [next(iter(params.agents.values())) for params in started]
    assert_same(own[1], own[0])
    assert_same(own[2], started[0].agents["agent"])
    t, everyone = team("lorasa"), np.broadcast_to(np.arange(N), (T, E, N))
    for policy, agents in zip(policies[1:], (t.params.agents, t.params.agents), strict=True):
        params = t.params._replace(agents={"unit_type": agents["agent"]})
        assert_close(jax.jit(policy.unroll)(params, *t.inputs, owner=everyone), t.outputs, atol=2e-6)


def test_fresh_adapters_of_roles_and_agents_are_the_identity():
    fixed, changing = keyed("unit_type,agent"), keyed("unit_type,agent", changing=True)
    shared = make_policy(trunks_only(fixed.policy.sharing), WIDE, D)
    expected = jax.jit(shared.unroll)(PolicyParams(fixed.params.shared, {}), *fixed.inputs)
    for t in (fixed, changing):
        fresh = jax.jit(t.policy.init_adapters)(KEY, t.params._replace(shared=fixed.params.shared))
        assert_close(t.unroll(fresh, *t.inputs, OWNERS), expected)


def test_merged_weights_of_roles_and_agents_play_like_the_factored_team():
    t = keyed("unit_type,agent")
    plays = make_policy(acting(t.policy.sharing), WIDE, D)
    assert_close(jax.jit(plays.unroll)(t.policy.acting_params(t.params), *t.inputs), t.outputs, atol=2e-5)


def derivatives(frozen: bool, small: bool):
    """Outputs, and the derivatives by all parameters, with a trunk that is frozen or not; and the program."""
    t = team("lorasa")
    policy = make_policy(replace(t.policy.sharing, frozen=frozen), NETWORK, D)
    carry, obs, first = t.inputs
    inputs = (carry[:1], obs[:1, :1], first[:1, :1]) if small else t.inputs

    def outputs(params: PolicyParams):
        found = policy.unroll(params, *inputs)[1]
        return jnp.sum(jnp.sin(found)), found

    differentiated = jax.value_and_grad(outputs, has_aux=True)
    return jax.jit(differentiated)(t.params), re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(differentiated)(t.params)))


@pytest.mark.parametrize("small", [False, True], ids=["many samples", "one sample"])
def test_a_trunk_that_is_trained_gets_its_adapters_added_to_its_weights_if_that_is_cheaper(small):
    """What is computed is the same. On a frozen trunk, the products are cheaper."""
    (merged, program), (factored, other) = (derivatives(frozen, small) for frozen in (False, True))
    assert (program == other) == small
    assert_close(merged, factored, atol=2e-5)


def test_the_cheaper_way_is_known_from_the_number_of_samples():
    """For a kernel (n, m) with n = m, the sum is cheaper from n / 2 samples on."""
    shapes = {"left": jnp.zeros((64, 8)), "right": jnp.zeros((8, 64))}
    own = (deltas.Deltas({"fc": shapes}, deltas.Spec(())),)
    assert [variants.is_cheaper_merged(own, samples) for samples in (1, 32, 33)] == [False, False, True]
