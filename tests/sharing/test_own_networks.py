"""Schemes on networks that the library does not contain: each agent's column is its own network, alone."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, TRIO, assert_close, assert_same, random_like, row_of, small_config
from own_networks import OWN, Perceptron

from lorasa_jax.config import ConfigError
from lorasa_jax.core.own_network import OwnNetwork, with_networks
from lorasa_jax.core.trees import by_path
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.sharing import variants
from lorasa_jax.sharing.policy import make_policy
from lorasa_jax.sharing.schemes import SCHEMES, acting, make_sharing
from lorasa_jax.sharing.variants import Layers, low_rank

T, E, N, D, OUT, K = 3, 2, 3, 5, 2, 2
CONFIG = small_config(
    recurrent=True, groups=TRIO, actor={"hidden": 4, "module": "any"}
)  # so that all layers are adapted
# Every scheme on one network, and those that differ most on the others.
PAIRS = [(scheme, "conv") for scheme in SCHEMES] + [
    (scheme, name) for scheme in ("ps_id", "lorasa", "mtl", "seps_lora") for name in ("gru", "nnx")
]
every_network = pytest.mark.parametrize("name", OWN)


def network_of(name: str, log_std: float | None = None) -> OwnNetwork:
    return OwnNetwork(OWN[name], CONFIG.actor, OUT, log_std)


def inputs_for(width: int) -> tuple:
    rng = np.random.default_rng(3)
    carry, obs = rng.normal(size=(E, N, width)), rng.normal(size=(T, E, N, D))
    return jnp.asarray(carry, jnp.float32), jnp.asarray(obs, jnp.float32), jnp.asarray(rng.random((T, E)) < 0.3)


@pytest.mark.parametrize(("scheme", "name"), PAIRS)
def test_each_agent_is_its_own_network_alone(scheme, name):
    policy = make_policy(SCHEMES[scheme](N, CONFIG), network_of(name), D)
    params = random_like(jax.eval_shape(policy.init, KEY))
    carry, obs, first = inputs_for(policy.initial_carry(1).shape[-1])
    carries, outputs = jax.jit(policy.unroll)(params, carry, obs, first)
    sees_id = policy.sharing.agent_id and name != "conv"  # which is told the index instead
    alone = replace(network_of(name), width=D, n_ids=N if sees_id else 0)
    for i, home in enumerate(policy.sharing.groups):
        trunk, own = row_of(params.shared, home), {}
        if params.agents:
            own = row_of(params.agents, i)
        weights = variants.merge(policy.sharing.adapters, trunk, own)
        expected = alone.unroll(weights, (), None, jnp.int32(i), carry[:, i], obs[:, :, i], first)
        assert_close((carries[:, :, i], outputs[:, :, i]), expected)


@pytest.mark.parametrize(("scheme", "name"), [pair for pair in PAIRS if pair[0] not in ("ps", "nps", "seps")])
def test_acting_weights_play_as_the_policy_they_come_from(scheme, name):
    sharing = SCHEMES[scheme](N, CONFIG)
    policy = make_policy(sharing, network_of(name), D)
    plays = make_policy(acting(sharing), network_of(name), D)
    params = random_like(jax.eval_shape(policy.init, KEY))
    inputs = inputs_for(policy.initial_carry(1).shape[-1])
    weights = policy.acting_params(params)
    assert_close(plays.unroll(weights, *inputs), policy.unroll(params, *inputs))
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, jax.eval_shape(plays.init, KEY))


@every_network
def test_fresh_adapters_change_nothing_and_only_their_first_factors_have_a_gradient(name):
    policy = make_policy(SCHEMES["lorasa"](N, CONFIG), network_of(name, log_std=1.0), D)
    params = policy.init(KEY)
    inputs = inputs_for(policy.initial_carry(1).shape[-1])
    plain = policy.merge(params)
    trunk = row_of(params.shared, 0)
    for i in range(N):
        assert_same(row_of(plain.shared, i), trunk)
    grads = jax.grad(lambda agents: (policy.unroll(params._replace(agents=agents), *inputs)[1] ** 2).sum())(
        params.agents
    )
    moved = {path: bool(jnp.any(leaf != 0)) for path, leaf in by_path(grads["agent"]).items()}
    assert all(moved[path] for path in moved if not path.endswith("right"))
    assert not any(moved[path] for path in moved if path.endswith("right"))
    assert {path.split("/")[0] for path in moved} >= {"head", "log_std"}


@every_network
@pytest.mark.parametrize("levels", [("unit_type",), ("unit_type", "agent")])
def test_where_roles_change_every_step_is_its_roles_at_that_moment(name, levels):
    config = replace(CONFIG, sharing="lorasa", groups=None, levels=levels, rank=1)
    sharing = make_sharing(EnvSpec("game", N, D, D, OUT, 1, True, n_roles=K), config)
    policy = make_policy(sharing, network_of(name, log_std=1.0), D)
    params = random_like(jax.eval_shape(policy.init, KEY))
    carry, obs, first = inputs_for(policy.initial_carry(1).shape[-1])
    owner = np.random.default_rng(5).integers(0, K, (T, E, N))
    carries, outputs = jax.jit(policy.unroll)(params, carry, obs, first, owner=owner)
    alone = replace(network_of(name, log_std=1.0), width=D, n_ids=0 if name == "conv" else N)
    play = jax.jit(lambda weights, i, *inputs: alone.unroll(weights, (), None, i, *inputs))
    for i in range(N):
        now = carry[:, i]
        for step in range(T):
            found = jnp.zeros_like(now), jnp.zeros((E, 2 * OUT))
            for k in range(K):
                own = {level: row_of(params.agents[level], i if level == "agent" else k) for level in levels}
                weights = variants.merge(sharing.all_adapters, row_of(params.shared, 0), own)
                new = play(weights, jnp.int32(i), now, obs[step : step + 1, :, i], first[step : step + 1])
                pairs = zip(new, found, strict=True)
                found = tuple(jnp.where(owner[step, :, i, None] == k, leaf[0], other) for leaf, other in pairs)
            assert_close((carries[step, :, i], outputs[step, :, i]), found)
            now = found[0]


def test_adapters_fit_kernels_of_any_shape():
    trunk = replace(network_of("conv"), width=D).init_params(KEY, D)
    adapter = low_rank(1, 1.0, Layers(("attention/*",)))
    own = adapter.init(KEY, trunk)
    assert set(own["attention"]) == {"query", "key", "value", "out"}
    assert_same(adapter.merge(trunk, own), trunk)
    own = random_like(own)
    left, right = own["attention"]["query"]["left"], own["attention"]["query"]["right"]
    kernel = trunk["attention"]["query"]["kernel"]
    expected = kernel + (left @ right).reshape(kernel.shape)
    assert_close(adapter.merge(trunk, own)["attention"]["query"]["kernel"], expected)


ENV = make_toy("own_number", N)


class Pair(nn.Module):
    """Returns states and outputs, and does not say how wide its states are."""

    @nn.compact
    def __call__(self, obs):
        return obs, nn.Dense(OUT)(obs)


def not_flax(n_in, n_out, config):
    return object()


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (lambda n_in, n_out, config: OWN["conv"](n_in, 9, config), {}, "the network ConvAttention returns outputs ["),
        (OWN["gru"], {}, "the network DenseGRUDense is recurrent (carry_width 8); set actor.recurrent to True"),
        (OWN["gru"](1, 1, CONFIG.actor).__class__, {}, "actor=DenseGRUDense is a class; give a linen module"),
        (3, {}, "actor must be a network, got int; give a linen module"),
        (lambda n_in, n_out, config: Pair(), {}, "the network Pair must return an array, got tuple; a"),
        (not_flax, {}, "the network python:not_flax must be a flax.linen module or a function of nnx.Rngs"),
        (OWN["conv"], {"placement": ("conv", "fc1")}, "placement 'fc1' names no layer of the network python:conv_att"),
        (OWN["conv"], {"levels": ("agent:2/conv+haed",)}, "placement 'haed' names no layer of the network python"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_fit_is_refused_in_one_line(network, changes, message):
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(make_trainer_of(network, changes).init, KEY)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_function_of_rngs_is_an_nnx_network():
    config = with_networks(small_config(sharing="lorasa"), lambda rngs: Perceptron(ENV.spec.obs_dim + N, 3, rngs))
    shapes = jax.eval_shape(make_trainer(config, ENV, adapting=True).init, KEY)
    assert {"inner", "head"} <= set(shapes.learner.actor.shared)


def make_trainer_of(network, changes):
    config = with_networks(small_config(sharing="lorasa"), network, **changes)
    return make_trainer(config, ENV, adapting=True)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("nowhere:make", "the network nowhere:make cannot be imported: No module named 'nowhere'"),
        ("own_networks:nothing", "the network own_networks:nothing cannot be imported: "),
        (
            "own_networks:ConvAttention",
            "the network own_networks:ConvAttention is a class; name a function of",
        ),
        ("os:system", "the network os:system must be a function of (n_in, n_out, config)"),
        ("conv_atention", "unknown network 'conv_atention'"),
        ("python:Gone", "the network Gone was handed in from Python; hand it in again"),
    ],
)
def test_a_network_that_is_not_there_is_named(module, message):
    config = small_config(actor={"module": module})
    with pytest.raises(ConfigError) as error:
        make_trainer(config, ENV)
    assert str(error.value).startswith(message)


def test_a_network_is_found_by_its_place():
    config = small_config(sharing="lorasa", actor={"module": "own_networks:conv_attention"})
    shapes = jax.eval_shape(make_trainer(config, ENV, adapting=True).init, KEY)
    assert {"conv", "attention", "who", "head"} <= set(shapes.learner.actor.shared)


def test_every_layer_that_agents_own_must_be_used():
    class Unused(nn.Module):
        @nn.compact
        def __call__(self, obs):
            nn.Dense(3, name="idle")(obs)
            return nn.Dense(OUT, name="head")(obs)

    network = OwnNetwork(lambda *_: Unused(), CONFIG.actor, OUT)
    with pytest.raises(ConfigError, match="the network Unused does not use agents/agent/idle/left, which agents own"):
        make_policy(SCHEMES["lorasa"](N, replace(CONFIG, rank=1)), network, D)
    make_policy(SCHEMES["lorasa"](N, replace(CONFIG, rank=1, placement=("head",))), network, D)
