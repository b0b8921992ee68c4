import numpy as np
import pytest

from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.bootstrap import (
    MIN_IMAGES,
    PerImageCounts,
    bootstrap_metrics,
    compute_metrics,
    confidence_intervals,
    metrics_with_boundaries,
)
from training.metrics.boundary_iou import boundary_counts
from training.metrics.confusion import ConfusionMatrix
from training.metrics.resampling import NUM_RESAMPLES, percentile_interval
from training.metrics.results import ImageResult

NAMES = ["background", "b", "c", "never"]
CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in NAMES]


def make_mask_pairs(images: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of ground truth and prediction, uint8 40 x 50: blocks of three classes and ignored; some images have more errors."""
    random, pairs = np.random.default_rng(seed), []
    for _ in range(images):
        target = np.kron(
            random.choice([0, 1, 2, IGNORE_INDEX], (4, 5), p=[0.5, 0.3, 0.1, 0.1]), np.ones((10, 10))
        ).astype(np.uint8)
        wrong = random.random(target.shape) < random.uniform(0.05, 0.6)
        pairs.append((target, np.where(wrong, random.integers(0, 3, target.shape), target % 255).astype(np.uint8)))
    return pairs


def count_pairs(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 4) -> PerImageCounts:
    tally = PerImageCounts(classes)
    for index, (target, prediction) in enumerate(pairs):
        matrix = ConfusionMatrix(classes)
        matrix.add(target, prediction)
        tally.add(f"image {index}", matrix.class_counts, boundary_counts(target, prediction, classes))
    return tally


def reference_miou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mIoU from all pixels at once."""
    target, prediction = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    target, prediction = target[target != IGNORE_INDEX], prediction[target != IGNORE_INDEX]
    ious = [
        np.sum((target == label) & (prediction == label)) / np.sum((target == label) | (prediction == label))
        for label in range(3)
        if ((target == label) | (prediction == label)).any()
    ]
    return float(np.mean(ious))


def test_metrics_equal_those_of_the_confusion_matrix() -> None:
    pairs = make_mask_pairs(5)
    matrix = ConfusionMatrix(4)
    for pair in pairs:
        matrix.add(*pair)
    metrics = compute_metrics(count_pairs(pairs), CLASSES)
    for name, value in matrix.summary(CLASSES).items():
        assert getattr(metrics, name) == pytest.approx(value), name
    assert metrics.miou == pytest.approx(reference_miou(pairs), abs=1e-6)
    assert metrics.foreground_miou == pytest.approx((metrics.per_class_iou["b"] + metrics.per_class_iou["c"]) / 2)
    assert metrics.foreground_miou != metrics.miou


def test_mean_image_miou_is_over_the_classes_in_each_image() -> None:
    pairs = make_mask_pairs(6)
    pairs[2] = (np.full((8, 8), IGNORE_INDEX, np.uint8), np.zeros((8, 8), np.uint8))
    tally = count_pairs(pairs)
    assert np.isnan(tally.mious()[2])
    expected = [reference_miou([pair]) for index, pair in enumerate(pairs) if index != 2]
    assert np.delete(tally.mious(), 2).tolist() == pytest.approx(expected)
    assert compute_metrics(tally, CLASSES).mean_image_miou == pytest.approx(np.mean(expected), abs=1e-6)


def test_bootstrap_resamples_whole_images() -> None:
    """Each value is one that sampling images, with replacement, and counting all their pixels can give."""
    pairs = make_mask_pairs(2)
    possible = [reference_miou([pairs[0]]), reference_miou([pairs[1]]), reference_miou(pairs)]
    mious = bootstrap_metrics(count_pairs(pairs), NAMES)["miou"]
    assert len(mious) == NUM_RESAMPLES
    assert np.abs(mious[:, None] - possible).min(axis=1).max() < 1e-12
    frequencies = [np.isclose(mious, value).mean() for value in possible]
    assert frequencies == pytest.approx([0.25, 0.25, 0.5], abs=0.06)


def test_interval_equals_that_of_an_independent_bootstrap() -> None:
    pairs = make_mask_pairs(30)
    low, high = confidence_intervals(count_pairs(pairs), CLASSES).miou or (0, 0)
    random = np.random.default_rng(99)
    sampled = [reference_miou([pairs[index] for index in random.integers(30, size=30)]) for _ in range(1000)]
    assert [low, high] == pytest.approx(np.percentile(sampled, [2.5, 97.5]), abs=0.15 * (high - low))
    assert low < reference_miou(pairs) < high


def test_intervals_contain_the_true_value_about_as_often_as_they_claim() -> None:
    """Splits of 40 images out of a population of 2000, whose pixel accuracy is known."""
    random, contained = np.random.default_rng(1), 0
    correct = random.integers(0, 1001, 2000)
    for _ in range(60):
        tally = PerImageCounts(1)
        for index in random.integers(2000, size=40):
            counts = np.array([[correct[index]], [1000], [correct[index]]])
            tally.add(str(index), counts, counts)
        low, high = percentile_interval(bootstrap_metrics(tally, ["a"])["pixel_accuracy"])
        contained += bool(low <= correct.mean() / 1000 <= high)
    assert 0.87 <= contained / 60 < 1


def test_percentile_interval_holds_the_middle_95_percent() -> None:
    values = np.column_stack([np.arange(1001.0), np.full(1001, np.nan)])
    np.testing.assert_allclose(percentile_interval(values), [[25, np.nan], [975, np.nan]])


def test_more_images_narrow_the_interval() -> None:
    few, many = (
        np.ptp(confidence_intervals(count_pairs(make_mask_pairs(number)), CLASSES).miou or ()) for number in (10, 160)
    )
    assert many < 0.5 * few


def test_same_images_give_the_same_interval() -> None:
    first, second = (confidence_intervals(count_pairs(make_mask_pairs(7)), CLASSES) for _ in range(2))
    assert first == second


def test_absent_class_has_neither_metric_nor_interval() -> None:
    metrics = compute_metrics(count_pairs(make_mask_pairs(4)), CLASSES)
    assert metrics.absent == ["never"]
    for name in (
        "per_class_iou",
        "per_class_dice",
        "per_class_precision",
        "per_class_recall",
        "per_class_boundary_iou",
    ):
        assert getattr(metrics, name)["never"] is None
        assert getattr(metrics.intervals, name)["never"] is None


def test_class_on_one_image_has_no_interval() -> None:
    """Every resample with that image gives the same value, which proves nothing."""
    pairs = [(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)) for _ in range(5)]
    target = np.zeros((9, 9), np.uint8)
    target[:3] = 2
    pairs.append((target, np.where(target == 2, np.arange(9) % 2 * 2, 0).astype(np.uint8)))
    ious = bootstrap_metrics(count_pairs(pairs), NAMES)["per_class_iou"][:, 2]
    assert 0.2 < np.isnan(ious).mean() < 0.5  # (5/6)^6 is 0.33
    intervals = confidence_intervals(count_pairs(pairs), CLASSES)
    assert intervals.per_class_iou["c"] is None
    assert intervals.miou is not None


