"""From a recording to labels on its own time base: the one function of evaluation, export, service and predict."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inference.events import apply_postprocess_rows
from models.inference.segmenter import Prediction, Segmenter, never_stop
from models.readers.resample import MAX_RATIO, all_to_rate, labels_to_length
from models.sample import Sample


def segment_signal(
    segmenter: Segmenter, sample: Sample, confidence: bool = False, should_stop: Callable[[], bool] = never_stop
) -> Prediction:
    """Predict a label for every time step of a recording of any rate, T x C, in the network's channels and dtype.

    The recording is resampled to the network's rate, segmented, and post-processed by the rules of the bundle; the labels are then
    brought back to its own rate by nearest time step. A recording that states no rate is taken as one of the network's rate.

    Returns: labels uint8 T and, if requested, confidence float32 T, for the values of `sample` as they are.
    Raises: as `Segmenter.segment`; ConfigError for a rate that cannot be resampled, ImageTooLargeError (`resample.check_growth`).
    """
    return next(segment_signals(segmenter, [sample], confidence, should_stop))


def segment_signals(
    segmenter: Segmenter,
    samples: Iterable[Sample],
    confidence: bool = False,
    should_stop: Callable[[], bool] = never_stop,
) -> Iterator[Prediction]:
    """As `segment_signal`, for each of several recordings. Neighbors of equal length, such as the leads of one, run together.

    Of these, `samples` gives as many as run at once before the first is yielded: a few short ones, or one long one.
    """
    rate = segmenter.rule.rate
    for (length, own_rate), neighbors in groupby(samples, lambda sample: (len(sample.values), sample.rate)):
        growth = min(rate / own_rate, MAX_RATIO) if rate and own_rate else 1.0  # `to_rate` refuses a higher one
        at_once = segmenter.batch_size((math.ceil(length * growth),))
        while group := list(islice(neighbors, at_once)):
            yield from _segment_group(segmenter, group, confidence, should_stop)


def _segment_group(
    segmenter: Segmenter, samples: list[Sample], confidence: bool, should_stop: Callable[[], bool]
) -> list[Prediction]:
    """As `segment_signal`, for recordings of one length and rate that run at once."""
    rate, own_rate, length = segmenter.rule.rate, samples[0].rate, len(samples[0].values)
    resampled = samples if rate is None else all_to_rate(samples, rate)
    found = segmenter.segment_batch(resampled, confidence, should_stop)
    labels = _stack([each.labels for each in found])
    labels = apply_postprocess_rows(labels, segmenter.event_rules, rate or own_rate or 1.0)
    confidences = [each.confidence for each in found if each.confidence is not None]
    ratio = own_rate / rate if rate and own_rate else None
    labels, probabilities = labels_to_length(labels, _stack(confidences) if confidences else None, length, ratio)
    return [
        Prediction(sample.values, row, None if probabilities is None else probabilities[index])
        for index, (sample, row) in enumerate(zip(samples, labels, strict=True))
    ]


def _stack(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays T as N x T; one is not copied, because it may be a day's."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
