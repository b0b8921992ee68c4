import json

import numpy as np
import pytest

from models.spec import VOID, ClassInfo
from training.metrics.bootstrap import FEWEST, RESAMPLES, Tally, interval, intervals, rates, resampled, summary
from training.metrics.boundary_iou import boundary_margins
from training.metrics.confusion import Confusion

CLASSES = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("a", "b", "c", "never")]


def masks(pictures: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of truth and answer, uint8 40 x 50, of blocks of three classes and void; some pictures go worse than others."""
    random, pairs = np.random.default_rng(seed), []
    for _ in range(pictures):
        truth = np.kron(random.choice([0, 1, 2, VOID], (4, 5), p=[0.5, 0.3, 0.1, 0.1]), np.ones((10, 10))).astype(
            np.uint8
        )
        wrong = random.random(truth.shape) < random.uniform(0.05, 0.6)
        pairs.append((truth, np.where(wrong, random.integers(0, 3, truth.shape), truth % 255).astype(np.uint8)))
    return pairs


def tallied(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 4) -> Tally:
    tally = Tally(classes)
    for index, (truth, answer) in enumerate(pairs):
        matrix = Confusion(classes)
        matrix.add(truth, answer)
        tally.add(f"picture {index}", matrix.margins, boundary_margins(truth, answer, classes))
    return tally


def miou_of(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """From all pixels at once."""
    truth, answer = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    truth, answer = truth[truth != VOID], answer[truth != VOID]
    found = [
        np.sum((truth == label) & (answer == label)) / np.sum((truth == label) | (answer == label))
        for label in range(3)
        if ((truth == label) | (answer == label)).any()
    ]
    return float(np.mean(found))


def test_the_counts_give_the_metrics_of_the_confusion_matrix() -> None:
    pairs = masks(5)
    matrix = Confusion(4)
    for pair in pairs:
        matrix.add(*pair)
    told = summary(tallied(pairs), CLASSES)
    for name, value in matrix.summary(CLASSES).items():
        assert told[name] == pytest.approx(value), name
    assert told["miou"] == pytest.approx(miou_of(pairs), abs=1e-6)


def test_the_mean_of_the_pictures_is_over_the_classes_in_each() -> None:
    pairs = masks(6)
    pairs[2] = (np.full((8, 8), VOID, np.uint8), np.zeros((8, 8), np.uint8))
    tally = tallied(pairs)
    assert np.isnan(tally.mious()[2])
    expected = [miou_of([pair]) for place, pair in enumerate(pairs) if place != 2]
    assert np.delete(tally.mious(), 2).tolist() == pytest.approx(expected)
    assert summary(tally, CLASSES)["picture_miou"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_resamples_are_of_whole_pictures() -> None:
    """Each figure is one that drawing pictures, with replacement, and counting all their pixels can give."""
    pairs = masks(2)
    possible = [miou_of([pairs[0]]), miou_of([pairs[1]]), miou_of(pairs)]
    drawn = resampled(tallied(pairs))["miou"]
    assert len(drawn) == RESAMPLES
    assert np.abs(drawn[:, None] - possible).min(axis=1).max() < 1e-12
    shares = [np.isclose(drawn, value).mean() for value in possible]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.06)


def test_the_interval_is_that_of_an_independent_bootstrap() -> None:
    pairs = masks(30)
    low, high = intervals(tallied(pairs), CLASSES)["miou"]
    random = np.random.default_rng(99)
    drawn = [miou_of([pairs[index] for index in random.integers(30, size=30)]) for _ in range(1000)]
    assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.15 * (high - low))
    assert low < miou_of(pairs) < high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Splits of 40 pictures out of a world of 2000, whose pixel accuracy is known."""
    random, held = np.random.default_rng(1), 0
    right = random.integers(0, 1001, 2000)
    for _ in range(120):
        tally = Tally(1)
        for index in random.integers(2000, size=40):
            counts = np.array([[right[index]], [1000], [right[index]]])
            tally.add(str(index), counts, counts)
        low, high = interval(resampled(tally)["pixel_accuracy"])
        held += bool(low <= right.mean() / 1000 <= high)
    assert 0.88 <= held / 120 <= 0.99


def test_more_pictures_narrow_the_interval() -> None:
    spans = [np.ptp(intervals(tallied(masks(number)), CLASSES)["miou"]) for number in (10, 160)]
    assert spans[1] < 0.5 * spans[0]


def test_the_same_pictures_give_the_same_interval() -> None:
    assert intervals(tallied(masks(7)), CLASSES) == intervals(tallied(masks(7)), CLASSES)


def test_what_is_absent_has_neither_figure_nor_interval() -> None:
    told = summary(tallied(masks(4)), CLASSES)
    assert told["absent"] == ["never"]
    for name in ("iou", "dice", "accuracy", "boundary_iou"):
        assert told[f"per_class_{name}"]["never"] is None
        assert told["intervals"][f"per_class_{name}"]["never"] is None
    json.dumps(told, allow_nan=False)


def test_a_class_of_one_picture_has_no_interval() -> None:
    """Every resample that holds it says the same, which is no certainty."""
    pairs = [(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)) for _ in range(5)]
    truth = np.zeros((9, 9), np.uint8)
    truth[:3] = 2
    pairs.append((truth, np.where(truth == 2, np.arange(9) % 2 * 2, 0).astype(np.uint8)))
    drawn = resampled(tallied(pairs))["per_class_iou"][:, 2]
    assert 0.2 < np.isnan(drawn).mean() < 0.5  # (5/6)^6 is 0.33
    told = intervals(tallied(pairs), CLASSES)
    assert told["per_class_iou"]["c"] is None
    assert told["miou"] is not None


