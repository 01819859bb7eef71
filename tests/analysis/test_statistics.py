from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lorasa_jax.analysis import statistics as stats
from lorasa_jax.analysis.statistics import bootstrap_interval

X = np.array([[0.10, 0.95, 0.50], [0.40, 0.90, 0.50], [0.35, 1.00, 0.75], [0.80, 0.85, 0.25], [0.60, 1.00, 1.20]])
Y = np.array([[0.40, 0.80, 0.50], [0.20, 1.00, 0.50], [0.35, 0.70, 0.10]])
CUTS = {"all": X, "fewer runs": Y, "one task": X[:, :1], "one run": X[:1]}

# What the functions of rliable 1.2.0 (`metrics.py`, `library.score_distributions`) give for these arrays.
RLIABLE = {
    "all": (0.6766666666666667, 0.6944444444444445, 0.64, 0.33666666666666667),
    "fewer runs": (0.5055555555555556, 0.49000000000000005, 0.3666666666666667, 0.49444444444444446),
    "one task": (0.45, 0.45, 0.45, 0.55),
    "one run": (0.5166666666666667, 0.5166666666666666, 0.5, 0.4833333333333333),
}
RLIABLE_IQM_OF_SQUARES = [0, 1 / 2, 5 / 3, 2.5, 14 / 3, 7.5, 11, 13.5, 18, 139 / 6, 29, 199 / 6, 40]
RLIABLE_IMPROVEMENT = 0.7111111111111111, 0.2888888888888889
RLIABLE_PROFILE = {0.0: 1.0, 0.25: 0.8666666666666667, 0.5: 0.6, 0.9: 0.26666666666666666, 1.0: 0.06666666666666667}


@pytest.mark.parametrize("case", CUTS)
def test_aggregates_are_those_of_rliable(case: str) -> None:
    scores = CUTS[case]
    found = [f(scores) for f in (stats.mean, stats.iqm, stats.median, stats.optimality_gap)]
    assert found == pytest.approx(RLIABLE[case], abs=1e-12)


def test_the_iqm_of_any_number_of_runs_is_that_of_rliable() -> None:
    found = [stats.iqm(np.arange(n)[::-1, None] ** 2.0) for n in range(1, 14)]
    assert found == pytest.approx(RLIABLE_IQM_OF_SQUARES, abs=1e-12)


def test_the_probability_of_improvement_is_that_of_rliable() -> None:
    found = stats.probability_of_improvement(X, Y), stats.probability_of_improvement(Y, X)
    assert found == pytest.approx(RLIABLE_IMPROVEMENT, abs=1e-12)
    assert stats.probability_of_improvement(X, X) == 0.5
    assert stats.probability_of_improvement(X + 2, Y) == 1.0


def test_the_probability_of_improvement_counts_pairs_of_runs() -> None:
    by_task = []
    for task in range(3):
        pairs = [(x > y) + (x == y) / 2 for x in X[:, task] for y in Y[:, task]]
        by_task.append(sum(pairs) / len(pairs))
    assert stats.probability_of_improvement(X, Y) == pytest.approx(sum(by_task) / 3)


def test_the_profile_is_that_of_rliable() -> None:
    found = stats.performance_profile(X, np.array(list(RLIABLE_PROFILE)))
    assert found == pytest.approx(list(RLIABLE_PROFILE.values()), abs=1e-12)


@pytest.mark.parametrize("f", [stats.mean, stats.iqm, stats.median, stats.optimality_gap])
def test_resamples_are_an_axis_before(f) -> None:
    rows = np.stack([X, X[::-1] + 0.1, X * 0.5])
    np.testing.assert_allclose(f(rows), [f(row) for row in rows], rtol=1e-12)
    twice = stats.probability_of_improvement(rows, np.stack([Y, Y, Y + 1]))
    np.testing.assert_allclose(
        twice, [stats.probability_of_improvement(a, b) for a, b in zip(rows, (Y, Y, Y + 1), strict=True)]
    )


