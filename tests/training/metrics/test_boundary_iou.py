import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.spec import IGNORE_INDEX
from training.metrics.boundary_iou import boundary_counts, boundary_mask, boundary_width
from training.metrics.confusion import iou


def reference_boundary(mask: np.ndarray, depth: int) -> np.ndarray:
    """The definition: the pixels of a mask, bool H x W, whose window holds another pixel or leaves the image."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for other_y in range(y - depth, y + depth + 1):
            for other_x in range(x - depth, x + depth + 1):
                inside = 0 <= other_y < height and 0 <= other_x < width
                found[y, x] |= not inside or not mask[other_y, other_x]
    return found


def reference_counts(target: np.ndarray, prediction: np.ndarray, classes: int, depth: int) -> np.ndarray:
    """`boundary_counts` by the definition: 3 x C."""
    found = np.zeros((3, classes), int)
    for label in range(classes):
        one = reference_boundary(target == label, depth)
        two = reference_boundary((prediction == label) & (target != IGNORE_INDEX), depth)
        found[:, label] = np.sum(one & two), one.sum(), two.sum()
    return found


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
labels = st.sampled_from([0, 0, 0, 1, 2, IGNORE_INDEX])


@settings(max_examples=40)
@given(st.data(), sizes)
def test_counts_equal_the_definition(data: st.DataObject, size: tuple[int, int]) -> None:
    target, prediction = data.draw(arrays.arrays(np.uint8, (2, *size), elements=labels, fill=st.just(np.uint8(1))))
    assert (
        boundary_counts(target, prediction, 3).tolist()
        == reference_counts(target, prediction, 3, boundary_width(size)).tolist()
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_wide_boundaries_equal_the_definition(depth: int) -> None:
    mask = np.kron(np.random.default_rng(depth).integers(0, 3, (4, 5)), np.ones((5, 5))).astype(np.uint8)
    expected = np.any([reference_boundary(mask == label, depth) for label in range(3)], axis=0)
    assert (boundary_mask(mask, depth) == expected).all()
    assert not expected.all()


def test_boundary_iou_equals_the_authors_code() -> None:
    """boundary-iou-api erodes each mask d times by 3 x 3, with the outside of the image as no mask."""
    import cv2

    target = np.zeros((300, 400), np.uint8)
    cv2.circle(target, (200, 150), 80, 1, -1)
    cv2.rectangle(target, (0, 0), (90, 60), 1, -1)
    prediction = np.roll(target, 6, axis=1)
    depth = round(0.02 * 500)
    regions = []
    for mask in (target, prediction):
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=depth)[1:-1, 1:-1]
        regions.append((mask - eroded).astype(bool))
    hits, of_target, of_prediction = boundary_counts(target, prediction, 2)[:, 1]
    assert hits / (of_target + of_prediction - hits) == np.sum(regions[0] & regions[1]) / np.sum(
        regions[0] | regions[1]
    )


@pytest.mark.parametrize(
    ("size", "depth"), [((360, 480), 12), ((1, 1), 1), ((10, 10), 1), ((3000, 4000), 100), ((500, 600), 16)]
)
def test_boundary_width_is_2_percent_of_the_diagonal(size: tuple[int, int], depth: int) -> None:
    assert boundary_width(size) == depth


def test_boundary_iou_reacts_to_a_shift_that_iou_hides() -> None:
    target = np.zeros((500, 500), np.uint8)
    target[50:450, 50:450] = 1
    shifted = np.roll(target, 8, axis=0)
    whole = np.sum((target == 1) & (shifted == 1)) / np.sum((target == 1) | (shifted == 1))
    edges = iou(*boundary_counts(target, shifted, 2))[1]
    assert whole > 0.95 and edges < 0.6


@pytest.mark.parametrize("label", [0, 1, IGNORE_INDEX])
def test_prediction_on_ignored_pixels_does_not_count(label: int) -> None:
    target = np.zeros((60, 80), np.uint8)
    target[20:40, 20:60] = 1
    target[18:22] = IGNORE_INDEX
    prediction = target.copy()
    prediction[target == IGNORE_INDEX] = label
    counts = boundary_counts(target, prediction, 2)
    assert iou(*counts).tolist() == [1, 1]
    assert counts[1].sum() <= np.sum(target != IGNORE_INDEX)


def test_prediction_of_255_is_a_miss() -> None:
    target, prediction = np.zeros((60, 80), np.uint8), np.full((60, 80), IGNORE_INDEX, np.uint8)
    assert boundary_counts(target, prediction, 1)[[0, 2], 0].tolist() == [0, 0]
    assert iou(*boundary_counts(target, prediction, 1)).tolist() == [0]