@pytest.mark.parametrize("pictures", [1, FEWEST - 1])
def test_a_few_pictures_have_no_interval(pictures: int) -> None:
    told = intervals(tallied(masks(pictures)), CLASSES)
    assert told["miou"] is None and set(told["per_class_iou"].values()) == {None}


def test_enough_pictures_have_one() -> None:
    assert intervals(tallied(masks(FEWEST)), CLASSES)["miou"] is not None


def test_everything_void_has_nothing() -> None:
    void = np.full((5, 5), VOID, np.uint8)
    told = summary(tallied([(void, void), (void, np.zeros((5, 5), np.uint8))]), CLASSES)
    assert [told[name] for name in ("miou", "pixel_accuracy", "boundary_iou", "picture_miou", "mean_dice")] == [
        None
    ] * 5
    assert told["intervals"]["miou"] is None


def test_rows_and_back() -> None:
    tally = tallied(masks(5))
    back = Tally.of(json.loads(json.dumps(tally.rows())), 4)
    assert back.names == tally.names
    assert (back.counts == tally.counts).all()
    assert all(label < 3 for row in tally.rows() for label, *_ in row["counts"])  # what is absent takes no room


def test_another_order_is_the_same_pictures() -> None:
    tally = tallied(masks(4))
    other = tally.ordered(["picture 2", "picture 0", "picture 3", "picture 1"])
    assert (other.counts[1] == tally.counts[0]).all()
    for name, value in rates(other.counts.sum(axis=0)).items():
        np.testing.assert_array_equal(value, rates(tally.counts.sum(axis=0))[name])


def test_mmseg_2015_what_is_kept_of_a_picture_does_not_grow_with_it() -> None:
    """open-mmlab/mmsegmentation#2015: validation kept every prediction. Here it is six counts a class."""
    small, large = Tally(4), Tally(4)
    for tally, side in ((small, 8), (large, 2048)):
        mask = np.zeros((side, side), np.uint8)
        matrix = Confusion(4)
        matrix.add(mask, mask)
        tally.add("one", matrix.margins, boundary_margins(mask, mask, 4))
    assert small._counts[0].nbytes == large._counts[0].nbytes == 6 * 4 * 4
