import json

import numpy as np
import pytest

from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.bootstrap import (
    MIN_IMAGES,
    NUM_RESAMPLES,
    PerImageCounts,
    bootstrap_metrics,
    compute_metrics,
    confidence_intervals,
    metrics_from_counts,
    percentile_interval,
)
from training.metrics.boundary_iou import boundary_counts
from training.metrics.confusion import ConfusionMatrix

CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("a", "b", "c", "never")]


def make_mask_pairs(images: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of truth and answer, uint8 40 x 50, of blocks of three classes and void; some images go worse than others."""
    random, pairs = np.random.default_rng(seed), []
    for _ in range(images):
        truth = np.kron(
            random.choice([0, 1, 2, IGNORE_INDEX], (4, 5), p=[0.5, 0.3, 0.1, 0.1]), np.ones((10, 10))
        ).astype(np.uint8)
        wrong = random.random(truth.shape) < random.uniform(0.05, 0.6)
        pairs.append((truth, np.where(wrong, random.integers(0, 3, truth.shape), truth % 255).astype(np.uint8)))
    return pairs


def count_pairs(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 4) -> PerImageCounts:
    tally = PerImageCounts(classes)
    for index, (truth, answer) in enumerate(pairs):
        matrix = ConfusionMatrix(classes)
        matrix.add(truth, answer)
        tally.add(f"image {index}", matrix.class_counts, boundary_counts(truth, answer, classes))
    return tally


def reference_miou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """From all pixels at once."""
    truth, answer = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    truth, answer = truth[truth != IGNORE_INDEX], answer[truth != IGNORE_INDEX]
    found = [
        np.sum((truth == label) & (answer == label)) / np.sum((truth == label) | (answer == label))
        for label in range(3)
        if ((truth == label) | (answer == label)).any()
    ]
    return float(np.mean(found))


def test_the_counts_give_the_metrics_of_the_confusion_matrix() -> None:
    pairs = make_mask_pairs(5)
    matrix = ConfusionMatrix(4)
    for pair in pairs:
        matrix.add(*pair)
    told = compute_metrics(count_pairs(pairs), CLASSES)
    for name, value in matrix.summary(CLASSES).items():
        assert told[name] == pytest.approx(value), name
    assert told["miou"] == pytest.approx(reference_miou(pairs), abs=1e-6)


def test_the_mean_of_the_images_is_over_the_classes_in_each() -> None:
    pairs = make_mask_pairs(6)
    pairs[2] = (np.full((8, 8), IGNORE_INDEX, np.uint8), np.zeros((8, 8), np.uint8))
    tally = count_pairs(pairs)
    assert np.isnan(tally.mious()[2])
    expected = [reference_miou([pair]) for place, pair in enumerate(pairs) if place != 2]
    assert np.delete(tally.mious(), 2).tolist() == pytest.approx(expected)
    assert compute_metrics(tally, CLASSES)["mean_image_miou"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_resamples_are_of_whole_images() -> None:
    """Each figure is one that drawing images, with replacement, and counting all their pixels can give."""
    pairs = make_mask_pairs(2)
    possible = [reference_miou([pairs[0]]), reference_miou([pairs[1]]), reference_miou(pairs)]
    drawn = bootstrap_metrics(count_pairs(pairs))["miou"]
    assert len(drawn) == NUM_RESAMPLES
    assert np.abs(drawn[:, None] - possible).min(axis=1).max() < 1e-12
    shares = [np.isclose(drawn, value).mean() for value in possible]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.06)


def test_the_interval_is_that_of_an_independent_bootstrap() -> None:
    pairs = make_mask_pairs(30)
    low, high = confidence_intervals(count_pairs(pairs), CLASSES)["miou"]
    random = np.random.default_rng(99)
    drawn = [reference_miou([pairs[index] for index in random.integers(30, size=30)]) for _ in range(1000)]
    assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.15 * (high - low))
    assert low < reference_miou(pairs) < high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Splits of 40 images out of a world of 2000, whose pixel accuracy is known."""
    random, held = np.random.default_rng(1), 0
    right = random.integers(0, 1001, 2000)
    for _ in range(120):
        tally = PerImageCounts(1)
        for index in random.integers(2000, size=40):
            counts = np.array([[right[index]], [1000], [right[index]]])
            tally.add(str(index), counts, counts)
        low, high = percentile_interval(bootstrap_metrics(tally)["pixel_accuracy"])
        held += bool(low <= right.mean() / 1000 <= high)
    assert 0.88 <= held / 120 <= 0.99


def test_more_images_narrow_the_interval() -> None:
    spans = [
        np.ptp(confidence_intervals(count_pairs(make_mask_pairs(number)), CLASSES)["miou"]) for number in (10, 160)
    ]
    assert spans[1] < 0.5 * spans[0]


def test_the_same_images_give_the_same_interval() -> None:
    assert confidence_intervals(count_pairs(make_mask_pairs(7)), CLASSES) == confidence_intervals(
        count_pairs(make_mask_pairs(7)), CLASSES
    )


def test_what_is_absent_has_neither_figure_nor_interval() -> None:
    told = compute_metrics(count_pairs(make_mask_pairs(4)), CLASSES)
    assert told["absent"] == ["never"]
    for name in ("iou", "dice", "accuracy", "boundary_iou"):
        assert told[f"per_class_{name}"]["never"] is None
        assert told["intervals"][f"per_class_{name}"]["never"] is None
    json.dumps(told, allow_nan=False)


def test_a_class_of_one_image_has_no_interval() -> None:
    """Every resample that holds it says the same, which is no certainty."""
    pairs = [(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)) for _ in range(5)]
    truth = np.zeros((9, 9), np.uint8)
    truth[:3] = 2
    pairs.append((truth, np.where(truth == 2, np.arange(9) % 2 * 2, 0).astype(np.uint8)))
    drawn = bootstrap_metrics(count_pairs(pairs))["per_class_iou"][:, 2]
    assert 0.2 < np.isnan(drawn).mean() < 0.5  # (5/6)^6 is 0.33
    told = confidence_intervals(count_pairs(pairs), CLASSES)
    assert told["per_class_iou"]["c"] is None
    assert told["miou"] is not None


