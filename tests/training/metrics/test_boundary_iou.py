import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.spec import IGNORE_INDEX
from training.metrics.boundary_iou import boundary_counts, boundary_mask, boundary_width
from training.metrics.confusion import iou


def reference_boundary(mask: np.ndarray, depth: int) -> np.ndarray:
    """The definition, a pixel at a time: bool H x W -> those of its pixels with anything else, or no image, in reach."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for other_y in range(y - depth, y + depth + 1):
            for other_x in range(x - depth, x + depth + 1):
                inside = 0 <= other_y < height and 0 <= other_x < width
                found[y, x] |= not inside or not mask[other_y, other_x]
    return found


def reference_counts(truth: np.ndarray, answer: np.ndarray, classes: int, depth: int) -> np.ndarray:
    """The same for label maps: 3 x C."""
    found = np.zeros((3, classes), int)
    for label in range(classes):
        one = reference_boundary(truth == label, depth)
        two = reference_boundary((answer == label) & (truth != IGNORE_INDEX), depth)
        found[:, label] = np.sum(one & two), one.sum(), two.sum()
    return found


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
labels = st.sampled_from([0, 0, 0, 1, 2, IGNORE_INDEX])


@given(st.data(), sizes)
def test_it_is_its_definition(data: st.DataObject, size: tuple[int, int]) -> None:
    truth, answer = data.draw(arrays.arrays(np.uint8, (2, *size), elements=labels, fill=st.just(np.uint8(1))))
    assert (
        boundary_counts(truth, answer, 3).tolist() == reference_counts(truth, answer, 3, boundary_width(size)).tolist()
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deeper_boundaries_are_their_definition_too(depth: int) -> None:
    mask = np.kron(np.random.default_rng(depth).integers(0, 3, (4, 5)), np.ones((5, 5))).astype(np.uint8)
    expected = np.any([reference_boundary(mask == label, depth) for label in range(3)], axis=0)
    assert (boundary_mask(mask, depth) == expected).all()
    assert not expected.all()


def test_it_is_that_of_the_authors_code() -> None:
    """boundary-iou-api erodes each mask d times by 3 x 3, with the outside of the image as no mask."""
    import cv2

    truth = np.zeros((300, 400), np.uint8)
    cv2.circle(truth, (200, 150), 80, 1, -1)
    cv2.rectangle(truth, (0, 0), (90, 60), 1, -1)
    answer = np.roll(truth, 6, axis=1)
    depth = round(0.02 * 500)
    regions = []
    for mask in (truth, answer):
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=depth)[1:-1, 1:-1]
        regions.append((mask - eroded).astype(bool))
    hit, total, said = boundary_counts(truth, answer, 2)[:, 1]
    assert hit / (total + said - hit) == np.sum(regions[0] & regions[1]) / np.sum(regions[0] | regions[1])


@pytest.mark.parametrize(("size", "depth"), [((360, 480), 12), ((1, 1), 1), ((10, 10), 1), ((3000, 4000), 100)])
def test_the_depth_is_2_percent_of_the_diagonal(size: tuple[int, int], depth: int) -> None:
    assert boundary_width(size) == depth


def test_it_feels_a_contour_that_iou_does_not() -> None:
    truth = np.zeros((500, 500), np.uint8)
    truth[50:450, 50:450] = 1
    shifted = np.roll(truth, 8, axis=0)
    whole = np.sum((truth == 1) & (shifted == 1)) / np.sum((truth == 1) | (shifted == 1))
    edges = iou(*boundary_counts(truth, shifted, 2))[1]
    assert whole > 0.95 and edges < 0.6


@pytest.mark.parametrize("said", [0, 1, IGNORE_INDEX])
def test_what_is_answered_in_void_does_not_count(said: int) -> None:
    truth = np.zeros((60, 80), np.uint8)
    truth[20:40, 20:60] = 1
    truth[18:22] = IGNORE_INDEX
    answer = truth.copy()
    answer[truth == IGNORE_INDEX] = said
    margins = boundary_counts(truth, answer, 2)
    assert iou(*margins).tolist() == [1, 1]
    assert margins[1].sum() <= np.sum(truth != IGNORE_INDEX)


def test_void_answers_are_misses() -> None:
    truth, answer = np.zeros((60, 80), np.uint8), np.full((60, 80), IGNORE_INDEX, np.uint8)
    assert boundary_counts(truth, answer, 1)[[0, 2], 0].tolist() == [0, 0]
    assert iou(*boundary_counts(truth, answer, 1)).tolist() == [0]
