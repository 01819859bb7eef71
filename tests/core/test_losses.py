"""Losses against their definitions; what is masked contributes exactly nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorasa_jax.config import ConfigError
from lorasa_jax.core.losses import (
    approximate_kl,
    masked_mean,
    normalise_advantages,
    policy_loss,
    require_policy_loss,
    value_loss,
)

SHAPE = (4, 3, 2)  # steps, environments, agents
EPS, COEF = 0.2, 0.05


def samples(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    x = {name: rng.normal(size=SHAPE).astype(np.float32) for name in ("log_prob", "old_log_prob", "advantage")}
    x["preceding"] = np.exp(0.1 * rng.normal(size=SHAPE)).astype(np.float32)
    return {**x, "entropy": rng.uniform(0, 1, SHAPE).astype(np.float32), "mask": rng.random(SHAPE) < 0.6}


def evaluate(x: dict, pool=None, clip_eps=EPS):
    pool = np.full(SHAPE[-1], x["mask"].sum(), np.float32) if pool is None else pool
    judged = (jnp.asarray(x[name])[..., None] for name in ("log_prob", "old_log_prob"))
    rest = (jnp.asarray(x[name]) for name in ("entropy", "advantage", "preceding", "mask"))
    return policy_loss(*judged, jnp.ones((*x["mask"].shape, 1), bool), *rest, jnp.asarray(pool), clip_eps, COEF)


def objective(x: dict) -> np.ndarray:
    factor = np.clip(x["preceding"], 1 - EPS / 2, 1 + EPS / 2)
    ratio = np.exp(x["log_prob"] - x["old_log_prob"]) * factor
    surrogate = np.minimum(ratio * x["advantage"], np.clip(ratio, 1 - EPS, 1 + EPS) * x["advantage"])
    return surrogate + COEF * x["entropy"]


def test_policy_loss_is_the_pooled_mean_of_the_clipped_surrogate_with_its_entropy():
    x = samples()
    np.testing.assert_allclose(evaluate(x)[0], -objective(x)[x["mask"]].mean(), rtol=1e-5)


def test_policy_loss_sums_agents_each_over_its_pool():
    x, pool = samples(), np.array([3.0, 7.0], np.float32)
    expected = -sum(np.where(x["mask"], objective(x), 0)[..., i].sum() / pool[i] for i in range(2))
    np.testing.assert_allclose(evaluate(x, pool)[0], expected, rtol=1e-5)


def test_what_is_masked_contributes_exactly_nothing_to_loss_and_gradient():
    x = samples()
    loud = {
        name: np.where(x["mask"], leaf, leaf + 7).astype(leaf.dtype) if name != "mask" else leaf
        for name, leaf in x.items()
    }
    assert jax.tree.map(float, evaluate(x)) == jax.tree.map(float, evaluate(loud))
    for name in ("log_prob", "entropy"):
        gradient = jax.grad(lambda leaf, name=name: evaluate({**loud, name: leaf})[0])(jnp.asarray(loud[name]))
        np.testing.assert_array_equal(gradient[~x["mask"]], 0)
        assert np.any(gradient[x["mask"]])


def test_beyond_the_clip_there_is_no_gradient_that_would_go_further():
    ratio, advantage = np.meshgrid([0.5, 0.9, 1.1, 1.5], [-1.0, 1.0], indexing="ij")
    x = {name: np.zeros((4, 2, 1), np.float32) for name in ("old_log_prob", "entropy")}
    ones = np.ones((4, 2, 1), np.float32)
    x |= {"advantage": advantage[..., None].astype(np.float32), "preceding": ones, "mask": ones > 0}
    log_prob = jnp.asarray(np.log(ratio)[..., None], jnp.float32)
    gradient = jax.grad(lambda leaf: evaluate({**x, "log_prob": leaf}, np.ones(1, np.float32))[0])(log_prob)
    moves = np.array([[False, True], [True, True], [True, True], [True, False]])
    np.testing.assert_array_equal(gradient[..., 0] != 0, moves)
    np.testing.assert_allclose(gradient[..., 0], np.where(moves, -ratio * advantage, 0), rtol=1e-5)


def test_what_agents_before_did_counts_up_to_half_the_clip():
    x = samples()
    wild = {**x, "preceding": np.where(x["preceding"] > 1, 50.0, 0.02).astype(np.float32)}
    edge = {**x, "preceding": np.where(x["preceding"] > 1, 1 + EPS / 2, 1 - EPS / 2).astype(np.float32)}
    assert evaluate(wild)[0] == pytest.approx(float(evaluate(edge)[0]), rel=1e-6)
    assert evaluate(wild)[0] != pytest.approx(
        float(evaluate({**x, "preceding": np.ones_like(x["preceding"])})[0]), rel=1e-4
    )


def test_what_is_reported_are_means_over_the_mask():
    x = samples()
    info, kept = evaluate(x)[1], {name: leaf[x["mask"]] for name, leaf in x.items()}
    joint = np.exp(kept["log_prob"] - kept["old_log_prob"]) * np.clip(kept["preceding"], 1 - EPS / 2, 1 + EPS / 2)
    assert info["entropy"] == pytest.approx(kept["entropy"].mean(), rel=1e-5)
    assert info["clip_fraction"] == pytest.approx((np.abs(joint - 1) > EPS).mean(), rel=1e-5)
    assert info["policy_loss"] == pytest.approx(-(objective(x) - COEF * x["entropy"])[x["mask"]].mean(), rel=1e-4)


def test_the_estimate_of_the_divergence_has_the_right_mean_and_counts_only_parts_that_exist():
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    sample = jnp.log(jnp.array([old, new]))[..., None]  # of each action once, weighed by how often it is taken
    estimate = approximate_kl(sample[1], sample[0], jnp.ones((3, 1), bool))
    assert np.sum(old * estimate) == pytest.approx(np.sum(old * np.log(old / new)), rel=1e-5)
    assert (np.asarray(estimate) >= 0).all()
    parts = jnp.array([[True, False], [True, True]])
    by_dim = jnp.log(jnp.array([[2.0, 5.0], [2.0, 2.0]]))
    one = 2.0 - 1 - np.log(2.0)
    np.testing.assert_allclose(approximate_kl(by_dim, jnp.zeros((2, 2)), parts), [one, 2 * one], rtol=1e-5)


def huber(error, delta):
    return np.where(np.abs(error) <= delta, 0.5 * error**2, delta * (np.abs(error) - 0.5 * delta))


@pytest.mark.parametrize("delta", [1.0, float("inf")])
def test_value_loss_is_huber_on_both_sides_and_without_a_bend_half_the_square(delta):
    value, zero = jnp.asarray([-30.0, -0.5, 0.0, 0.5, 30.0]).reshape(5, 1, 1), jnp.zeros((5, 1, 1))
    expected = huber(value, delta).mean() if delta < 2 else 0.5 * (value**2).mean()
    loss, info = value_loss(value, value, zero, 0.2, delta)  # the clip holds nothing back
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert info == {"value_loss": loss}


def test_value_clip_takes_the_worse():
    rng = np.random.default_rng(0)
    value, old, target = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
    held = np.clip(value, old - 0.2, old + 0.2)
    expected = np.maximum(huber(value - target, 10.0), huber(held - target, 10.0)).mean()
    loss, _ = value_loss(*map(jnp.asarray, (value, old, target)), 0.2, 10.0)
    assert loss == pytest.approx(expected, rel=1e-5)
    # Held back where it already moved further towards the target than the clip allows: no gradient.
    ahead = jax.grad(lambda v: value_loss(v, jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)), 0.2, 10.0)[0])
    assert ahead(jnp.full((1, 1, 1), 0.5)) == 0
    assert ahead(jnp.full((1, 1, 1), 0.1)) == pytest.approx(-0.9)
    assert ahead(jnp.full((1, 1, 1), -0.5)) == pytest.approx(-1.5)


def test_masked_mean_is_the_mean_of_what_counts_and_zero_of_nothing():
    x = jnp.asarray([1.0, 2.0, jnp.nan])
    assert masked_mean(x, jnp.asarray([True, True, False])) == 1.5
    assert masked_mean(x, jnp.zeros(3, bool)) == 0


def test_normalised_advantages_have_mean_0_and_deviation_1_where_they_count():
    x = samples()
    normalised = np.asarray(normalise_advantages(jnp.asarray(3 * x["advantage"] + 5), jnp.asarray(x["mask"])))
    kept = normalised[x["mask"]]
    assert (kept.mean(), kept.std()) == pytest.approx((0, 1), abs=1e-5)
    np.testing.assert_allclose(np.diff(normalised.ravel()), np.diff((3 * x["advantage"]).ravel()) / (
        3 * x["advantage"][x["mask"]].std()), rtol=1e-3, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("value", [0.5, 0.7])
def test_equal_advantages_are_zero_whatever_rounding_leaves_of_them(value):
    shape = (6, 4, 3)
    np.testing.assert_allclose(normalise_advantages(jnp.full(shape, value), jnp.ones(shape, bool)), 0, atol=0.05)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (None, "policy_loss must be a function, got a NoneType"),
        (lambda log_prob, advantage: 0.0, "policy_loss must take log_prob, old_log_prob, parts"),
        (lambda surprise, **rest: 0.0, "missing a required argument: 'surprise'"),
        (lambda advantage, **rest: advantage.sum(), "must return a scalar and a dictionary of scalars"),
        (lambda advantage, **rest: (advantage, {}), "must return a scalar and a dictionary of scalars"),
        (lambda advantage, **rest: (advantage.sum(), {"advantage": advantage}), "it returned shapes"),
    ],
)
def test_a_loss_of_ones_own_is_tried_before_it_is_used(loss, says):
    require_policy_loss(policy_loss, 3)
    require_policy_loss(lambda advantage, pool, **rest: (jnp.sum(advantage / pool), {"size": jnp.sum(pool)}), 3)
    with pytest.raises(ConfigError, match=says) as error:
        require_policy_loss(loss, 3)
    assert "\n" not in str(error.value)
