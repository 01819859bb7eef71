"""Deltas on any parameter tree: specs, identities, errors."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lorasa_jax import ConfigError, deltas

KEY = jax.random.key(0)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.tanh(nn.Dense(8)(nn.LayerNorm()(x))), None


class Stack(nn.Module):
    """Three blocks with stacked parameters, made by a lifted transformation."""

    lift: str
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        if self.lift == "vmap":
            block = nn.vmap(Block, in_axes=0, axis_size=3, **options)
            return block()(jnp.stack([x, 2 * x, 3 * x]))[0].sum(0)
        if self.lift == "jit":
            return nn.jit(Block)()(x)[0]
        inner = nn.remat(Block) if self.lift == "remat" else Block
        return nn.scan(inner, length=3, **options)()(x, None)[0]


class Doubled(nn.Dense):
    """A subclass that is no affine map of its kernel."""

    def __call__(self, x):
        return super().__call__(x) ** 2


class WeightNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(4))(x)


class Tied(nn.Module):
    """The kernel of a layer is read again by the module."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        hidden = nn.tanh(layer(x))
        return hidden @ layer.variables["params"]["kernel"].T


class Twice(nn.Module):
    """One layer that is called twice, and one that only another method calls."""

    def setup(self):
        self.body, self.head = nn.Dense(6), nn.Dense(3)

    def __call__(self, x):
        return self.head(self.encode(x))

    def encode(self, x):
        return nn.tanh(self.body(nn.tanh(self.body(x))))


X = jax.random.normal(jax.random.key(1), (5, 6))
SEQUENCE = jax.random.normal(jax.random.key(2), (2, 5, 8))
CASES = {
    "dense": (nn.Dense(9), X),
    "named_input": (nn.Sequential([nn.Dense(9), lambda x: nn.Dense(4)(inputs=x)]), X),
    "bfloat16": (nn.Dense(9, param_dtype=jnp.bfloat16), X.astype(jnp.bfloat16)),
    "dense_general": (nn.DenseGeneral((4, 5)), X),
    "another_view": (nn.DenseGeneral((4, 5)), X),
    "dense_general_axes": (nn.DenseGeneral((4, 3), axis=(1, -1)), jax.random.normal(KEY, (2, 6, 3, 5))),
    "dense_general_batch": (
        nn.DenseGeneral((6, 4), axis=(2, 3), batch_dims=(0,)),
        jax.random.normal(KEY, (3, 2, 4, 5)),
    ),
    "conv": (nn.Conv(4, (3, 3)), jax.random.normal(KEY, (2, 6, 6, 3))),
    "embed": (nn.Embed(7, 6), jnp.array([0, 3, 6])),
    "gru": (nn.GRUCell(8), jnp.zeros((5, 8)), X),
    "rnn": (nn.RNN(nn.GRUCell(6)), SEQUENCE),
    "lstm": (nn.RNN(nn.LSTMCell(6)), SEQUENCE),
    "optimized_lstm": (nn.RNN(nn.OptimizedLSTMCell(6)), SEQUENCE),
    "attention": (nn.MultiHeadDotProductAttention(num_heads=2), SEQUENCE),
    "scan": (Stack("scan"), SEQUENCE),
    "scan_of_remat": (Stack("remat"), SEQUENCE),
    "vmap": (Stack("vmap"), SEQUENCE),
    "jit": (Stack("jit"), SEQUENCE),
    "scan_along_another_axis": (Stack("scan", axis=1), SEQUENCE),
    "subclass": (Doubled(4), X),
    "weight_norm": (WeightNormed(), X),
    "tied": (Tied(), X),
    "twice": (Twice(), X),
}
MERGED = {
    "another_view",
    "conv",
    "embed",
    "optimized_lstm",
    "scan_along_another_axis",
    "subclass",
    "tied",
    "weight_norm",
}
VIEWS = {
    "another_view": {"*kernel": "ibo"},
    "dense_general_batch": {"*kernel": "biioo"},
    "scan_along_another_axis": {"*kernel": "ibo"},
}


