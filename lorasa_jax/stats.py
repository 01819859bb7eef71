"""What a handful of seeds, or of episodes, says, and how surely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
AT_ONCE = 4_000_000


def bootstrap_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean over seeds, or episodes (Efron 1979).

    They are drawn with replacement, with a fixed key, so that the same values always give
    the same interval. A single one gives an interval of no width, which says nothing.
    """
    samples, rng = np.asarray(values, float), np.random.default_rng(0)
    rows = max(1, AT_ONCE // samples.size)  # resamples that memory is taken for
    sizes = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    means = np.concatenate([rng.choice(samples, (size, samples.size)).mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
