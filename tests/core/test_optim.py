"""A slot is an optimiser of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same, differs, random_like, row_of

from lorasa_jax.config import ConfigError
from lorasa_jax.core.optim import clipped_adam, require_rule, slotted

SLOTS, LR, EPS, CLIP = 3, 0.05, 1e-5, 1.0
SHAPES = {"kernel": jax.ShapeDtypeStruct((SLOTS, 4, 2), float), "bias": {"x": jax.ShapeDtypeStruct((SLOTS, 2), float)}}
SCALES = jnp.array([0.01, 1.0, 100.0])


@pytest.fixture(scope="module")
def optimizer():
    made = slotted(clipped_adam(CLIP, EPS))
    return made._replace(apply=jax.jit(made.apply))


def gradients(step: int):
    """Of a norm far below the clip, near it and far above it, slot by slot."""
    return jax.vmap(lambda scale, tree: jax.tree.map(lambda g: scale * g, tree))(SCALES, random_like(SHAPES, 10 + step))


def run(optimizer, moved):
    params = random_like(SHAPES)
    state, norms = optimizer.init(params), None
    for step, who in enumerate(moved):
        params, state, norms = optimizer.apply(params, state, gradients(step), LR, who)
    return params, state, norms


def test_slots_equal_separate_optimisers(optimizer):
    params, _, norms = run(optimizer, [None] * 3)
    alone = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LR, eps=EPS))
    for slot in range(SLOTS):
        mine = row_of(random_like(SHAPES), slot)
        state = alone.init(mine)
        for step in range(3):
            updates, state = alone.update(row_of(gradients(step), slot), state)
            mine = optax.apply_updates(mine, updates)
        assert_close(row_of(params, slot), mine)
        assert norms[slot] == pytest.approx(float(optax.tree.norm(row_of(gradients(2), slot))), rel=1e-5)


def test_slots_that_do_not_move_are_untouched_to_the_bit_moments_included(optimizer):
    moved = jnp.array([True, False, True])
    before = run(optimizer, [None])
    after = run(optimizer, [None, moved])
    assert_same(row_of(after[:2], 1), row_of(before[:2], 1))
    for slot in (0, 2):
        assert all(differs(row_of(after[:2], slot), row_of(before[:2], slot)))
    # Those that moved did as if all had.
    everyone = run(optimizer, [None, jnp.ones(SLOTS, bool)])
    assert_same(*(jax.tree.map(lambda leaf: leaf[moved], tree[:2]) for tree in (after, everyone)))


def test_without_a_learning_rate_parameters_stay_and_moments_go_on(optimizer):
    params, (before, *_) = random_like(SHAPES), (optimizer.init(random_like(SHAPES)),)
    after, state, _ = optimizer.apply(params, before, gradients(0), 0.0)
    assert_same(after, params)
    assert any(differs(state, before))
    assert np.all(np.asarray(state[1].count) == 1)


@pytest.mark.parametrize("rule", [optax.adamw, lambda rate: optax.chain(optax.clip(0.1), optax.sgd(rate, 0.9))])
def test_any_optax_transformation_has_a_state_per_slot_and_leaves_slots_that_do_not_move(rule):
    made = slotted(rule)
    made = made._replace(apply=jax.jit(made.apply))
    params, *_ = run(made, [None] * 2)
    for slot in range(SLOTS):
        mine = row_of(random_like(SHAPES), slot)
        state = rule(LR).init(mine)
        for step in range(2):
            updates, state = rule(LR).update(row_of(gradients(step), slot), state, mine)
            mine = optax.apply_updates(mine, updates)
        assert_close(row_of(params, slot), mine)
    before, after = run(made, [None]), run(made, [None, jnp.array([True, False, True])])
    assert_same(row_of(after[:2], 1), row_of(before[:2], 1))
    assert any(differs(row_of(after[:2], 0), row_of(before[:2], 0)))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (optax.adam(1e-3), "got a GradientTransformationExtraArgs; write lambda rate: ..."),
        (3, "got a int"),
        (lambda rate: rate, "it returned a float"),
        (
            lambda rate: optax.inject_hyperparams(optax.sgd)(rate),
            "contains the learning rate, so the rate could not change",
        ),
    ],
)
def test_what_is_no_function_of_the_rate_is_refused(rule, says):
    require_rule(optax.adamw)
    with pytest.raises(ConfigError, match=says.replace(".", "[.]")) as error:
        require_rule(rule)
    assert "\n" not in str(error.value)
