from __future__ import annotations

import numpy as np
import pytest

from lorasa_jax.stats import bootstrap_interval


def test_the_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_the_interval_holds_the_mean_and_stays_within_the_values() -> None:
    values = [0.1, 0.4, 0.9, 0.7]
    low, high = bootstrap_interval(values)
    assert min(values) <= low < np.mean(values) < high <= max(values)


def test_many_seeds_give_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    half_width = 1.96 * values.std() / np.sqrt(values.size)
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_more_confidence_is_a_wider_interval() -> None:
    values = [0.1, 0.4, 0.9, 0.7]
    inner, outer = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert outer[0] < inner[0] < inner[1] < outer[1]
