"""Bootstrap intervals: what other samples of the same kind would have given.

A metric of one split is one of many values that other images of the same kind would have given. The bootstrap (Efron
1979) samples as many images from the split, with replacement, and computes the metric again; the reported interval holds
95% of 1000 such values. Images are sampled, not pixels: pixels of one image are alike, and their number would make any
difference look certain. So are the records of one patient: images of one group are sampled together.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from training.metrics.confusion import Rates

NUM_RESAMPLES, CONFIDENCE_LEVEL, SEED = 1000, 0.95, 0
RESAMPLES_PER_BLOCK = 50  # resamples at a time, which bounds memory to this number times the images


def resample_weights(groups: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """How often each image is in a resample, RESAMPLES_PER_BLOCK x N at a time. `groups`: the group of each image, N.

    The same groups get the same resamples, so that the differences of two evaluations are paired.
    """
    number = int(groups.max()) + 1
    random, shape = np.random.default_rng(SEED), (RESAMPLES_PER_BLOCK, number)
    for _ in range(NUM_RESAMPLES // RESAMPLES_PER_BLOCK):
        sampled = random.integers(number, size=shape) + number * np.arange(RESAMPLES_PER_BLOCK)[:, None]
        weights = np.bincount(sampled.ravel(), minlength=sampled.size).reshape(shape).astype(np.float64)
        yield weights[:, groups]


def percentile_interval(values: Rates) -> Rates:
    """The middle 95% of R x ... values, 2 x ...: lower and upper end; NaN values are left out, all NaN gives NaN."""
    ends = np.full((2, *values.shape[1:]), np.nan)
    for index in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *index)]
        column = column[~np.isnan(column)]
        if column.size:
            tails = [50 * (1 - CONFIDENCE_LEVEL), 50 * (1 + CONFIDENCE_LEVEL)]
            ends[(slice(None), *index)] = np.percentile(column, tails)
    return ends


def plain_interval(ends: Rates) -> tuple[float, float] | None:
    """Lower and upper end as plain JSON values; None where they are NaN."""
    low, high = ends.round(6).tolist()
    return None if np.isnan(ends).any() else (low, high)
