"""The scan equals the sum it stands for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lorasa_jax.core.advantages import traced_gae

T, E, V = 7, 3, 2


def rollout(ends: bool, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    steps = {name: rng.normal(size=(T, E, V)).astype(np.float32) for name in ("reward", "value", "next_value")}
    ended, by_clock = rng.random((T, E)) < 0.4 * ends, rng.random((T, E)) < 0.5
    return {**steps, "terminated": ended & ~by_clock, "truncated": ended & by_clock}


def as_sum(reward, value, next_value, terminated, truncated, gamma, gae_lambda, trace=None):
    """A_t = sum over k of delta_{t+k} times everything that decays from t to t + k."""
    trace = np.ones_like(reward) if trace is None else trace
    delta = reward + gamma * np.where(terminated[..., None], 0, next_value) - value
    advantage = np.zeros_like(reward)
    for t in range(T):
        for k in range(T - t):
            if (terminated | truncated)[t : t + k].any(axis=0).all():
                break
            open_ = ~(terminated | truncated)[t : t + k].any(axis=0)[:, None]
            decay = (gamma * gae_lambda) ** k * np.minimum(1, trace[t + 1 : t + k + 1]).prod(axis=0)
            advantage[t] += open_ * decay * delta[t + k]
    return advantage


def scanned(steps: dict, *args, trace=None):
    return traced_gae(*map(jnp.asarray, steps.values()), *args, None if trace is None else jnp.asarray(trace))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_the_scan_equals_the_sum(gamma, gae_lambda, traced, ends):
    steps = rollout(ends)
    trace = np.random.default_rng(1).uniform(0.5, 1.5, (T, E, V)).astype(np.float32) if traced else None
    expected = as_sum(**steps, gamma=gamma, gae_lambda=gae_lambda, trace=trace)
    np.testing.assert_allclose(scanned(steps, gamma, gae_lambda, trace=trace), expected, atol=1e-5)


def test_a_trace_of_ones_is_gae_and_one_above_is_cut():
    steps = rollout(ends=True)
    plain = scanned(steps, 0.9, 0.8)
    for ratio in (1.0, 3.0):
        np.testing.assert_array_equal(scanned(steps, 0.9, 0.8, trace=np.full((T, E, V), ratio, np.float32)), plain)


def test_one_step_is_the_difference_and_all_steps_the_return():
    steps = rollout(ends=False)
    delta = steps["reward"] + 0.9 * steps["next_value"] - steps["value"]
    np.testing.assert_allclose(scanned(steps, 0.9, 0.0), delta, atol=1e-6)
    # With lambda 1 and values that continue, the middle of the sum cancels.
    steps["next_value"][:-1] = steps["value"][1:]
    discount = 0.9 ** np.arange(T)
    total = np.einsum("tev,t->ev", steps["reward"], discount) + 0.9**T * steps["next_value"][-1]
    np.testing.assert_allclose((scanned(steps, 0.9, 1.0) + steps["value"])[0], total, atol=1e-5)


def test_nothing_after_an_end_counts_but_the_value_after_a_truncation():
    steps = rollout(ends=True)
    later = {name: x.copy() for name, x in steps.items()}
    t, e = 2, 1
    for name, ended in (("terminated", True), ("truncated", False)):
        steps[name][t, e] = later[name][t, e] = ended
    later["next_value"][t, e] += 1
    for name in ("reward", "value", "next_value"):
        later[name][t + 1 :, e] += 1
    before, after = scanned(steps, 0.9, 0.8), scanned(later, 0.9, 0.8)
    np.testing.assert_array_equal(before[: t + 1, e], after[: t + 1, e])
    for x in (steps, later):
        x["terminated"][t, e], x["truncated"][t, e] = False, True
    gained = scanned(later, 0.9, 0.8)[t, e] - scanned(steps, 0.9, 0.8)[t, e]
    np.testing.assert_allclose(gained, 0.9, atol=1e-6)
