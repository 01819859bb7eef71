"""The critic's units are the debiased running moments of the returns."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasa_jax.core import normalize
from lorasa_jax.envs.base import EnvSpec

BETA = 0.9


def updated(norm, batches):
    state = norm.init()
    for batch in batches:
        state = norm.update(state, jnp.asarray(batch))
    return state


def batches(n: int, mean: float = 5.0, deviation: float = 2.0):
    return np.random.default_rng(n).normal(mean, deviation, (n, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_units_are_the_weighted_mean_and_deviation_without_the_bias_of_the_start(n):
    norm, data = normalize.running(BETA), batches(n)
    weights = BETA ** np.arange(n)[::-1]
    weights /= weights.sum()
    mean = weights @ data.mean(axis=(1, 2))
    variance = weights @ (data**2).mean(axis=(1, 2)) - mean**2
    expected = (data - mean) / np.sqrt(variance)
    np.testing.assert_allclose(norm.normalise(updated(norm, data), jnp.asarray(data)), expected, atol=1e-4)


def test_units_are_those_of_the_reward_before_the_first_update():
    norm, x = normalize.running(), jnp.asarray(batches(1))
    np.testing.assert_array_equal(norm.normalise(norm.init(), x), x)
    np.testing.assert_array_equal(norm.denormalise(norm.init(), x), x)


def test_one_update_of_a_slow_average_is_already_debiased():
    norm, data = normalize.running(0.99999), batches(1)
    np.testing.assert_allclose(
        norm.normalise(updated(norm, data), jnp.asarray(data)), (data - data.mean()) / data.std(), atol=2e-3
    )


@pytest.mark.parametrize("floor", [0.01, 4.0])
def test_variance_has_a_floor(floor):
    norm = normalize.running(BETA, floor)
    state = updated(norm, np.full((1, 2, 2), 3.0, np.float32))
    np.testing.assert_allclose(norm.normalise(state, jnp.array([3.0, 4.0])), [0, floor**-0.5], atol=1e-3)


@given(x=st.floats(-100, 100, width=32), n=st.integers(0, 3))
def test_there_and_back_is_the_identity(x, n):
    for norm in (normalize.running(BETA), normalize.raw()):
        state = updated(norm, batches(n))
        assert norm.denormalise(state, norm.normalise(state, jnp.float32(x))) == pytest.approx(x, abs=1e-4)


def test_raw_units_never_change():
    norm, x = normalize.raw(), jnp.asarray(batches(1))
    state = updated(norm, batches(3))
    assert state == norm.init()
    np.testing.assert_array_equal(norm.normalise(state, x), x)
    np.testing.assert_array_equal(norm.denormalise(state, x), x)


# ---------------------------------------------------------------- inputs

SPEC = EnvSpec("any", n_agents=2, obs_dim=3, state_dim=2, n_actions=1, episode_limit=1, team_reward=True)


def seen(rows: int, seed: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Observations whose last column the second agent does not have, and states."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(3.0, 5.0, (rows, 4, 2, 3)) * np.array([[1, 1, 1], [1, 1, 0]])
    return jnp.asarray(obs, jnp.float32), jnp.asarray(rng.normal(-1e3, 1.0, (rows, 4, 2)), jnp.float32)


def everyone(obs: jnp.ndarray) -> jnp.ndarray:
    return jnp.ones(obs.shape[:-1], bool)


def test_what_the_dead_are_shown_does_not_count():
    norm, (obs, state) = normalize.standardised(SPEC), seen(20, 3)
    alive = everyone(obs).at[5:, :, 0].set(False).at[:, :, 1].set(False)
    shown = jnp.where(alive[..., None], obs, 0.0)
    stats = norm.update(norm.init(), norm.measure(shown, state, alive))
    x, _ = norm.apply(stats, shown, state)
    early = np.asarray(x)[:5, :, 0].reshape(-1, 3)
    np.testing.assert_allclose(early.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(early.std(axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(x[:, :, 1], shown[:, :, 1])  # of whom nothing is known yet


def test_inputs_of_several_rollouts_have_mean_0_and_deviation_1_together_in_every_column():
    norm = normalize.standardised(SPEC)
    parts = [seen(rows, rows) for rows in (1, 7, 20)]
    stats = norm.init()
    for part in parts:
        stats = norm.update(stats, norm.measure(*part, everyone(part[0])))
    everything = [jnp.concatenate(column) for column in zip(*parts, strict=True)]
    for x, column in zip(norm.apply(stats, *everything), everything, strict=True):
        there = np.asarray(column).std(axis=(0, 1)) > 0
        np.testing.assert_allclose(np.asarray(x).mean(axis=(0, 1)), 0, atol=1e-3)
        np.testing.assert_allclose(np.asarray(x).std(axis=(0, 1))[there], 1, atol=1e-3)
        assert not np.asarray(x)[..., ~there].any()


def test_inputs_are_as_they_are_before_the_first_rollout_and_held_within_limits_after_it():
    norm, (obs, state) = normalize.standardised(SPEC, limit=2.0), seen(5, 0)
    for x, same in zip(norm.apply(norm.init(), obs, state), (obs, state), strict=True):
        np.testing.assert_array_equal(x, same)
    far, _ = norm.apply(norm.update(norm.init(), norm.measure(obs, state, everyone(obs))), obs + 1e3, state)
    assert np.abs(far).max() == 2.0


def test_unstandardised_inputs_have_no_statistics():
    norm, (obs, state) = normalize.as_they_are(), seen(2, 0)
    assert norm.update(norm.init(), norm.measure(obs, state, everyone(obs))) == ()
    assert norm.apply((), obs, state) == (obs, state)
