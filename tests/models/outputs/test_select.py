"""Filtering a prediction by the output options."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.errors import ConfigError
from models.imaging.decode import Labels
from models.inference.segmenter import Prediction
from models.outputs import OUTPUT_FORMATS, needs_confidence
from models.outputs.options import OutputOptions
from models.outputs.select import class_indices, filter_prediction, remove_small_regions
from models.spec import IGNORE_INDEX
from tests.models.outputs.test_outputs import SPEC, make_prediction

label_masks = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])
)


def test_the_defaults_return_the_prediction_itself() -> None:
    given = make_prediction()
    assert filter_prediction(given, SPEC, OutputOptions()) is given
    assert filter_prediction(given, SPEC, OutputOptions(alpha=0.1, simplify=3, masks="png", min_area=1)) is given


def test_other_classes_become_unlabeled() -> None:
    given = make_prediction()
    chosen = filter_prediction(given, SPEC, OutputOptions(classes=("class 4", "class 1")))
    kept = np.isin(given.labels, [1, 4])
    assert set(np.unique(given.labels)) == {0, 1, 2, 3, 4, 5, IGNORE_INDEX}
    np.testing.assert_array_equal(chosen.labels, np.where(kept, given.labels, IGNORE_INDEX))
    assert chosen.image is given.image and chosen.confidence is given.confidence


def test_two_classes_with_the_same_name_are_both_kept() -> None:
    twice = SPEC.model_copy(update={"classes": [*SPEC.classes, SPEC.classes[2]]})
    assert class_indices(("class 2",), twice) == [2, 6]


def test_the_error_for_an_unknown_class_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"The class 'clas 3' is not known; did you mean class 3\? The bundle has class 0, "
    ):
        filter_prediction(make_prediction(), SPEC, OutputOptions(classes=("class 1", "clas 3")))
    many = SPEC.model_copy(
        update={"classes": [SPEC.classes[0].model_copy(update={"name": f"c{n}"}) for n in range(99)]}
    )
    with pytest.raises(ConfigError, match=r"'zebra' is not known; the bundle has c0, .*, c11 and 87 more\.$"):
        class_indices(("zebra",), many)


@pytest.mark.parametrize("minimum", [1e-6, 0.3, 1.0])
def test_pixels_below_min_confidence_become_unlabeled(minimum: float) -> None:
    given = make_prediction()
    assert given.confidence is not None
    kept = given.confidence >= np.float32(minimum)
    assert 0 < kept.sum() < kept.size
    chosen = filter_prediction(given, SPEC, OutputOptions(min_confidence=minimum))
    np.testing.assert_array_equal(chosen.labels, np.where(kept, given.labels, IGNORE_INDEX))


def test_nan_is_below_min_confidence() -> None:
    probabilities = np.array([[np.nan, 0.9]], np.float32)
    given = Prediction(np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2), np.uint8), probabilities)
    assert filter_prediction(given, SPEC, OutputOptions(min_confidence=0.1)).labels.tolist() == [[IGNORE_INDEX, 0]]


def test_min_confidence_without_confidence() -> None:
    given = Prediction(make_prediction().image, make_prediction().labels)
    with pytest.raises(ValueError, match="confidence=True"):
        filter_prediction(given, SPEC, OutputOptions(min_confidence=0.5))


@given(label_masks, st.integers(2, 12))
@settings(deadline=None, max_examples=40)
def test_small_regions_become_unlabeled(labels: Labels, minimum: int) -> None:
    expected = labels.copy()
    for label in (0, 1, 2):
        count, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] < minimum:
                expected[regions == number] = IGNORE_INDEX
    np.testing.assert_array_equal(remove_small_regions(labels, minimum), expected)


def test_a_spiral_is_one_region() -> None:
    spiral = np.zeros((101, 101), np.uint8)
    for inset in range(0, 50, 2):
        spiral[inset, max(inset - 1, 0) : 101 - inset] = 1
        spiral[inset : 101 - inset, 100 - inset] = 1
        spiral[100 - inset, inset : 101 - inset] = 1
        spiral[inset + 2 : 101 - inset, inset] = 1
    pixels = int(spiral.sum())
    assert cv2.connectedComponents(spiral, connectivity=4)[0] == 2
    np.testing.assert_array_equal(remove_small_regions(spiral, pixels)[spiral == 1], 1)
    assert (remove_small_regions(spiral, pixels + 1)[spiral == 1] == IGNORE_INDEX).all()


def test_rows_are_not_connected_at_their_ends() -> None:
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    assert (remove_small_regions(labels, 2) == IGNORE_INDEX).all()


def test_min_area_applies_after_the_other_options() -> None:
    labels = np.zeros((4, 6), np.uint8)
    probabilities = np.ones((4, 6), np.float32)
    probabilities[:, 2] = 0.1  # leaves 8 pixels on the left and 12 on the right
    given = Prediction(np.zeros((4, 6, 3), np.uint8), labels, probabilities)
    chosen = filter_prediction(given, SPEC, OutputOptions(min_confidence=0.5, min_area=9))
    assert (chosen.labels[:, :3] == IGNORE_INDEX).all() and (chosen.labels[:, 3:] == 0).all()
    assert labels.max() == 0  # the prediction is untouched


@pytest.mark.parametrize(
    ("format", "options", "needed"),
    [
        (None, OutputOptions(), False),
        (None, OutputOptions(min_confidence=0.01), True),
        ("png", OutputOptions(), False),
        ("overlay", OutputOptions(), False),
        ("npy", OutputOptions(confidence=True), False),
        ("json", OutputOptions(), False),
        ("confidence", OutputOptions(), True),
        ("json", OutputOptions(confidence=True), True),
        *((format, OutputOptions(min_confidence=0.01), True) for format in OUTPUT_FORMATS["HW"]),
    ],
)
def test_needs_confidence(format: str | None, options: OutputOptions, needed: bool) -> None:
    assert needs_confidence(format, options) is needed


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"alpha": 1.01}, "alpha is 1.01; expected a number from 0 to 1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"min_confidence": -0.1}, "min_confidence is -0.1"),
        ({"min_area": -1}, "min_area is -1; expected a number of pixels"),
        ({"simplify": float("inf")}, "simplify is inf"),
        ({"simplify": float("nan")}, "simplify is nan"),
        ({"masks": "jpeg"}, "masks is 'jpeg'; choose from rle, polygons, png, none"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, float | str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OutputOptions(**wrong)  # type: ignore[arg-type]
