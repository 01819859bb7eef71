"""A fresh adapter is the identity, both forms agree, and only the input side learns at first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_close, assert_same, random_like

from lorasa_jax.adapters import generated, low_rank, masked, own_layers
from lorasa_jax.config import PLACEMENTS, Config, NetworkConfig
from lorasa_jax.core.networks import Network, adapted
from lorasa_jax.sharing.schemes import count

NETWORK = NetworkConfig(hidden=6, layers=2)
LENGTH, BATCH, WIDTH, OUT = 5, 3, 4, 3
MODEL = Network(NETWORK, OUT, head_gain=0.01)

# Full rank begins at 3 for the head, at 4 for the first layer, and at 6 for the others.
RANKS = (1, 2, 3, 4, 6, 64)
SOME = [(rank, "all") for rank in RANKS] + [
    (2, place) for place in ("early", "recurrent", "late", "head", "gru_hidden")
]

some = pytest.mark.parametrize(("rank", "place"), SOME)


def layers(place: str) -> tuple[str, ...]:
    return Config(actor=NETWORK, placement=(place,)).adapted_layers


def make(rank: int, place: str, scale: float = 1.0):
    return low_rank(rank, scale, layers(place))


@pytest.fixture(scope="module")
def trunk():
    carry, x, first = inputs()
    return random_like(jax.eval_shape(MODEL.init, KEY, carry, x, first)["params"])


@pytest.fixture(scope="module")
def apply():
    """The outputs of a network given its variables, for sequences with episodes that open on the way."""
    return jax.jit(lambda variables: MODEL.apply(variables, *inputs()))


def factored(adapter, trunk, own):
    """The variables of the network, with low-rank products still to be added within its layers."""
    return adapted(*adapter.apply(trunk, own))


def inputs():
    rng = np.random.default_rng(2)
    carry, x = rng.normal(size=(BATCH, NETWORK.hidden)), rng.normal(size=(LENGTH, BATCH, WIDTH))
    first = rng.random((LENGTH, BATCH)) < 0.3
    return jnp.asarray(carry, jnp.float32), jnp.asarray(x, jnp.float32), jnp.asarray(first)


@some
def test_fresh_adapter_is_the_identity(trunk, apply, rank, place):
    adapter = make(rank, place)
    own = jax.jit(adapter.init)(KEY, trunk)
    assert_same(adapter.merge(trunk, own), trunk)
    # What is added is exactly zero; where, the compiler may round otherwise.
    assert_close(apply(factored(adapter, trunk, own)), apply({"params": trunk}), atol=1e-6)


@some
def test_merged_equals_factored(trunk, apply, rank, place):
    adapter = make(rank, place, scale=0.7)
    own = random_like(jax.eval_shape(adapter.init, KEY, trunk), seed=1)
    products, merged = apply(factored(adapter, trunk, own)), apply({"params": adapter.merge(trunk, own)})
    assert_close(products, merged, atol=2e-5)
    assert not np.allclose(products[1], apply({"params": trunk})[1], atol=1e-2)


@pytest.mark.parametrize("place", [*PLACEMENTS, *NETWORK.layer_names])
@pytest.mark.parametrize("rank", RANKS)
def test_adapters_stand_on_the_placement_and_are_never_larger_than_the_kernel(trunk, rank, place):
    own = jax.eval_shape(make(rank, place).init, KEY, trunk)
    assert set(own) == set(layers(place))
    for name, parts in own.items():
        n_in, n_out = trunk[name]["kernel"].shape
        low = rank < min(n_in, n_out)
        assert set(parts) == ({"left", "right"} if low else {"full"})
        assert count(parts) == (rank * (n_in + n_out) if low else n_in * n_out)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_merged_kernels_differ_by_the_scaled_product_and_by_nothing_else(trunk, scale):
    adapter = make(3, "all", scale)  # the head is full-rank
    own = random_like(jax.eval_shape(adapter.init, KEY, trunk), seed=1)
    merged = adapter.merge(trunk, own)
    for name, leaves in trunk.items():
        if name in own:
            parts = jax.tree.map(np.asarray, own[name])
            delta = parts["full"] if name == "head" else scale * parts["left"] @ parts["right"]
            assert_close(merged[name]["kernel"], leaves["kernel"] + delta)
        rest = {leaf for leaf in leaves if leaf != "kernel" or name not in own}
        assert_same({leaf: merged[name][leaf] for leaf in rest}, {leaf: leaves[leaf] for leaf in rest})


def test_only_the_input_side_has_a_gradient_at_the_start(trunk):
    adapter = make(3, "all")
    own = adapter.init(KEY, trunk)
    carry, x, first = inputs()

    @jax.jit
    @jax.grad
    def gradient(own):
        carries, out = MODEL.apply(factored(adapter, trunk, own), carry, x, first)
        return jnp.sum(jnp.sin(out)) + jnp.sum(carries)

    for name, parts in gradient(own).items():
        for part, grad in parts.items():
            assert np.any(grad) == (part != "right"), (name, part)


def test_output_sides_start_within_their_bound_and_apart(trunk):
    rank = 3
    own = jax.vmap(make(rank, "all").init, (0, None))(jax.random.split(KEY, 2), trunk)
    rights = {name: np.asarray(parts["right"]) for name, parts in own.items() if "right" in parts}
    values = np.concatenate([right.ravel() for right in rights.values()])
    bound = 1 / np.sqrt(rank)
    assert 0.9 * bound < np.abs(values).max() <= bound
    assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert len(np.unique(values)) > 0.99 * len(values)  # no key serves two layers or two agents


def test_a_generator_makes_an_agents_correction_from_its_embedding(trunk, apply):
    adapter = generated(3, ("fc1", "head"))
    shared = adapter.init_shared(trunk)
    assert shared["fc1"]["generator"].shape == (3, *trunk["fc1"]["kernel"].shape)
    own = adapter.init(KEY, trunk)
    assert_same(adapter.merge(shared, own), trunk)
    assert_same(apply(factored(adapter, shared, own)), apply({"params": trunk}))
    shared = random_like(shared, seed=1)
    merged = adapter.merge(shared, own)
    for name in shared:
        expected = shared[name]
        if name in ("fc1", "head"):
            parts = [np.asarray(e) * g for e, g in zip(own["embedding"], shared[name]["generator"], strict=True)]
            expected = {"kernel": shared[name]["kernel"] + sum(parts), "bias": shared[name]["bias"]}
        assert_close(merged[name], expected)


def test_a_mask_leaves_out_what_is_below_its_agents_thresholds_and_lets_it_come_back(trunk, apply):
    adapter = masked(("fc1", "head"))
    own = adapter.init(KEY, trunk)
    assert_same(adapter.merge(trunk, own), trunk)
    # What is added is exactly zero; where, the compiler may round otherwise.
    assert_close(apply(factored(adapter, trunk, own)), apply({"params": trunk}), atol=1e-6)
    own = random_like(own, seed=1)
    merged = adapter.merge(trunk, own)
    for name in trunk:
        kernel = np.asarray(trunk[name].get("kernel", 0.0))
        kept = np.abs(kernel) > np.asarray(own[name]["threshold"]) if name in own else True
        assert_close(merged[name], {**trunk[name], **({"kernel": kernel * kept} if "kernel" in trunk[name] else {})})
    push = random_like(trunk, seed=2)
    back = jax.vjp(adapter.merge, trunk, own)[1](push)
    for name in own:
        kernel, arrives = trunk[name]["kernel"], push[name]["kernel"]
        assert_close(back[0][name]["kernel"], np.where(np.abs(kernel) > own[name]["threshold"], arrives, 0.0))
        assert_close(back[1][name]["threshold"], -kernel * arrives)


def test_own_layers_stand_in_place_of_the_trunks(trunk, apply):
    adapter = own_layers(("head", "log_std"))
    own = adapter.init(KEY, trunk)
    rest = adapter.init_shared(trunk)
    assert set(own) == {"head"} and set(rest) | {"head"} == set(trunk) and "head" not in rest
    assert_same(apply(factored(adapter, rest, own)), apply({"params": trunk}))
    other = random_like(own, seed=3)
    assert_same(adapter.merge(rest, other), {**trunk, **other})
    assert_same(apply(factored(adapter, rest, other)), apply({"params": {**trunk, **other}}))


def test_a_vector_gets_a_vector_of_its_own():
    adapter, trunk = low_rank(2, 0.5, ("log_std",)), {"log_std": {"kernel": jnp.ones(3)}}
    own = adapter.init(KEY, trunk)
    assert_same(own, {"log_std": {"full": jnp.zeros(3)}})
    moved = adapter.merge(trunk, {"log_std": {"full": jnp.arange(3.0)}})
    assert_same(moved, {"log_std": {"kernel": 1 + jnp.arange(3.0)}})
