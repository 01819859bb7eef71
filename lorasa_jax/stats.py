"""What a handful of seeds says, and how surely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def bootstrap_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean over seeds (Efron 1979).

    Seeds are drawn with replacement, with a fixed key, so that the same values always give
    the same interval. A single seed gives an interval of no width, which says nothing.
    """
    seeds = np.asarray(values, float)
    draws = np.random.default_rng(0).choice(seeds, (RESAMPLES, seeds.size))
    low, high = np.quantile(draws.mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