@pytest.mark.parametrize("images", [1, MIN_IMAGES - 1, MIN_IMAGES])
def test_only_enough_images_have_an_interval(images: int) -> None:
    intervals = confidence_intervals(count_pairs(make_mask_pairs(images)), CLASSES)
    assert (intervals.miou is not None) == (images == MIN_IMAGES)
    if images < MIN_IMAGES:
        assert set(intervals.per_class_iou.values()) == {None}


def test_only_ignored_pixels_give_no_metrics() -> None:
    ignored = np.full((5, 5), IGNORE_INDEX, np.uint8)
    metrics = compute_metrics(count_pairs([(ignored, ignored), (ignored, np.zeros((5, 5), np.uint8))]), CLASSES)
    for name in ("miou", "pixel_accuracy", "boundary_iou", "mean_image_miou", "mean_dice"):
        assert getattr(metrics, name) is None
    assert metrics.intervals.miou is None


def test_rows_round_trip() -> None:
    tally = count_pairs(make_mask_pairs(5))
    rows = tally.to_rows()
    restored = PerImageCounts.from_rows([ImageResult.model_validate_json(row.model_dump_json()) for row in rows], 4)
    assert restored.names == tally.names
    assert (restored.counts == tally.counts).all()
    assert all(label < 3 for row in rows for label, *_ in row.counts)  # absent classes have no row


def test_reorder_keeps_the_counts() -> None:
    tally = count_pairs(make_mask_pairs(4))
    other = tally.reorder(["image 2", "image 0", "image 3", "image 1"])
    assert (other.counts[1] == tally.counts[0]).all()
    expected = metrics_with_boundaries(tally.counts.sum(axis=0), NAMES)
    for name, value in metrics_with_boundaries(other.counts.sum(axis=0), NAMES).items():
        np.testing.assert_array_equal(value, expected[name])


def test_mmseg_2015_counts_of_an_image_do_not_grow_with_its_size() -> None:
    """open-mmlab/mmsegmentation#2015: validation kept every prediction. Here it is six counts per class."""
    small, large = PerImageCounts(4), PerImageCounts(4)
    for tally, side in ((small, 8), (large, 512)):
        mask = np.zeros((side, side), np.uint8)
        matrix = ConfusionMatrix(4)
        matrix.add(mask, mask)
        tally.add("one", matrix.class_counts, boundary_counts(mask, mask, 4))
    assert small.images[0].counts.nbytes == large.images[0].counts.nbytes == 6 * 4 * 4
