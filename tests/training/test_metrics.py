import numpy as np
import pytest

from models.spec import VOID, ClassInfo
from training.metrics import Confusion

CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("a", "b", "c")]


def confusion(truth: list[int], answer: list[int]) -> Confusion:
    matrix = Confusion(3)
    matrix.add(np.array([truth], np.uint8), np.array([answer], np.uint8))
    return matrix


def test_iou_by_hand() -> None:
    matrix = confusion([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    assert matrix.iou()[:2].tolist() == [1 / 3, 2 / 4]
    assert matrix.pixel_accuracy() == 3 / 5


def test_a_class_that_is_nowhere_is_nan_and_not_averaged() -> None:
    matrix = confusion([0, 1], [0, 1])
    assert np.isnan(matrix.iou()[2])
    assert matrix.miou() == 1.0
    assert matrix.summary(CLASSES)["per_class_iou"]["c"] is None


def test_a_class_that_is_only_answered_scores_zero() -> None:
    assert confusion([0, 0], [0, 2]).iou()[2] == 0.0


def test_void_truth_does_not_count_and_void_answers_are_misses() -> None:
    matrix = confusion([0, 0, VOID, VOID], [0, VOID, 1, 2])
    assert matrix.iou()[0] == 0.5
    assert np.isnan(matrix.iou()[1])
    assert matrix.pixel_accuracy() == 0.5


def test_everything_void_is_absent_not_zero() -> None:
    summary = confusion([VOID], [0]).summary(CLASSES)
    assert summary["miou"] is None
    assert summary["pixel_accuracy"] is None


def test_streaming_equals_one_go() -> None:
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 3, (2, 40, 7)).astype(np.uint8)
    whole, parts, sums = Confusion(3), Confusion(3), Confusion(3)
    whole.add(truth, answer)
    for row in range(40):
        parts.add(truth[row : row + 1], answer[row : row + 1])
    sums += parts
    assert (whole.counts == sums.counts).all()
    expected = [np.sum((truth == c) & (answer == c)) / np.sum((truth == c) | (answer == c)) for c in range(3)]
    assert whole.iou().tolist() == pytest.approx(expected)


def test_sizes_must_be_equal() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        Confusion(2).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
