"""Specificity, false positive images, calibration and recall by object size of a split, and their intervals."""

import numpy as np
import pytest

from models.inference.segmenter import Prediction, Segmenter
from models.spec import ClassInfo, InputRule
from tests.fixtures_bundles import QUIET_CONSOLE
from tests.training.fake_dataset import make_fake_dataset
from training.evaluate import evaluate_split, measure_image
from training.metrics.bootstrap import PerImageCounts, compute_metrics

CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("background", "car")]


def make_tally() -> PerImageCounts:
    """Eight images of 20 x 20 pixels. Six have no car: two of these show one pixel of it. Two have one that is half found."""
    tally, image = PerImageCounts(2), np.zeros((20, 20, 3), np.uint8)
    for index in range(8):
        target, labels = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
        if index < 2:
            labels[0, 0] = 1
        elif index >= 6:
            target[4:8, 4:8], labels[4:8, 4:6] = 1, 1
        prediction = Prediction(image, labels, np.full((20, 20), 0.95, np.float32))
        single, *counts = measure_image(image, target, prediction, 2, True)
        tally.add(f"{index}", single.class_counts, *counts)
    return tally


def test_further_metrics_of_a_split() -> None:
    metrics = compute_metrics(make_tally(), CLASSES)
    background = 8 * 400 - 2 * 16
    assert metrics.per_class_specificity["car"] == pytest.approx((background - 2) / background, abs=1e-6)
    assert metrics.per_class_false_positive_rate == {"background": None, "car": pytest.approx(2 / 6, abs=1e-6)}
    assert metrics.ece == pytest.approx(abs((3200 - 18) / 3200 - 0.95), abs=1e-6)
    assert metrics.recall_by_size["up to 8 px"] == 0.5
    assert metrics.recall_by_size["up to 64 px"] is None

    low, high = metrics.intervals.per_class_false_positive_rate["car"] or (2, 2)
    assert 0 <= low < 1 / 3 < high < 1
    low, high = metrics.intervals.ece or (2, 2)
    assert low <= (metrics.ece or 0) <= high
    assert metrics.intervals.recall_by_size["up to 8 px"] is None  # two images have such objects


def test_thresholds_of_two_classes() -> None:
    """A network whose probability of the second class is the red value; 0.5 gives its labels."""
    reds = np.random.default_rng(0).integers(1, 255, (8, 20, 20))
    targets = [(red + 60 > np.random.default_rng(1).integers(0, 255, (20, 20))).astype(np.uint8) for red in reds]

    def run(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, np.ndarray]:
        probability = (images[..., 0].astype(np.float32) + 0.5) / 256
        scores = np.stack([np.zeros_like(probability), np.log(probability / (1 - probability))], axis=1)
        return scores.argmax(axis=1).astype(np.uint8), scores

    def make(index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.repeat(reds[index, ..., None], 3, axis=2).astype(np.uint8), targets[index]

    samples = make_fake_dataset(8, make)
    _, tally = evaluate_split(Segmenter(run, InputRule(rule="native")), samples, QUIET_CONSOLE, all_metrics=True)
    metrics = compute_metrics(tally, samples.classes)
    positive = np.stack(targets) == 1
    for threshold in (0.3, 0.5, 0.85):
        found = (reds + 0.5) / 256 >= threshold
        point = next(each for each in metrics.threshold_curve if each.threshold == threshold)
        assert point.precision == pytest.approx(positive[found].mean(), abs=1e-6)
        assert point.recall == pytest.approx(found[positive].mean(), abs=1e-6)
        if threshold == 0.5:
            assert point.f1 == metrics.per_class_dice["class 1"]
    bins = (reds.ravel() + 0.5) * 20 // 256
    order = np.argsort(-(bins), kind="stable")
    hits = positive.ravel()[order].cumsum()
    last = np.flatnonzero(np.diff(np.append(bins[order], -1)))  # of each of the 20 bins
    steps = np.diff(np.append(0, hits[last])) / positive.sum()
    assert metrics.average_precision == pytest.approx(float((hits[last] / (last + 1) * steps).sum()), abs=1e-6)
    low, high = metrics.intervals.average_precision or (2, 2)
    assert low < metrics.average_precision < high


def test_further_counts_survive_metrics_json_and_a_new_order() -> None:
    tally = make_tally()
    again = PerImageCounts.from_rows(tally.to_rows(), 2).reorder(tally.names[::-1])
    np.testing.assert_allclose(again.bins, tally.bins[::-1], atol=1e-3)
    np.testing.assert_array_equal(again.sizes, tally.sizes[::-1])
    scored = PerImageCounts(2)
    counts = np.arange(40).reshape(2, 20) * (np.arange(20) != 3)
    scored.add("a", np.zeros((3, 2), np.int64), np.zeros((3, 2), np.int64), scores=counts)
    np.testing.assert_array_equal(PerImageCounts.from_rows(scored.to_rows(), 2).scores[0], counts)
    assert tally.sizes[:, 0].sum() == 8 * 400
