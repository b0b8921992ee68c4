"""Whether the confidence is the probability of being right: the expected calibration error (ECE).

As Guo et al. 2017 (arXiv 1706.04599), over all pixels, with 10 bins of equal width.
"""

import numpy as np
from numpy.typing import NDArray

from training.metrics.confusion import Rates, ratio

NUM_BINS = 10  # of confidence


def reliability_bins(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """3 x NUM_BINS: pixels, sum of their confidence, and how many are right, by confidence in bins of equal width."""
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    weights = (None, confidence.astype(np.float64), right.astype(np.float64))
    return np.stack([np.bincount(bins, weights=weight, minlength=NUM_BINS) for weight in weights]).astype(np.float64)


def expected_calibration_error(bins: NDArray[np.float64]) -> tuple[Rates, Rates]:
    """ECE, and the mean confidence minus the accuracy (positive: overconfident).

    `bins`: those of `reliability_bins` or sums of them, ... x 3 x NUM_BINS. Returns: two arrays ..., NaN without pixels.
    """
    pixels, confidence, right = np.moveaxis(bins, -2, 0)
    total = pixels.sum(axis=-1)
    gap = confidence - right
    return ratio(np.abs(gap).sum(axis=-1), total), ratio(gap.sum(axis=-1), total)
