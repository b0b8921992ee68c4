"""Recordings of any rate get labels on their own time base, with the bundle's post-processing."""

import numpy as np
import pytest

from models.errors import ConfigError
from models.inference.segmenter import Segmenter
from models.inference.signals import segment_signal, segment_signals
from models.sample import Sample
from models.spec import IGNORE_INDEX, EventRule, InputRule, Scaling, Spacing

RULE = InputRule(
    rule="native", axes="T", channels=("i",), dtype="float32", scaling=Scaling(kind="zscore", low=(), high=()),
    spacing=Spacing(values=(100.0,), unit="Hz"),
)  # fmt: skip


def is_high(images: np.ndarray, logits: bool, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network: class 1 above the mean of the recording."""
    score = (images[..., 0] - statistics[:, 0]) * 5
    return (score > 0).astype(np.uint8), np.stack([-score, score], axis=1).astype(np.float32)


@pytest.mark.parametrize("rate", [100.0, 250.0, 360.0, 47.0, None])
def test_labels_lie_where_the_events_are_at_every_rate(rate: float | None) -> None:
    count = int(4.03 * (rate or 100))
    seconds = np.arange(count) / (rate or 100)
    expected = (np.floor(seconds * 2) % 2 == 1).astype(np.uint8)  # half a second low, half a second high
    values = (3 + expected[:, None]).astype(np.float32)
    valid = seconds < 3.5
    spacing = Spacing(values=(rate,), unit="Hz") if rate else None
    sample = Sample(
        values, "T", ("i",), spacing, valid=valid, statistics=np.full((2, 1), 9, np.float32) if rate == 360 else None
    )
    found = segment_signal(Segmenter(is_high, RULE), sample, confidence=True)
    assert found.image is values
    assert found.labels.shape == (count,) and found.confidence is not None and found.confidence.shape == (count,)
    wrong = np.flatnonzero(found.labels[valid] != expected[valid])
    from_edge = np.abs(wrong / (rate or 100) * 2 - np.rint(wrong / (rate or 100) * 2)) / 2
    assert (from_edge <= 0.5 / min(rate or 100, 100) + 0.011).all()  # within a step of either rate
    assert (found.labels[~valid][2:] == IGNORE_INDEX).all()


def test_recordings_of_equal_length_run_together_and_all_keep_their_order() -> None:
    lengths = [250, 250, 251, 250, 250, 250]  # at 250 Hz: the first two run together, and the last three
    random = np.random.default_rng(0)
    spacing = Spacing(values=(250.0,), unit="Hz")
    samples = [Sample(random.random((length, 1)).astype(np.float32), "T", ("i",), spacing) for length in lengths]
    runs: list[int] = []

    def run(images: np.ndarray, logits: bool, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        runs.append(len(images))
        return is_high(images, logits, statistics)

    segmenter = Segmenter(run, RULE)
    together = list(segment_signals(segmenter, iter(samples), confidence=True))
    assert runs == [2, 1, 3]
    for sample, found in zip(samples, together, strict=True):
        alone = segment_signal(segmenter, sample, confidence=True)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_array_equal(found.confidence, alone.confidence)
        assert found.image is sample.values


def test_a_rate_of_nearly_zero_is_refused() -> None:
    sample = Sample(np.zeros((300, 1), np.float32), "T", ("i",), Spacing(values=(1e-310,), unit="Hz"))
    with pytest.raises(ConfigError, match="cannot be resampled"):
        segment_signal(Segmenter(is_high, RULE), sample)


def test_rules_of_the_bundle_are_applied_at_the_rate_of_the_network() -> None:
    segmenter = Segmenter(is_high, RULE)
    labels = np.zeros(400, np.uint8)
    labels[50:52], labels[100:150], labels[154:200] = 1, 1, 1
    sample = Sample(labels[:, None].astype(np.float32), "T", ("i",), RULE.spacing)
    np.testing.assert_array_equal(segment_signal(segmenter, sample).labels, labels)
    segmenter.event_rules = {1: EventRule(min_duration=0.03, max_gap=0.05)}
    expected = labels.copy()
    expected[50:52], expected[150:154] = 0, 1
    np.testing.assert_array_equal(segment_signal(segmenter, sample).labels, expected)
