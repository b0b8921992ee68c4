import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.confusion import ConfusionMatrix, nan_mean

CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("a", "b", "c")]


def make_matrix(target: list[int], prediction: list[int]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([target], np.uint8), np.array([prediction], np.uint8))
    return matrix


def test_iou_of_a_small_example() -> None:
    matrix = make_matrix([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    assert matrix.iou()[:2].tolist() == [1 / 3, 2 / 4]
    assert matrix.pixel_accuracy() == 3 / 5


def reference_metrics(target: np.ndarray, prediction: np.ndarray) -> dict[str, list[float]]:
    """The definitions, one pixel and one class at a time."""
    found: dict[str, list[float]] = {"iou": [], "dice": [], "precision": [], "recall": []}
    pixels = [
        (t, a) for t, a in zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True) if t != IGNORE_INDEX
    ]
    for label in range(3):
        hit = sum(t == label == a for t, a in pixels)
        missed = sum(t == label != a for t, a in pixels)
        false = sum(a == label != t for t, a in pixels)
        for name, part, whole in (
            ("iou", hit, hit + missed + false),
            ("dice", 2 * hit, 2 * hit + missed + false),
            ("precision", hit, hit + false),
            ("recall", hit, hit + missed),
        ):
            found[name].append(part / whole if whole else float("nan"))
    return found


masks = arrays.arrays(np.uint8, (2, 5, 6), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX]))


@settings(max_examples=40)
@given(masks)
def test_metrics_equal_their_definition(pair: np.ndarray) -> None:
    target, prediction = pair
    matrix = ConfusionMatrix(3)
    matrix.add(target, prediction)
    summary, expected = matrix.summary(CLASSES), reference_metrics(target, prediction)
    for name, values in expected.items():
        rates = summary[f"per_class_{name}"].values()
        as_floats = [float("nan") if rate is None else rate for rate in rates]
        assert as_floats == pytest.approx(values, abs=1e-6, nan_ok=True)
    for total, name in (
        ("miou", "iou"),
        ("mean_dice", "dice"),
        ("mean_precision", "precision"),
        ("mean_recall", "recall"),
    ):
        known = [value for value in expected[name] if value == value]
        assert summary[total] == (pytest.approx(sum(known) / len(known), abs=1e-6) if known else None)
    counted = target != IGNORE_INDEX
    right = float(np.mean(target[counted] == prediction[counted])) if counted.any() else None
    assert summary["pixel_accuracy"] == (None if right is None else pytest.approx(right, abs=1e-6))
    assert matrix.ignored_pixels == np.sum(~counted)


def test_torchmetrics_2866_absent_class_does_not_score_0() -> None:
    """Lightning-AI/torchmetrics#2866: absent classes counted as 0 in the mean."""
    summary = make_matrix([0, 0, 1], [0, 0, 1]).summary(CLASSES)
    assert [summary[name] for name in ("miou", "mean_dice", "mean_precision", "mean_recall")] == [1, 1, 1, 1]
    assert all(summary[f"per_class_{name}"]["c"] is None for name in ("iou", "dice", "precision", "recall"))


