"""The network is its equations, step by step, and an episode never hears of the one before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import KEY, assert_close, random_like

from lorasa_jax.config import NetworkConfig
from lorasa_jax.core.networks import Network, affine, gru, gru_step, linear

LENGTH, BATCH, WIDTH, HIDDEN, OUT = 7, 3, 5, 4, 2

SHAPES = {
    "recurrent": {},
    "feed-forward": {"recurrent": False},
    "bare": {"layer_norm": False, "input_norm": False},
    "tanh": {"activation": "tanh", "layers_after": 0},
    "only recurrent": {"layers": 0, "layers_after": 0, "input_norm": False},
}


def make_network(**changes) -> Network:
    return Network(NetworkConfig(**{"hidden": HIDDEN, "layers": 2, **changes}), OUT, head_gain=0.01)


def init(network: Network, key=KEY):
    carry, x = jnp.zeros((BATCH, network.carry_width)), jnp.zeros((LENGTH, BATCH, WIDTH))
    return network.init(key, carry, x, jnp.zeros((LENGTH, BATCH), bool))


def random_inputs(network: Network, seed: int = 1):
    rng = np.random.default_rng(seed)
    carry = rng.normal(size=(BATCH, network.carry_width)).astype(np.float32)
    x = rng.normal(size=(LENGTH, BATCH, WIDTH)).astype(np.float32)
    return carry, x, rng.random((LENGTH, BATCH)) < 0.3


@pytest.fixture(scope="module")
def recurrent():
    """A recurrent network, its compiled application, and parameters far from the start."""
    network = make_network()
    return network, jax.jit(network.apply), random_like(jax.eval_shape(lambda: init(network)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def in_numpy(config: NetworkConfig, p, carry, x, first):
    """The whole network, one sequence and one step at a time."""
    activation = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[config.activation]

    def linear(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def layer(name, x):
        x = activation(linear(name, x))
        return norm(p[f"{name}_norm"], x) if config.layer_norm else x

    carries, outputs = [], []
    for x_t, first_t in zip(x, first, strict=True):
        y = norm(p["input_norm"], x_t) if config.input_norm else x_t
        for i in range(config.layers):
            y = layer(f"fc{i + 1}", y)
        if config.recurrent:
            h = np.where(first_t[:, None], 0, carry)
            from_x, from_h = np.split(linear("gru_in", y), 3, -1), np.split(linear("gru_hidden", h), 3, -1)
            reset, keep = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
            carry = (1 - keep) * np.tanh(from_x[2] + reset * from_h[2]) + keep * h
            y = norm(p["gru_norm"], carry) if config.layer_norm else carry
        for i in range(config.layers_after):
            y = layer(f"after{i + 1}", y)
        carries.append(carry)
        outputs.append(linear("head", y))
    return np.stack(carries), np.stack(outputs)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_network_equals_its_equations(changes):
    network = make_network(**changes)
    variables = random_like(jax.eval_shape(lambda: init(network)))
    inputs = random_inputs(network)
    expected = in_numpy(network.config, jax.tree.map(np.asarray, variables["params"]), *inputs)
    assert_close(jax.jit(network.apply)(variables, *inputs), expected)


def test_gru_equals_flax_with_its_kernels_stacked():
    rng = np.random.default_rng(0)
    x, h = (jnp.asarray(rng.normal(size=(BATCH, width)), jnp.float32) for width in (WIDTH, HIDDEN))
    cell = nn.GRUCell(HIDDEN)
    cell_params = random_like(jax.eval_shape(cell.init, KEY, h, x))["params"]
    expected, _ = cell.apply({"params": cell_params}, h, x)

    def weights(names):
        layers = [cell_params[name] for name in names]
        biases = [layer.get("bias", jnp.zeros(HIDDEN)) for layer in layers]
        return {"kernel": jnp.concatenate([layer["kernel"] for layer in layers], 1), "bias": jnp.concatenate(biases)}

    gates_x = linear(weights(("ir", "iz", "in")), x, None)
    got, _ = gru_step(weights(("hr", "hz", "hn")), h, gates_x, jnp.zeros(BATCH, bool), None)
    assert_close(got, expected)


def test_derivatives_that_are_written_out_are_those_of_the_equations():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def same(written, plain, *inputs):
        cotangent = draw(*jax.eval_shape(plain, *inputs).shape)
        got, expected = (jax.vjp(f, *inputs)[1](cotangent) for f in (written, plain))
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert_close(ours, theirs)

    def plain_gru(weights, h, gates_x, first, owner):
        def step(h, inputs):
            h, _ = gru_step(weights, h, *inputs)
            return h, h

        return jax.lax.scan(step, h, (gates_x, first, owner))[1]

    gates = 3 * HIDDEN
    layer = {"kernel": draw(HIDDEN, gates), "bias": draw(gates)}
    ranked = {"left": draw(HIDDEN, 2), "right": draw(2, gates)}
    owned = {"lefts": draw(2, HIDDEN, 2), "rights": draw(2, 2, gates)}
    first = jnp.asarray(rng.random((LENGTH, BATCH)) < 0.3)
    owner = jax.nn.one_hot(rng.integers(2, size=(LENGTH, BATCH)), 2)
    for delta, whose in (({}, None), (ranked, None), (owned, owner)):
        written, plain = (lambda *inputs, f=f, whose=whose: f(*inputs, first, whose) for f in (gru, plain_gru))
        same(written, plain, {**layer, **delta}, draw(BATCH, HIDDEN), draw(LENGTH, BATCH, gates))

    def team(layer):  # weights that all agents share
        return jax.vmap(layer, in_axes=(0, None, None))

    weights = draw(WIDTH, HIDDEN), draw(HIDDEN)
    same(team(affine), team(lambda x, kernel, bias: x @ kernel + bias), draw(3, BATCH, WIDTH), *weights)


def test_first_step_of_an_episode_starts_anew(recurrent):
    network, apply, variables = recurrent
    carry, x, _ = random_inputs(network)
    opens = 3
    first = np.arange(LENGTH)[:, None] == np.full((1, BATCH), opens)
    carries, outputs = apply(variables, carry, x, first)
    # The episode alone, from zero; what is appended to fill the length comes later and cannot matter.
    alone = np.roll(x, -opens, axis=0)
    fresh = apply(variables, np.zeros_like(carry), alone, np.zeros_like(first))
    assert_close((carries[opens:], outputs[opens:]), jax.tree.map(lambda leaf: leaf[: LENGTH - opens], fresh))
    # Before it the carry does matter.
    assert not np.allclose(outputs[:opens], apply(variables, 0 * carry, x, first)[1][:opens])


@pytest.mark.parametrize("pieces", [(3, 4), (1,) * LENGTH], ids=["two", "single steps"])
def test_pieces_with_carried_states_equal_the_whole(recurrent, pieces):
    network, apply, variables = recurrent
    carry, x, first = random_inputs(network)
    carries, outputs = [], []
    for start, stop in zip(np.cumsum((0, *pieces)), np.cumsum(pieces), strict=False):
        piece, out = apply(variables, carry, x[start:stop], first[start:stop])
        carry = piece[-1]
        carries.append(piece)
        outputs.append(out)
    expected = apply(variables, random_inputs(network)[0], x, first)
    assert_close((np.concatenate(carries), np.concatenate(outputs)), expected)


def test_feed_forward_network_carries_nothing():
    network = make_network(recurrent=False)
    carry, x, first = random_inputs(network)
    carries, outputs = jax.eval_shape(network.apply, jax.eval_shape(lambda: init(network)), carry, x, first)
    assert (network.carry_width, carries.shape, outputs.shape) == (0, (LENGTH, BATCH, 0), (LENGTH, BATCH, OUT))


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_every_named_layer_has_one_kernel_and_nothing_else_has(changes):
    network = make_network(**changes)
    params = jax.eval_shape(lambda: init(network))["params"]
    kernels = {name: leaves["kernel"].shape for name, leaves in params.items() if "kernel" in leaves}
    assert set(kernels) == set(network.config.layer_names)
    assert all(leaves["bias"].ndim == 1 for leaves in params.values())
    gru = {name: shape for name, shape in kernels.items() if name.startswith("gru")}
    before = HIDDEN if network.config.layers else WIDTH
    expected = {"gru_in": (before, 3 * HIDDEN), "gru_hidden": (HIDDEN, 3 * HIDDEN)}
    assert gru == (expected if network.config.recurrent else {})


@pytest.mark.parametrize(("gru_init", "parts"), [("stacked", 1), ("gates", 3)])
def test_kernels_start_orthogonal_with_their_gains_and_biases_at_zero(gru_init, parts):
    """The GRU's as a whole, or gate by gate."""
    network = make_network(gain=1.5, gain_after=2.0, gru_init=gru_init)
    params = jax.jit(init, static_argnums=0)(network)["params"]
    gains = {"fc1": 1.5, "fc2": 1.5, "gru_in": 1.0, "gru_hidden": 1.0, "after1": 2.0, "head": 0.01}
    for name, gain in gains.items():
        kernel = np.asarray(params[name]["kernel"])
        for part in np.split(kernel, parts if name.startswith("gru") else 1, axis=1):
            np.testing.assert_allclose(np.linalg.svd(part, compute_uv=False), gain, rtol=1e-5, err_msg=name)
        assert not np.any(params[name]["bias"])
    ids = network.clone(n_ids=3).init_params(KEY, WIDTH)["id"]["embedding"]
    assert not np.any(ids)  # all agents begin with the same policy


@pytest.mark.parametrize("shape", ["bare", "only recurrent"])
def test_the_embedding_of_an_id_is_what_a_one_hot_id_does_without_a_norm_of_the_input(shape):
    n = 3
    network = make_network(**SHAPES[shape]).clone(n_ids=n)
    carry, x, first = map(jnp.asarray, random_inputs(network))
    params = random_like(jax.eval_shape(lambda: network.init_params(KEY, WIDTH)))
    layer = network.config.layer_names[0]
    embedding = params["id"]["embedding"]
    kernel = jnp.concatenate([params[layer]["kernel"], np.sqrt(embedding.shape[-1]) * embedding])
    wide = {name: leaves for name, leaves in params.items() if name != "id"}
    wide[layer] = {**params[layer], "kernel": kernel}
    for i in range(n):
        seen = jnp.concatenate([x, jnp.broadcast_to(jnp.eye(n)[i], (LENGTH, BATCH, n))], axis=-1)
        expected = network.clone(n_ids=0).apply({"params": wide}, carry, seen, first)
        assert_close(network.apply({"params": params}, carry, x, first, jnp.int32(i)), expected)