@pytest.mark.parametrize("images", [1, MIN_IMAGES - 1])
def test_a_few_images_have_no_interval(images: int) -> None:
    told = confidence_intervals(count_pairs(make_mask_pairs(images)), CLASSES)
    assert told["miou"] is None and set(told["per_class_iou"].values()) == {None}


def test_enough_images_have_one() -> None:
    assert confidence_intervals(count_pairs(make_mask_pairs(MIN_IMAGES)), CLASSES)["miou"] is not None


def test_everything_void_has_nothing() -> None:
    void = np.full((5, 5), IGNORE_INDEX, np.uint8)
    told = compute_metrics(count_pairs([(void, void), (void, np.zeros((5, 5), np.uint8))]), CLASSES)
    assert [told[name] for name in ("miou", "pixel_accuracy", "boundary_iou", "mean_image_miou", "mean_dice")] == [
        None
    ] * 5
    assert told["intervals"]["miou"] is None


def test_rows_and_back() -> None:
    tally = count_pairs(make_mask_pairs(5))
    back = PerImageCounts.from_rows(json.loads(json.dumps(tally.to_rows())), 4)
    assert back.names == tally.names
    assert (back.counts == tally.counts).all()
    assert all(label < 3 for row in tally.to_rows() for label, *_ in row["counts"])  # what is absent takes no room


def test_another_order_is_the_same_images() -> None:
    tally = count_pairs(make_mask_pairs(4))
    other = tally.reorder(["image 2", "image 0", "image 3", "image 1"])
    assert (other.counts[1] == tally.counts[0]).all()
    for name, value in metrics_from_counts(other.counts.sum(axis=0)).items():
        np.testing.assert_array_equal(value, metrics_from_counts(tally.counts.sum(axis=0))[name])


def test_mmseg_2015_what_is_kept_of_an_image_does_not_grow_with_it() -> None:
    """open-mmlab/mmsegmentation#2015: validation kept every prediction. Here it is six counts a class."""
    small, large = PerImageCounts(4), PerImageCounts(4)
    for tally, side in ((small, 8), (large, 2048)):
        mask = np.zeros((side, side), np.uint8)
        matrix = ConfusionMatrix(4)
        matrix.add(mask, mask)
        tally.add("one", matrix.class_counts, boundary_counts(mask, mask, 4))
    assert small._counts[0].nbytes == large._counts[0].nbytes == 6 * 4 * 4