def noisy(tree, seed=0):
    """Random leaves of these shapes, from numpy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) / 4).astype(leaf.dtype), tree)


def made(name, target="*", n=2, **options):
    """A module, its arguments, parameters and the deltas of n owners, none of them zero."""
    module, *args = CASES[name]
    variables = noisy(jax.eval_shape(module.init, KEY, *args))
    spec = deltas.make_spec(variables, target, rank=2, alpha=3.0, views=VIEWS.get(name), **options)
    return module, args, variables, noisy(jax.eval_shape(lambda: deltas.init(KEY, spec, n)), seed=1)


def assert_close(a, b, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), tolerance, tolerance)


@pytest.mark.parametrize("name", ["attention", "scan"])
def test_fresh_deltas_change_nothing(name):
    module, args, variables, team = made(name)

    @jax.jit
    def applied():
        own = deltas.init(KEY, team.spec, 2)[1]
        merged = module.apply(deltas.merge(variables, own), *args)
        return module.apply(variables, *args), merged, deltas.factored(module, own)(variables, *args)

    plain, *fresh = applied()
    for outputs in fresh:
        assert_close(outputs, plain)


@pytest.mark.parametrize("name", CASES)
def test_merged_and_factored_agree(name):
    module, args, variables, team = made(name)

    @jax.jit
    def applied(own):
        merged = module.apply(deltas.merge(variables, own), *args)
        return module.apply(variables, *args), merged, deltas.factored(module, own)(variables, *args)

    tolerance = 0.05 if name == "bfloat16" else 1e-5
    plain, merged, factored = applied(team[1])
    assert_close(merged, factored, tolerance)
    assert not np.allclose(jax.tree.leaves(merged)[0], jax.tree.leaves(plain)[0])


def shapes_within(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            yield from shapes_within(inner) if hasattr(inner, "eqns") else ()


@pytest.mark.parametrize("name", CASES)
def test_kernels_of_owners_are_only_formed_where_they_must_be(name):
    module, args, variables, team = made(name, "*kernel" if name != "embed" else "*", n=11)
    team = team.select([t.path for t in team.spec.targets if not t.full and t.path.endswith(("kernel", "embedding"))])

    def loss(own):
        return sum(leaf.sum() for leaf in jax.tree.leaves(deltas.factored(module, own)(variables, *args)))

    formed = set(shapes_within(jax.make_jaxpr(jax.vmap(jax.grad(loss)))(team).jaxpr))
    kernels = {
        (11, *shape)
        for target in team.spec.targets
        for shape in (target.shape, target.shape[1:], (*target.sizes("b"), target.n_in, target.n_out))
    }
    assert (name in MERGED) == bool(formed & kernels)


def test_owners_are_mapped_each_with_its_own_input_and_gradient():
    module, (x,), variables, team = made("attention", n=3)
    xs = jnp.stack([x, x + 1, x - 1])

    def outputs(team):
        return jax.vmap(lambda own, x: deltas.factored(module, own)(variables, x))(team, xs)

    @jax.jit
    def run(team):
        full, axes = deltas.merge_all(variables, team)
        merged = jax.vmap(module.apply, in_axes=(axes, 0))(full, xs)
        return merged, outputs(team), jax.grad(lambda team: outputs(team)[1].sum())(team)

    merged, factored, grads = run(team)
    assert_close(merged, factored)
    moved = {owner for owner in range(3) if any(leaf.any() for leaf in jax.tree.leaves(grads[owner]))}
    assert moved == {1}


def test_only_what_has_a_delta_gets_an_owner_axis():
    _, _, variables, team = made("dense", "*kernel", n=3)
    full, axes = deltas.merge_all(variables, team)
    assert axes == {"params": {"kernel": 0, "bias": None}}
    assert full["params"]["kernel"].shape == (3, 6, 9)
    assert full["params"]["bias"] is variables["params"]["bias"]
    for owner, own in enumerate(team):
        assert_close(full["params"]["kernel"][owner], deltas.merge(variables, own)["params"]["kernel"])


def test_a_kernel_is_corrected_as_the_equation_says():
    _, _, variables, noise = made("dense", "*kernel")
    team = deltas.init(KEY, noise.spec, 4)
    arrays = team.arrays["params/kernel"]
    assert arrays["left"].shape == (4, 6, 2) and not arrays["left"].any()
    assert np.abs(arrays["right"]).max() <= 1 / np.sqrt(2) and len(np.unique(arrays["right"])) > 70
    own = noise[0]
    left, right = own.arrays["params/kernel"].values()
    assert_close(deltas.merge(variables, own)["params"]["kernel"], variables["params"]["kernel"] + 1.5 * left @ right)


@pytest.mark.parametrize(
    "name", ["attention", "another_view", "conv", "scan", "scan_along_another_axis", "dense_general_batch"]
)
def test_views_are_matrices_of_the_layer(name):
    _, _, variables, team = made(name, "*kernel")
    own, leaves = team[0], deltas.spec.by_path(variables)
    merged = deltas.spec.by_path(deltas.merge(variables, own))
    for target in team.spec.targets:
        letters = dict(zip("bio", ("", "", ""), strict=True))
        names = [letters.__setitem__(k, letters[k] + c) or c for c, k in zip("stuvwxyz", target.view, strict=False)]
        left = own.arrays[target.path]["left"].reshape(*target.sizes("b"), *target.sizes("i"), 2)
        right = own.arrays[target.path]["right"].reshape(*target.sizes("b"), 2, *target.sizes("o"))
        equation = f"{letters['b']}{letters['i']}r,{letters['b']}r{letters['o']}->{''.join(names)}"
        expected = leaves[target.path] + 1.5 * jnp.einsum(equation, left, right)
        assert_close(merged[target.path], expected)


def test_full_rank_deltas_are_the_difference_of_two_trees():
    _, _, a, team = made("attention", rank_pattern={"*": 1000})
    assert all(target.full and target.scale == 1 for target in team.spec.targets)
    b = noisy(a, 9)
    own = deltas.difference(a, b, team.spec)
    assert_close(deltas.merge(a, own), b)
    assert_close(own.arrays["params/out/kernel"]["full"], b["params"]["out"]["kernel"] - a["params"]["out"]["kernel"])


def test_the_difference_of_a_low_rank_change_is_exact_and_of_another_the_nearest():
    _, _, variables, team = made("scan", "*kernel")
    changed = deltas.merge(variables, team[0])
    assert_close(deltas.merge(variables, deltas.difference(variables, changed, team.spec)), changed)
    (target,) = team.spec.targets
    other = noisy(variables, 9)
    change = deltas.spec.by_path(other)[target.path] - deltas.spec.by_path(variables)[target.path]
    own = deltas.difference(variables, other, team.spec).arrays[target.path]
    error = jnp.linalg.norm(change - 1.5 * own["left"] @ own["right"], axis=(1, 2))
    assert_close(error, jnp.sqrt((jnp.linalg.svd(change)[1][:, 2:] ** 2).sum(1)), 1e-4)


@pytest.mark.parametrize("case", ["scan", "attention", "bfloat16", "scan_along_another_axis"])
@pytest.mark.parametrize(("rank", "alpha"), [(2, 3.0), (2, 4.0), (3, 3.0), (1000, 1.0)])
def test_deltas_of_as_large_a_rank_change_parameters_as_before(case, rank, alpha):
    _, _, variables, team = made(case)
    spec = deltas.make_spec(variables, list(team.spec.by_path), rank, alpha, views=VIEWS.get(case))
    larger = deltas.resize(team, spec, KEY)
    assert larger.spec == spec
    rounding = 0.02 if case == "bfloat16" else 1e-6
    for i in range(team.n_owners):
        assert_close(deltas.merge(variables, larger[i]), deltas.merge(variables, team[i]), rounding)
    for target in spec.targets:
        if not target.full and rank > 2:  # what is new can learn
            left, right = larger.arrays[target.path]["left"][..., 2:], larger.arrays[target.path]["right"][..., 2:, :]
            assert not left.any() and (jnp.abs(right) > 0).all()
            assert not np.array_equal(right[0], right[1])


def test_deltas_of_a_smaller_rank_are_the_nearest():
    _, _, variables, team = made("attention")
    nothing = jax.tree.map(jnp.zeros_like, variables)
    spec = deltas.make_spec(variables, list(team.spec.by_path), rank=1, alpha=2.0)
    smaller = deltas.resize(team, spec)
    for i in range(team.n_owners):
        expected = deltas.difference(nothing, deltas.merge(nothing, team[i]), spec)
        assert_close(deltas.merge(nothing, smaller[i]), deltas.merge(nothing, expected))


def test_deltas_are_resized_for_the_same_parameters_only():
    tree = {"a": {"kernel": jnp.zeros((4, 5))}, "b": {"kernel": jnp.zeros((5, 4))}}
    team = deltas.init(KEY, deltas.make_spec(tree, "a/*", rank=1), 2)
    for other in (
        deltas.make_spec(tree, "b/*"),
        deltas.make_spec(tree),
        deltas.make_spec(tree, "a/*", views={"*": "oi"}),
    ):
        with pytest.raises(ConfigError, match="are not of the same parameters"):
            deltas.resize(team, other, KEY)
    with pytest.raises(ConfigError, match="a rank grows, so a key is needed"):
        deltas.resize(team, deltas.make_spec(tree, "a/*", rank=2))


@pytest.mark.parametrize("way", ["merge", "merge_all", "factored"])
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_trees_get_no_gradient(way, frozen):
    module, (x,), variables, team = made("twice", ["*kernel"])

    def loss(variables, team):
        if way == "merge":
            return module.apply(deltas.merge(variables, team[0], frozen=frozen), x).sum()
        if way == "factored":
            return deltas.factored(module, team[0], frozen=frozen)(variables, x).sum()
        full, axes = deltas.merge_all(variables, team, frozen=frozen)
        return jax.vmap(module.apply, in_axes=(axes, None))(full, x).sum()

    of_tree, of_team = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, team)
    assert all(leaf.any() for leaf in jax.tree.leaves(of_team[0]))
    assert any(leaf.any() for leaf in jax.tree.leaves(of_tree)) != frozen


def test_nnx_models_pass_through_split():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
            self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](self.dropout(self.attention(nnx.tanh(self.layers[0](x)))))

    model = Model(nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    tree = nnx.to_pure_dict(state)
    spec = deltas.make_spec(tree, ["layers/?/kernel", "attention/*/kernel"], rank=2)
    assert [t.view for t in spec.targets] == ["ioo", "iio", "ioo", "ioo", "io", "io"]
    team = deltas.init(KEY, spec, 2)

    def output(own):
        merged = deltas.merge(tree, own, frozen=True)
        nnx.replace_by_pure_dict(state, merged)
        return nnx.merge(graphdef, state)(X)

    assert_close(jax.jit(output)(team[0]), model(X))
    grads = jax.jit(jax.grad(lambda own: output(own).sum()))(noisy(team)[0])
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))
    full, axes = deltas.merge_all(tree, noisy(team))
    assert axes["layers"][0] == {"kernel": 0, "bias": None} and full["layers"][0]["kernel"].shape == (2, 6, 8)


# Specs


def test_patterns_choose_ranks_alphas_and_exclusions():
    _, _, variables, _ = made("attention")
    spec = deltas.make_spec(
        jax.eval_shape(lambda: variables),
        ["*kernel", "*/out/bias"],
        rank=4,
        rank_pattern={"*/query/*": 1, "*/q*": 3},
        alpha_pattern={"*/key/*": 8.0},
        exclude="*/value/*",
    )
    found = {t.path.removeprefix("params/"): (t.rank, t.scale, t.full) for t in spec.targets}
    assert found == {
        "key/kernel": (4, 2.0, False),
        "out/bias": (4, 1.0, True),
        "out/kernel": (4, 1.0, False),
        "query/kernel": (1, 1.0, False),
    }
    assert spec.count == 4 * 16 + 8 + 4 * 16 + 16
    lines = str(spec).splitlines()
    assert lines[0].split() == ["path", "view", "shape", "in", "x", "out", "rank", "count"]
    assert lines[3].split() == ["params/out/kernel", "iio", "[2,", "4,", "8]", "8", "x", "8", "4", "64"]
    assert lines[-1].split() == ["total", "per", "owner", "152"]


SHAPES = {
    "Conv_0": ("iiio", (3, 3, 4, 5), None),
    "Conv_1": ("iio", (3, 4, 5), (5,)),
    "stacked_conv": ("biiio", (7, 3, 3, 4, 5), (7, 5)),
    "Dense_0": ("bio", (3, 4, 5), None),
    "stacked": ("bio", (3, 4, 5), (3, 5)),
    "stacked_twice": ("bbio", (2, 3, 4, 5), (2, 3, 5)),
    "hn": ("bio", (3, 4, 5), None),
    "heads": ("ioo", (4, 2, 5), (2, 5)),
    "joined": ("iio", (2, 5, 4), (4,)),
    "attention/query": ("ioo", (8, 2, 4), None),
    "attention/out": ("iio", (2, 4, 8), None),
    "layers/query": ("bioo", (3, 8, 2, 4), None),
    "layers/value": ("bioo", (3, 8, 2, 4), None),
    "layers/out": ("biio", (3, 2, 4, 8), None),
    "square/Dense_0": ("bio", (4, 4, 5), (4, 5)),
}


def test_views_are_inferred_by_the_conventions_of_flax():
    tree = {
        name: {"kernel": jnp.zeros(kernel)} | ({} if bias is None else {"bias": jnp.zeros(bias)})
        for name, (_, kernel, bias) in SHAPES.items()
    }
    spec = deltas.make_spec(tree, rank=1)
    assert {t.path: t.view for t in spec.targets} == {f"{name}/kernel": view for name, (view, *_) in SHAPES.items()}
    others = {"embedding": jnp.zeros((3, 4, 5)), "scale": jnp.zeros((3, 4)), "table": jnp.zeros((3, 4))}
    assert [t.view for t in deltas.make_spec(others, "*").targets] == ["bio", "", "io"]


def test_a_view_that_is_empty_makes_a_delta_full():
    spec = deltas.make_spec({"x": jnp.zeros((4, 4, 4))}, "x", rank=1, views={"x": ""})
    assert spec.targets[0].shapes == {"full": (4, 4, 4)}


# Owners


def test_an_owner_that_does_not_move_keeps_its_parameters_and_moments_to_the_bit():
    optimizer = deltas.per_owner(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)))
    _, _, _, team = made("twice", n=3)
    params = jax.tree.map(lambda leaf: np.where(leaf > 0, leaf, np.float32(-0.0)), team)
    state = optimizer.init(params)
    moved = jnp.array([True, False, True])

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params, moved=moved)
        return optax.apply_updates(params, updates), state

    new_params, new_state = step(*step(params, state, noisy(params)), noisy(params, 5))
    for new, old in zip(jax.tree.leaves((new_params, new_state)), jax.tree.leaves((params, state)), strict=True):
        assert np.asarray(new[1]).tobytes() == np.asarray(old[1]).tobytes()
        assert not np.array_equal(new[0], old[0])


def test_every_owner_has_a_clip_and_a_state_to_itself():
    transform = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))
    params = made("dense", n=3)[3]
    grads = noisy(params, 2)
    grads = jax.tree.map(lambda leaf: leaf * np.array([0.01, 1, 100]).reshape(3, *(1,) * (leaf.ndim - 1)), grads)
    optimizer = deltas.per_owner(transform)
    updates, state = jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params))()
    step_alone = jax.jit(lambda grads, params: transform.update(grads, transform.init(params), params))
    for owner in range(3):
        alone, alone_state = step_alone(grads[owner], params[owner])
        assert_close(updates[owner], alone)
        assert_close(jax.tree.map(lambda leaf, owner=owner: leaf[owner], state), alone_state)


def test_extra_arguments_are_each_owners():
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    transform = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    updates, _ = deltas.per_owner(transform).update(
        {"x": jnp.ones((2, 3))}, optax.EmptyState(), factor=jnp.array([2, 5])
    )
    assert_close(updates["x"][:, 0], jnp.array([2.0, 5.0]))


# Errors


def dense():
    return made("dense")[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "*/kernal"}, r"target '\*/kernal' matches no parameter; nearest: params/kernel"),
        ({"exclude": "*head*"}, r"exclude '\*head\*' matches no targeted parameter; nearest: params/kernel"),
        ({"rank_pattern": {"*bias": 1}}, r"rank_pattern '\*bias' matches no targeted parameter"),
        ({"alpha_pattern": {"x": 1.0}}, "alpha_pattern 'x' matches no targeted parameter"),
        ({"views": {"x": "io"}}, "views 'x' matches no targeted parameter"),
        ({"exclude": "*"}, "every target is excluded"),
        ({"rank": 0}, "the rank of params/kernel must be at least 1, got 0"),
        ({"rank_pattern": {"*": -1}}, "the rank of params/kernel must be at least 1, got -1"),
        ({"alpha": 0.0}, "alpha of params/kernel must be positive, got 0.0"),
        ({"views": {"*": "iio"}}, r"view 'iio' of params/kernel has 3 letters, but its shape \[6, 9\] has 2 axes"),
        ({"views": {"*": "ii"}}, "view 'ii' of params/kernel needs an input"),
        ({"views": {"*": "xy"}}, "view 'xy' of params/kernel may only have the letters b, i and o"),
    ],
)
def test_a_spec_that_cannot_be_is_one_line(options, message):
    variables, _ = dense()
    with pytest.raises(ConfigError, match=message) as caught:
        deltas.make_spec(variables, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.zeros((3, 4, 5)), r"cannot tell the input axes of x/kernel \[3, 4, 5\] .* views={'x/kernel': ...}"),
        (jnp.zeros((3, 4), int), "x/kernel is int32; only floating-point parameters"),
    ],
)
def test_what_cannot_be_guessed_has_to_be_said(leaf, message):
    with pytest.raises(ConfigError, match=message):
        deltas.make_spec({"x": {"kernel": leaf}})


def test_a_bias_that_fits_two_views_has_to_be_settled():
    tree = {"x": {"kernel": jnp.zeros((4, 4, 5)), "bias": jnp.zeros((4, 5))}}
    with pytest.raises(ConfigError, match="cannot tell the input axes of x/kernel"):
        deltas.make_spec(tree)


def test_deltas_that_do_not_fit_are_refused():
    variables, team = dense()
    wider = nn.Dense(10).init(KEY, X)
    for apply in (deltas.merge, lambda tree, own: deltas.factored(nn.Dense(9), own)(tree, X)):
        with pytest.raises(ConfigError, match=r"params/bias is \[10\] in these parameters, .* made for \[9\]"):
            apply(wider, team[0])
        with pytest.raises(ConfigError, match=r"these parameters have no params/bias, .* nearest: bias, kernel"):
            apply(variables["params"], team[0])
        with pytest.raises(
            ConfigError, match=r"full of the delta of params/bias is \[2, 9\], but must be \[9\]; .* map over"
        ):
            apply(variables, team)
    with pytest.raises(ConfigError, match=r"left .* is \[6, 2\], but must be .*; give the deltas of all owners"):
        deltas.merge_all(variables, team.select("*kernel")[0])
    with pytest.raises(ConfigError, match=r"params/bias is \[10\]"):
        deltas.difference(variables, wider, team.spec)
    with pytest.raises(ConfigError, match="number of owners must be at least 1, got 0"):
        deltas.init(KEY, team.spec, 0)
    with pytest.raises(IndexError, match="no owner 2; these are the deltas of 2"):
        team[2]


class Unread(nn.Module):
    """A stack whose blocks have a parameter that they never read."""

    @nn.compact
    def __call__(self, x):
        return nn.scan(
            UnreadBlock, variable_axes={"params": 0}, split_rngs={"params": True}, variable_broadcast=False, length=2
        )()(x, None)[0]


class UnreadBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        self.param("unread", nn.initializers.ones, (6, 6))
        return nn.Dense(6)(x), None


def test_a_delta_that_no_layer_uses_is_an_error():
    module, (x,), variables, team = made("twice")
    with pytest.raises(ConfigError, match="this call of Twice reads params/head/bias nowhere"):
        deltas.factored(module, team[0])(variables, x, method="encode")
    encoder = team.select("params/body/*")[0]
    assert deltas.factored(module, encoder)(variables, x, method="encode").shape == (5, 6)
    with pytest.raises(ConfigError, match="select 'params/tail' matches no"):
        team.select("params/tail")

    variables = Unread().init(KEY, X)
    own = deltas.init(KEY, deltas.make_spec(variables, "*unread", rank=1, views={"*": "bio"}), 1)[0]
    with pytest.raises(ConfigError, match="reads params/ScanUnreadBlock_0/unread nowhere"):
        deltas.factored(Unread(), own)(variables, X)


# The subpackage


@pytest.mark.parametrize("name", ["", ".algebra", ".layers", ".owners", ".spec"])
def test_examples_in_docstrings_run(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"lorasa_jax.deltas{name}"))
    assert attempted and not failed


def test_deltas_import_no_environment():
    check = (
        "import sys, lorasa_jax.deltas\n"
        "others = {'brax', 'jaxmarl', 'gymnax', 'mujoco', 'matplotlib', 'tyro', 'tensorboardX'}\n"
        "print(*sorted(others & sys.modules.keys()), 'lorasa_jax.envs' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_example_in_the_documentation_runs_and_is_short(capsys):
    text = (Path(__file__).parents[1] / "docs" / "deltas.md").read_text()
    snippet, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    assert names["team"].n_owners == 3
    assert capsys.readouterr().out.strip() == str(names["spec"])
    assert len(text.split()) < 1000