def test_smp_546_predictions_on_ignored_pixels_do_not_count() -> None:
    """qubvel-org/segmentation_models.pytorch#546: predictions on ignored pixels changed the metrics."""
    right = make_matrix([0, 0, 1, 1, IGNORE_INDEX, IGNORE_INDEX], [0, 0, 1, 0, 0, 0]).summary(CLASSES)
    for prediction in (1, 2, IGNORE_INDEX):
        assert (
            make_matrix([0, 0, 1, 1, IGNORE_INDEX, IGNORE_INDEX], [0, 0, 1, 0, prediction, prediction]).summary(CLASSES)
            == right
        )
    assert right["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-6)


def test_class_that_is_only_predicted_scores_0_and_has_no_recall() -> None:
    summary = make_matrix([0, 0], [0, 2]).summary(CLASSES)
    assert (summary["per_class_iou"]["c"], summary["per_class_dice"]["c"]) == (0, 0)
    assert summary["per_class_recall"]["c"] is None and summary["mean_recall"] == 0.5
    assert summary["per_class_precision"] == {"a": 1, "b": None, "c": 0} and summary["mean_precision"] == 0.5


@pytest.mark.parametrize("background", ["background", "_background_", "BG", "Background"])
def test_foreground_means_leave_out_the_background(background: str) -> None:
    """nnU-Net#2389: a mean over all classes hides a thin one behind the background."""
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in (background, "crack", "hole")]
    summary = make_matrix([0] * 90 + [1] * 8 + [2] * 2, [0] * 88 + [1] * 2 + [0] * 4 + [1] * 4 + [2] * 2).summary(
        classes
    )
    assert summary["per_class_iou"] == {background: 0.93617, "crack": 0.4, "hole": 1.0}
    assert summary["per_class_precision"]["crack"] == pytest.approx(4 / 6, abs=1e-6)
    assert summary["per_class_recall"]["crack"] == 0.5
    assert (summary["foreground_miou"], summary["miou"]) == (0.7, pytest.approx((0.93617 + 1.4) / 3, abs=1e-5))
    assert summary["foreground_dice"] == pytest.approx((8 / 14 + 1) / 2, abs=1e-6)
    assert make_matrix([0, 1], [0, 1]).summary(CLASSES)["foreground_miou"] is None  # no class is the background


def test_nan_mean_is_along_the_last_axis() -> None:
    nan = float("nan")
    assert nan_mean(np.array([[1.0, nan, 0.0], [nan, nan, 0.25], [nan] * 3])).tolist() == pytest.approx(
        [0.5, 0.25, nan], nan_ok=True
    )


def test_label_that_is_no_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="no class"):
        make_matrix([0, 3], [0, 0])


def test_counts_are_exact_beyond_float32() -> None:
    matrix, many = ConfusionMatrix(2), ConfusionMatrix(2)
    many.full_counts[0, 0] = 2**24
    for one_more in range(3):
        matrix += many
        matrix.add(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
        assert matrix.counts[0, 0] == (one_more + 1) * (2**24 + 1)
    assert matrix.counts.dtype == np.int64


def test_absent_class_is_nan() -> None:
    matrix = make_matrix([0, 1], [0, 1])
    assert np.isnan(matrix.iou()[2])
    assert matrix.miou() == 1.0
    assert matrix.summary(CLASSES)["per_class_iou"]["c"] is None


def test_ignored_target_does_not_count_and_prediction_of_255_is_a_miss() -> None:
    matrix = make_matrix([0, 0, IGNORE_INDEX, IGNORE_INDEX], [0, IGNORE_INDEX, 1, 2])
    assert matrix.iou()[0] == 0.5
    assert np.isnan(matrix.iou()[1])
    assert matrix.pixel_accuracy() == 0.5


def test_only_ignored_pixels_give_none() -> None:
    summary = make_matrix([IGNORE_INDEX], [0]).summary(CLASSES)
    assert summary["miou"] is None
    assert summary["pixel_accuracy"] is None


def test_streaming_equals_a_single_add() -> None:
    random = np.random.default_rng(0)
    target, prediction = random.integers(0, 3, (2, 40, 7)).astype(np.uint8)
    whole, parts, sums = ConfusionMatrix(3), ConfusionMatrix(3), ConfusionMatrix(3)
    whole.add(target, prediction)
    for row in range(40):
        parts.add(target[row : row + 1], prediction[row : row + 1])
    sums += parts
    assert (whole.counts == sums.counts).all()
    expected = [np.sum((target == c) & (prediction == c)) / np.sum((target == c) | (prediction == c)) for c in range(3)]
    assert whole.iou().tolist() == pytest.approx(expected)


def test_masks_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        ConfusionMatrix(2).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
