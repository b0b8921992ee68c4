import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.confusion import ConfusionMatrix, nan_mean

CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("a", "b", "c")]


def make_matrix(truth: list[int], answer: list[int]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([truth], np.uint8), np.array([answer], np.uint8))
    return matrix


def test_iou_by_hand() -> None:
    matrix = make_matrix([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    assert matrix.iou()[:2].tolist() == [1 / 3, 2 / 4]
    assert matrix.pixel_accuracy() == 3 / 5


def reference_metrics(truth: np.ndarray, answer: np.ndarray) -> dict[str, list[float]]:
    """The definitions, a pixel and a class at a time."""
    found: dict[str, list[float]] = {"iou": [], "dice": [], "accuracy": []}
    pixels = [(t, a) for t, a in zip(truth.ravel().tolist(), answer.ravel().tolist(), strict=True) if t != IGNORE_INDEX]
    for label in range(3):
        hit = sum(t == label == a for t, a in pixels)
        missed = sum(t == label != a for t, a in pixels)
        false = sum(a == label != t for t, a in pixels)
        for name, part, whole in (
            ("iou", hit, hit + missed + false),
            ("dice", 2 * hit, 2 * hit + missed + false),
            ("accuracy", hit, hit + missed),
        ):
            found[name].append(part / whole if whole else float("nan"))
    return found


masks = arrays.arrays(np.uint8, (2, 5, 6), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX]))


@given(masks)
def test_every_metric_is_its_definition(pair: np.ndarray) -> None:
    truth, answer = pair
    matrix = ConfusionMatrix(3)
    matrix.add(truth, answer)
    summary, expected = matrix.summary(CLASSES), reference_metrics(truth, answer)
    for name, values in expected.items():
        told = [summary[f"per_class_{name}"][entry.name] for entry in CLASSES]
        assert [float("nan") if value is None else value for value in told] == pytest.approx(
            values, abs=1e-6, nan_ok=True
        )
    for total, name in (("miou", "iou"), ("mean_dice", "dice"), ("mean_accuracy", "accuracy")):
        there = [value for value in expected[name] if value == value]
        assert summary[total] == (pytest.approx(sum(there) / len(there), abs=1e-6) if there else None)
    counted = truth != IGNORE_INDEX
    right = float(np.mean(truth[counted] == answer[counted])) if counted.any() else None
    assert summary["pixel_accuracy"] == (None if right is None else pytest.approx(right, abs=1e-6))
    assert matrix.ignored_pixels == np.sum(~counted)


def test_torchmetrics_2866_a_class_that_is_absent_does_not_score_0() -> None:
    """Lightning-AI/torchmetrics#2866: classes that are not there came into the mean as 0."""
    summary = make_matrix([0, 0, 1], [0, 0, 1]).summary(CLASSES)
    assert [summary[name] for name in ("miou", "mean_dice", "mean_accuracy")] == [1, 1, 1]
    assert all(summary[f"per_class_{name}"]["c"] is None for name in ("iou", "dice", "accuracy"))


def test_smp_546_the_ignored_class_is_not_averaged_in() -> None:
    """qubvel-org/segmentation_models.pytorch#546: whatever is answered on ignored pixels, no figure moves."""
    right = make_matrix([0, 0, 1, 1, IGNORE_INDEX, IGNORE_INDEX], [0, 0, 1, 0, 0, 0]).summary(CLASSES)
    for answer in (1, 2, IGNORE_INDEX):
        assert (
            make_matrix([0, 0, 1, 1, IGNORE_INDEX, IGNORE_INDEX], [0, 0, 1, 0, answer, answer]).summary(CLASSES)
            == right
        )
    assert right["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-6)


def test_a_class_that_is_only_answered_has_no_accuracy() -> None:
    summary = make_matrix([0, 0], [0, 2]).summary(CLASSES)
    assert (summary["per_class_iou"]["c"], summary["per_class_dice"]["c"]) == (0, 0)
    assert summary["per_class_accuracy"]["c"] is None and summary["mean_accuracy"] == 0.5


def test_means_go_along_the_last_axis_without_what_is_nan() -> None:
    nan = float("nan")
    assert nan_mean(np.array([[1.0, nan, 0.0], [nan, nan, 0.25], [nan] * 3])).tolist() == pytest.approx(
        [0.5, 0.25, nan], nan_ok=True
    )


def test_a_label_that_is_no_class_is_refused_and_not_dropped() -> None:
    with pytest.raises(ValueError, match="no class"):
        make_matrix([0, 3], [0, 0])


def test_counts_are_exact_where_float32_would_not_be() -> None:
    matrix, half = ConfusionMatrix(2), ConfusionMatrix(2)
    half.add(np.zeros((4096, 4097), np.uint8), np.zeros((4096, 4097), np.uint8))
    for _ in range(3):
        matrix += half
    assert matrix.counts[0, 0] == 3 * 4096 * 4097
    assert matrix.counts.dtype == np.int64


def test_a_class_that_is_nowhere_is_nan_and_not_averaged() -> None:
    matrix = make_matrix([0, 1], [0, 1])
    assert np.isnan(matrix.iou()[2])
    assert matrix.miou() == 1.0
    assert matrix.summary(CLASSES)["per_class_iou"]["c"] is None


def test_a_class_that_is_only_answered_scores_zero() -> None:
    assert make_matrix([0, 0], [0, 2]).iou()[2] == 0.0


def test_void_truth_does_not_count_and_void_answers_are_misses() -> None:
    matrix = make_matrix([0, 0, IGNORE_INDEX, IGNORE_INDEX], [0, IGNORE_INDEX, 1, 2])
    assert matrix.iou()[0] == 0.5
    assert np.isnan(matrix.iou()[1])
    assert matrix.pixel_accuracy() == 0.5


def test_everything_void_is_absent_not_zero() -> None:
    summary = make_matrix([IGNORE_INDEX], [0]).summary(CLASSES)
    assert summary["miou"] is None
    assert summary["pixel_accuracy"] is None


def test_streaming_equals_one_go() -> None:
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 3, (2, 40, 7)).astype(np.uint8)
    whole, parts, sums = ConfusionMatrix(3), ConfusionMatrix(3), ConfusionMatrix(3)
    whole.add(truth, answer)
    for row in range(40):
        parts.add(truth[row : row + 1], answer[row : row + 1])
    sums += parts
    assert (whole.counts == sums.counts).all()
    expected = [np.sum((truth == c) & (answer == c)) / np.sum((truth == c) | (answer == c)) for c in range(3)]
    assert whole.iou().tolist() == pytest.approx(expected)


def test_sizes_must_be_equal() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        ConfusionMatrix(2).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
