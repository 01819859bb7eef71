"""Actions that are not available do not exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorasa_jax.distributions import categorical, mask_logits

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
    return np.stack([categorical.log_prob(MASKED, jnp.full(ROWS, a)) for a in range(ACTIONS)], axis=-1)


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
