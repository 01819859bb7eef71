"""Statistics over few seeds or episodes, with intervals.

Scores are [runs, tasks], with axes of resamples before these two. The definitions follow Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021). Any number of runs is allowed, but
intervals of few runs, such as three seeds, are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Scores = Float[np.ndarray, "*resamples runs tasks"]
Values = Float[np.ndarray, "*resamples"] | np.floating
RESAMPLES = 10_000
AT_ONCE = 4_000_000
EXACT = 16
"""Maximum number of pairs for which all sign flips are tried."""


def mean(scores: Scores) -> Values:
    """Returns the mean over runs and tasks."""
    return scores.mean(axis=(-2, -1))


def iqm(scores: Scores) -> Values:
    """Returns the interquartile mean: the mean of the middle half of all runs of all tasks together.

    A quarter of the scores, rounded down, is dropped at each end. So up to three scores are simply averaged; of four
    the middle two count, of five the middle three.
    """
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def median(scores: Scores) -> Values:
    """Returns the median over tasks of the means over runs."""
    return np.median(scores.mean(axis=-2), axis=-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> Values:
    """Returns the mean distance of scores below a target; scores above the target count as the target."""
    return target - np.minimum(scores, target).mean(axis=(-2, -1))


def probability_of_improvement(
    x: Float[np.ndarray, "*resamples runs_x tasks"], y: Float[np.ndarray, "*resamples runs_y tasks"]
) -> Values:
    """Returns the probability that a run of x scores above a run of y, P(X > Y) + P(X = Y) / 2, averaged over tasks.

    Per task this is Mann and Whitney's U divided by the number of pairs.
    """
    above = x[..., :, None, :] > y[..., None, :, :]
    equal = x[..., :, None, :] == y[..., None, :, :]
    return (above + 0.5 * equal).mean(axis=(-3, -2, -1))


def performance_profile(
    scores: Scores, thresholds: Float[np.ndarray, " thresholds"]
) -> Float[np.ndarray, "*resamples thresholds"]:
    """Returns the share of runs of all tasks with scores above each threshold."""
    return (scores[..., None] > thresholds).mean(axis=(-3, -2))


def interval(
    statistic: Callable[..., Values],
    *scores: Float[np.ndarray, "_ tasks"],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Returns the percentile interval of a statistic under the stratified bootstrap (Efron 1979; Agarwal et al. 2021).

    Runs are resampled with replacement, independently for each task and each score array. The random seed is fixed, so
    the same scores always give the same interval. Equal runs, or a single run, give an interval of zero width, which
    has no meaning.

    Args:
        statistic: a function of score arrays with a leading axis of resamples.
        scores: its score arrays; the numbers of runs may differ.
        confidence: confidence level of the interval.
        resamples: number of resamples.
    """
    rng, found = np.random.default_rng(0), []
    rows = max(1, AT_ONCE // sum(each.size for each in scores))  # resamples per batch, to limit memory
    for size in (min(rows, resamples - done) for done in range(0, resamples, rows)):
        drawn = [rng.integers(0, len(each), (size, *each.shape)) for each in scores]
        found.append(statistic(*(each[i, np.arange(each.shape[1])] for each, i in zip(scores, drawn, strict=True))))
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean over seeds, or episodes, of a single task."""
    return interval(mean, np.asarray(values, float)[:, None], confidence=confidence)


class Paired(NamedTuple):
    """Statistics of the differences of pairs.

    Attributes:
        mean: mean difference.
        interval: its 95 % bootstrap interval over pairs.
        p: two-sided p-value of `sign_flip_p`.
        pairs: number of pairs.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    pairs: int


def paired(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Paired:
    """Returns statistics of the differences x - y of pairs, such as two continuations of one shared policy."""
    differences = np.asarray(x, float) - np.asarray(y, float)
    return Paired(
        float(differences.mean()), bootstrap_interval(differences), sign_flip_p(differences), differences.size
    )


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Returns the probability of a mean at least as far from zero if the signs of the differences are random.

    This is Fisher's two-sided permutation test for pairs. Up to 16 pairs it is exact, with all 2^n sign flips. For more
    pairs 65,535 flips are drawn, and the observed signs are added. n pairs cannot give p below 2 / 2^n, so five
    pairs never give p < 0.05.
    """
    values = np.asarray(differences, float)
    if values.size <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=values.size)))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), (2**EXACT - 1, values.size))
        signs = np.concatenate([np.ones((1, values.size)), drawn])
    sums = np.abs(signs @ values)
    return float((sums >= sums[0] - 1e-9 * np.abs(values).sum()).mean())  # equal sums may differ in their last bits


def runs_needed(variance: float, difference: float, power: float = 0.8, level: float = 0.05) -> int:
    """Returns the number of runs needed to show a difference of means, by the normal approximation (Cohen 1988).

    n = (z_{1 - level / 2} + z_power)^2 variance / difference^2, rounded up, and at least the number of pairs that
    `sign_flip_p` needs for this level. A variance estimated from few runs is uncertain by a factor of several, as
    is n.

    Args:
        variance: variance of the differences of pairs. For n unpaired runs per side, the sum of both variances.
        difference: the difference to detect, in units of the scores.
        power: probability of detecting it.
        level: level of the two-sided test.
    """
    z = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
    return max(math.ceil(1 - math.log2(level)), math.ceil(z**2 * variance / difference**2))
