"""What a handful of seeds, or of episodes, says, and how surely.

Scores are [runs, tasks], as in Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021), whose definitions these are; axes before these two are resamples. Nothing is assumed of the number of
runs. Few of them are still few: an interval of three seeds is an honest description of three numbers, and too narrow.
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
"""Pairs up to which every flip of signs is tried."""


def mean(scores: Scores) -> Values:
    """Returns the mean over runs and tasks."""
    return scores.mean(axis=(-2, -1))


def iqm(scores: Scores) -> Values:
    """Returns the interquartile mean: that of the middle half of all runs of all tasks together.

    A quarter of them, rounded down, is left out at either end. Hence up to three scores are simply averaged,
    of four the middle two count, of five the middle three.
    """
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def median(scores: Scores) -> Values:
    """Returns the median over tasks of the means over runs."""
    return np.median(scores.mean(axis=-2), axis=-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> Values:
    """Returns by how much scores fall short of a target on average; what exceeds it makes up for nothing."""
    return target - np.minimum(scores, target).mean(axis=(-2, -1))


def probability_of_improvement(
    x: Float[np.ndarray, "*resamples runs_x tasks"], y: Float[np.ndarray, "*resamples runs_y tasks"]
) -> Values:
    """Returns how probably a run of x scores above one of y, P(X > Y) + P(X = Y) / 2, averaged over tasks.

    Per task this is Mann and Whitney's U over the number of pairs.
    """
    above = x[..., :, None, :] > y[..., None, :, :]
    equal = x[..., :, None, :] == y[..., None, :, :]
    return (above + 0.5 * equal).mean(axis=(-3, -2, -1))


def performance_profile(
    scores: Scores, thresholds: Float[np.ndarray, " thresholds"]
) -> Float[np.ndarray, "*resamples thresholds"]:
    """Returns the share of all runs of all tasks that score above each threshold."""
    return (scores[..., None] > thresholds).mean(axis=(-3, -2))


def interval(
    statistic: Callable[..., Values],
    *scores: Float[np.ndarray, "_ tasks"],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Returns the percentile interval of a statistic under the stratified bootstrap (Efron 1979; Agarwal et al. 2021).

    The runs of every task are drawn anew with replacement, task by task, and of several score arrays each by itself.
    With a fixed key: the same scores always give the same interval. Runs that are all equal, or a single
    one, give an interval of no width, which says nothing.

    Args:
        statistic: of as many score arrays, which takes resamples as an axis before.
        scores: as many as the statistic takes; runs may differ in number.
        confidence: that of the interval.
        resamples: how many are drawn.
    """
    rng, found = np.random.default_rng(0), []
    rows = max(1, AT_ONCE // sum(each.size for each in scores))  # resamples that memory is taken for
    for size in (min(rows, resamples - done) for done in range(0, resamples, rows)):
        drawn = [rng.integers(0, len(each), (size, *each.shape)) for each in scores]
        found.append(statistic(*(each[i, np.arange(each.shape[1])] for each, i in zip(scores, drawn, strict=True))))
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean over seeds, or episodes, of a single task."""
    return interval(mean, np.asarray(values, float)[:, None], confidence=confidence)


class Paired(NamedTuple):
    """What pairs say about a difference.

    Attributes:
        mean: of the differences.
        interval: its 95 % bootstrap interval, over pairs.
        p: two-sided, of `sign_flip_p`.
        pairs: how many there are.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    pairs: int


def paired(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Paired:
    """Returns what the differences x - y of pairs say, such as two continuations of one shared policy."""
    differences = np.asarray(x, float) - np.asarray(y, float)
    return Paired(
        float(differences.mean()), bootstrap_interval(differences), sign_flip_p(differences), differences.size
    )


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Returns how probable a mean as far from zero would be if each difference were as likely of the other sign.

    Fisher's permutation test for pairs, two-sided. Exact up to 16 pairs, where all 2^n flips are
    tried; beyond, 65,535 are drawn and the one seen counts as another. n pairs cannot give less than 2 / 2^n: five
    never say p < 0.05.
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
    """Returns how many runs show a difference of means, by the normal approximation (Cohen 1988).

    n = (z_{1 - level / 2} + z_power)^2 variance / difference^2, rounded up, and as many pairs as `sign_flip_p` needs
    for that level. A variance that a few runs gave is itself uncertain by a factor of several, and so is this.

    Args:
        variance: of the differences of pairs; of unpaired runs, the sum of both sides' variances, and n runs each.
        difference: that should be seen, in the unit of the variance's root.
        power: how probably it is.
        level: of the two-sided test.
    """
    z = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
    return max(math.ceil(1 - math.log2(level)), math.ceil(z**2 * variance / difference**2))