def test_a_bootstrap_draws_runs_within_their_task() -> None:
    """Tasks far apart, runs of each alike: drawn across tasks the mean would vary."""
    scores = np.array([[0.0, 10.0, 100.0]] * 4)
    assert stats.interval(stats.mean, scores) == pytest.approx((110 / 3, 110 / 3))
    assert stats.interval(stats.probability_of_improvement, scores, scores + 1) == (0.0, 0.0)


def test_the_interval_of_two_runs_is_known() -> None:
    """The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    scores = np.array([[0.0], [1.0]])
    assert stats.interval(stats.mean, scores) == (0.0, 1.0)
    assert stats.interval(stats.mean, scores, confidence=0.4) == (0.5, 0.5)


def test_a_bootstrap_of_one_task_agrees_with_a_plain_loop() -> None:
    rng, means = np.random.default_rng(7), []
    for _ in range(4000):
        drawn = [sorted(X[rng.integers(5), task] for _ in range(5)) for task in range(3)]
        ordered = sorted(value for task in drawn for value in task)
        means.append(sum(ordered[3:12]) / 9)  # of 15, three are left out at either end
    np.testing.assert_allclose(stats.interval(stats.iqm, X), np.quantile(means, [0.025, 0.975]), atol=0.015)


def test_what_does_not_fit_into_memory_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stats.interval(stats.iqm, X[:, :1])
    monkeypatch.setattr(stats, "AT_ONCE", 60)
    assert stats.interval(stats.iqm, X[:, :1]) == whole


def test_sign_flips_are_all_tried() -> None:
    differences = [0.5, -0.25, 1.0, 0.75]
    seen = abs(sum(differences))
    flips = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=4)]
    assert stats.sign_flip_p(differences) == sum(flip >= seen for flip in flips) / 16 == 4 / 16


@pytest.mark.parametrize("n", [1, 3, 5, 10, 16])
def test_pairs_that_all_agree_are_as_improbable_as_their_number_allows(n: int) -> None:
    assert stats.sign_flip_p(np.arange(1.0, n + 1)) == 2 / 2**n
    assert stats.sign_flip_p([0.1] * n) == 2 / 2**n  # sums of tenths, which are not equal to the bit


def test_no_difference_is_no_evidence() -> None:
    assert stats.sign_flip_p([0.0] * 5) == 1.0
    assert stats.sign_flip_p([0.3, -0.3]) == 1.0


def test_many_pairs_are_drawn_and_agree_with_the_normal_distribution() -> None:
    differences = np.concatenate([np.full(130, 1.0), np.full(100, -1.0)])  # two standard deviations
    assert stats.sign_flip_p(differences) == pytest.approx(0.0545, abs=0.005)
    assert stats.sign_flip_p(np.ones(60)) == 2**-16


def test_pairs_say_their_mean_difference() -> None:
    found = stats.paired(X[:, 0], X[:, 1])
    assert found.mean == pytest.approx((X[:, 0] - X[:, 1]).mean())
    assert found.interval == bootstrap_interval(X[:, 0] - X[:, 1])
    assert (found.p, found.pairs) == (2 / 32, 5)
    other = stats.paired(X[:, 1], X[:, 0])
    assert (other.mean, other.p) == (-found.mean, found.p)


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


def test_as_many_runs_are_planned_as_show_the_difference() -> None:
    """Cohen's tables: 80 % power at 5 %, two-sided, for a difference of half a standard deviation."""
    assert stats.runs_needed(1.0, 0.5) == 32  # pairs
    assert stats.runs_needed(2.0, 0.5) == 63  # in each of two groups
    assert stats.runs_needed(0.0, 0.5) == 6  # fewer pairs never give p < 0.05
    n, rng = stats.runs_needed(4.0, 1.0), np.random.default_rng(0)
    drawn = rng.normal(1.0, 2.0, (4000, n))
    seen = np.abs(drawn.mean(1)) > 1.96 * 2.0 / np.sqrt(n)
    assert seen.mean() == pytest.approx(0.8, abs=0.03)
