"""Precision, recall and F1 of a set of two classes by the threshold on the probability of the second one.

The labels are those at the threshold 0.5. Average precision sums precision over the steps of recall, as scikit-learn's
`average_precision_score`, from thresholds in steps of 0.05.
"""

import numpy as np
from numpy.typing import NDArray

from training.metrics.confusion import Rates, is_background, ratio

NUM_SCORE_BINS = 20  # of the probability
THRESHOLDS = tuple(index / NUM_SCORE_BINS for index in range(NUM_SCORE_BINS))


def positive_label(names: list[str]) -> int:
    """The class that thresholds are of: the second, or the first if the second is the background."""
    return 0 if is_background(names).tolist() == [False, True] else 1


def score_counts(probability: NDArray[np.float32], positive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """2 x NUM_SCORE_BINS: pixels of the class, and pixels of the other, by the probability of the class in equal bins."""
    bins = np.minimum((probability * NUM_SCORE_BINS).astype(int), NUM_SCORE_BINS - 1)
    return np.stack([np.bincount(bins[each], minlength=NUM_SCORE_BINS) for each in (positive, ~positive)])


def threshold_rates(counts: NDArray[np.float64]) -> tuple[Rates, Rates, Rates]:
    """Precision, recall and F1 at each of THRESHOLDS, ... x NUM_SCORE_BINS; `counts`: those of `score_counts`, or sums."""
    hits, false = np.moveaxis(counts[..., ::-1].cumsum(axis=-1)[..., ::-1], -2, 0)
    true = np.broadcast_to(hits[..., :1], hits.shape)
    return ratio(hits, hits + false), ratio(hits, true), ratio(2 * hits, true + hits + false)


def average_precision(counts: NDArray[np.float64]) -> Rates:
    """The area under precision by recall, ...; NaN without a pixel of the class."""
    precision, recall, _ = threshold_rates(counts)
    steps = recall - np.concatenate([recall[..., 1:], np.zeros_like(recall[..., :1])], axis=-1)
    return np.asarray((np.nan_to_num(precision) * steps).sum(axis=-1))
