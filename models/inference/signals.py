"""From a recording to labels on its own time base: the one function of evaluation, export, service and predict."""

from collections.abc import Callable

from models.inference.events import apply_postprocess
from models.inference.segmenter import Prediction, Segmenter, never_stop
from models.readers.resample import labels_to_length, to_rate
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
    rate = segmenter.rule.rate
    resampled = sample if rate is None else to_rate(sample, rate)
    found = segmenter.segment(resampled, confidence, should_stop)
    labels = apply_postprocess(found.labels, segmenter.event_rules, rate or sample.rate or 1.0)
    ratio = sample.rate / rate if rate and sample.rate else None
    labels, probabilities = labels_to_length(labels, found.confidence, len(sample.values), ratio)
    return Prediction(sample.values, labels, probabilities)
