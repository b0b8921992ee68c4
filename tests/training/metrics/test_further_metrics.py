"""Specificity, false positive images, calibration and recall by object size of a split, and their intervals."""

import numpy as np
import pytest

from models.inference.segmenter import Prediction
from models.spec import ClassInfo
from training.evaluate import measure_image
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


def test_further_counts_survive_metrics_json_and_a_new_order() -> None:
    tally = make_tally()
    again = PerImageCounts.from_rows(tally.to_rows(), 2).reorder(tally.names[::-1])
    np.testing.assert_allclose(again.bins, tally.bins[::-1], atol=1e-3)
    np.testing.assert_array_equal(again.sizes, tally.sizes[::-1])
    assert tally.sizes[:, 0].sum() == 8 * 400
