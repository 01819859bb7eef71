"""Actions that are not available do not exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorasa_jax.core.distributions import categorical, mask_logits, squashed_normal

ROWS, ACTIONS = 200, 4
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(3 * RNG.normal(size=(ROWS, ACTIONS)), jnp.float32)
AVAIL = jnp.asarray(RNG.random((ROWS, ACTIONS)) < 0.5).at[:, 0].set(True)
MASKED = mask_logits(LOGITS, AVAIL)


def probabilities() -> np.ndarray:
    """Softmax over what is available, and zero elsewhere."""
    p = np.where(AVAIL, np.exp(np.asarray(LOGITS, np.float64)), 0)
    return p / p.sum(axis=-1, keepdims=True)


def log_probs() -> np.ndarray:
    return np.concatenate([categorical.log_prob(MASKED, jnp.full(ROWS, a)) for a in range(ACTIONS)], axis=-1)


def test_probabilities_are_those_among_what_is_available_and_exactly_zero_elsewhere():
    np.testing.assert_allclose(np.exp(log_probs()), probabilities(), atol=1e-6)
    assert not np.exp(log_probs())[~np.asarray(AVAIL)].any()


def test_entropy_is_that_of_what_is_available():
    p = probabilities()
    expected = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)
    np.testing.assert_allclose(categorical.entropy(MASKED), expected, atol=1e-5)


@pytest.mark.parametrize("n", range(1, ACTIONS + 1))
def test_entropy_of_equal_choices_is_the_logarithm_of_their_number(n):
    logits = mask_logits(jnp.zeros(ACTIONS), jnp.arange(ACTIONS) < n)
    assert categorical.entropy(logits) == pytest.approx(np.log(n), abs=1e-6)
    assert categorical.log_prob(logits, jnp.int32(0)) == pytest.approx(-np.log(n), abs=1e-6)


@pytest.mark.parametrize("quantity", ["entropy", "log_prob"])
def test_gradients_are_finite_and_nothing_flows_to_what_is_masked(quantity):
    functions = {
        "entropy": categorical.entropy,
        "log_prob": lambda logits: categorical.log_prob(logits, jnp.zeros(ROWS, int)),
    }
    gradient = jax.grad(lambda logits: functions[quantity](mask_logits(logits, AVAIL)).sum())(LOGITS)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~np.asarray(AVAIL)].any()
    assert np.any(gradient)


def test_the_mode_is_the_likeliest_available_action():
    np.testing.assert_array_equal(categorical.mode(MASKED), probabilities().argmax(axis=-1))


def test_samples_are_as_frequent_as_likely_and_always_available():
    draws = 4000
    one, p = MASKED[:4], probabilities()[:4]
    actions = np.asarray(categorical.sample(jax.random.key(0), jnp.broadcast_to(one, (draws, *one.shape))))
    frequency = np.stack([(actions == a).mean(axis=0) for a in range(ACTIONS)], axis=-1)
    np.testing.assert_allclose(frequency, p, atol=4 * 0.5 / np.sqrt(draws))
    assert not frequency[p == 0].any()


# ---------------------------------------------------------------- squashed normal

NORMAL, BY_DIM = squashed_normal(), squashed_normal(per_dim=True)
THERE = jnp.array([[True, True, True], [True, True, False]])
OUTPUT = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6)), jnp.float32)
PARAMS = NORMAL.mask(OUTPUT, THERE)
GRID = np.linspace(-6, 6, 40_001)  # of u; tanh(6) is 1 up to 1e-5


def density(row: int, dim: int) -> np.ndarray:
    """Of a = tanh(u) at every u of the grid, from the textbook."""
    mean = np.float64(OUTPUT[row, dim])
    std = 0.5 / (1 + np.exp(-np.float64(OUTPUT[row, 3 + dim])))
    normal = np.exp(-0.5 * ((GRID - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return normal / (1 - np.tanh(GRID) ** 2)


def test_a_squashed_density_is_the_normals_over_the_slope_and_integrates_to_one():
    u = jnp.broadcast_to(jnp.asarray(GRID, jnp.float32)[:, None, None], (GRID.size, 2, 3))
    p = np.exp(np.asarray(BY_DIM.log_prob(PARAMS[None], u), np.float64))
    for row, dim in [(0, 0), (0, 2), (1, 1)]:
        np.testing.assert_allclose(p[:, row, dim], density(row, dim), rtol=2e-3, atol=1e-6)
        assert np.trapezoid(p[:, row, dim], np.tanh(GRID)) == pytest.approx(1, abs=1e-3)


def test_the_entropy_is_the_integral_of_minus_p_log_p():
    expected = np.zeros(2)
    for row, dim in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        p = density(row, dim)
        expected[row] -= np.trapezoid(p * np.log(np.maximum(p, 1e-300)), np.tanh(GRID))
    np.testing.assert_allclose(NORMAL.entropy(PARAMS), expected, atol=1e-3)


def test_the_entropys_gradient_is_that_of_its_quadrature_node_by_node():
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)

    def plain(output):
        mean, std = output[..., :3], 0.5 * jax.nn.sigmoid(output[..., 3:])
        slopes = [jnp.log(1 - jnp.tanh(mean + std * x) ** 2) for x in nodes]
        expected = sum(w * slope for w, slope in zip(weights / weights.sum(), slopes, strict=True))
        return jnp.sum(jnp.log(std) + 0.5 * np.log(2 * np.pi * np.e) + expected)

    output = OUTPUT.at[1, 2].set(0.0).at[1, 5].set(0.0)  # nowhere far out, where the plain form has no digits left

    def ours(output):
        return jnp.sum(NORMAL.entropy(NORMAL.mask(output, jnp.ones((2, 3), bool))))

    for one, other in zip(jax.value_and_grad(ours)(output), jax.value_and_grad(plain)(output), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_samples_are_the_normals_and_what_the_environment_hears_stays_in_range():
    draws = np.asarray(NORMAL.sample(jax.random.key(0), jnp.broadcast_to(PARAMS, (20_000, 2, 6))))
    std = 0.5 / (1 + np.exp(-np.asarray(OUTPUT[0, 3:])))
    np.testing.assert_allclose(draws[:, 0].mean(axis=0), OUTPUT[0, :3], atol=0.02)
    np.testing.assert_allclose(draws[:, 0].std(axis=0), std, rtol=0.03)
    np.testing.assert_array_equal(NORMAL.mode(PARAMS)[0], OUTPUT[0, :3])
    np.testing.assert_array_equal(NORMAL.to_env(jnp.array([-1e9, 0.0, 1e9])), [-1, 0, 1])


def test_parts_by_dimension_add_up_to_the_whole():
    u = NORMAL.sample(jax.random.key(0), PARAMS)
    np.testing.assert_allclose(BY_DIM.log_prob(PARAMS, u).sum(-1, keepdims=True), NORMAL.log_prob(PARAMS, u), rtol=1e-6)
    np.testing.assert_array_equal(BY_DIM.parts(THERE), THERE)
    assert NORMAL.parts(THERE).shape == categorical.parts(THERE).shape == (2, 1)


def test_a_dimension_that_is_not_there_contributes_exactly_nothing():
    """Not to what is drawn, its probability or its entropy, and no gradient flows to it; whatever the network says."""
    wild = OUTPUT.at[1, 2].set(1e4).at[1, 5].set(-1e4)
    for dist in (NORMAL, BY_DIM):
        u = dist.sample(jax.random.key(0), PARAMS)
        assert u[1, 2] == 0 and dist.mode(PARAMS)[1, 2] == 0

        def judged(output, dist=dist, u=u):
            params = dist.mask(output, THERE)
            return jnp.sum(dist.log_prob(params, u)) + jnp.sum(dist.entropy(params))

        assert judged(OUTPUT) == judged(wild)
        gradient = np.asarray(jax.grad(judged)(wild))
        assert np.isfinite(gradient).all() and gradient[1, 2] == gradient[1, 5] == 0
        assert gradient[:, :2].all() and gradient[:, 3:5].all()


def test_far_out_log_probabilities_are_finite():
    params = NORMAL.mask(jnp.array([[50.0, -50.0, 0.0, -20.0, 20.0, 0.0]]), jnp.ones((1, 3), bool))
    u = NORMAL.sample(jax.random.key(0), params)
    assert np.isfinite(NORMAL.log_prob(params, u)).all() and np.isfinite(NORMAL.entropy(params)).all()


def test_total_variation_is_half_the_sum_of_differences_over_what_is_available():
    one, other = probabilities(), np.roll(probabilities(), 1, axis=0)
    found = categorical.distance(MASKED, jnp.roll(MASKED, 1, axis=0))
    np.testing.assert_allclose(found, np.abs(one - other).sum(axis=-1) / 2, atol=1e-6)
    certain = mask_logits(jnp.zeros(3), jnp.array([True, False, False]))
    assert categorical.distance(certain, mask_logits(jnp.zeros(3), jnp.array([False, True, True]))) == 1


def test_the_distance_of_normals_is_that_of_their_means_and_deviations():
    """By hand: deviations 0.25 and 0.375, means 3 and 4 apart; what an agent does not have counts nothing."""
    normal, both = squashed_normal(), jnp.array([True, True, False])
    one = normal.mask(jnp.array([1.0, 2.0, 7.0, 0.0, 0.0, 3.0]), both)
    other = normal.mask(jnp.array([4.0, 6.0, 0.0, np.log(3), 0.0, 1.0]), both)
    assert normal.distance(one, other) == pytest.approx(np.sqrt(3**2 + 4**2 + 0.125**2), abs=1e-5)
    assert normal.distance(one, one) == 0
