"""Polygons, compared with independent ways of filling and measuring them."""

from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.errors import ImageTooLargeError
from models.imaging.decode import Labels
from models.outputs import polygons
from models.outputs.polygons import Polygon, Ring, trace_polygons
from models.spec import IGNORE_INDEX
from training.data.formats.rasterize import polygon_runs

CLASSES = 3
label_masks = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])
)


def fill_rings(rings: list[Ring], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose center is inside, by the even-odd rule: bool H x W."""
    columns = np.zeros(size[0] * size[1], np.bool_)
    for ring in rings:
        assert ring[0] == ring[-1]
        for start, stop in polygon_runs(np.array(ring[:-1], np.float64), size).tolist():
            columns[start:stop] ^= True
    return columns.reshape(size[1], size[0]).T


def shoelace_area(ring: Ring) -> float:
    """The area by the shoelace formula, positive for a counterclockwise ring with y pointing up."""
    return sum(x * y_next - x_next * y for (x, y), (x_next, y_next) in pairwise(ring)) / 2


def connected_regions(mask: np.ndarray) -> list[bytes]:
    count, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return sorted((numbers == number).tobytes() for number in range(1, count))


def check_exact(labels: Labels, traced: dict[int, list[Polygon]]) -> None:
    """Assert that each region has one polygon, with exactly its pixels."""
    assert set(traced) == set(np.unique(labels).tolist()) - {IGNORE_INDEX}
    for label, found in traced.items():
        assert sorted(fill_rings(polygon, labels.shape).tobytes() for polygon in found) == connected_regions(
            labels == label
        )


@given(label_masks)
@settings(deadline=None, max_examples=40)
def test_filling_the_polygons_restores_the_regions(labels: Labels) -> None:
    check_exact(labels, trace_polygons(labels, CLASSES))


@given(label_masks)
@settings(deadline=None, max_examples=40)
def test_rings_are_simple_and_oriented_as_in_geojson(labels: Labels) -> None:
    for found in trace_polygons(labels, CLASSES).values():
        for outline, *holes in found:
            assert shoelace_area(outline) > 0
            assert all(shoelace_area(hole) < 0 for hole in holes)
            inside = fill_rings([outline], labels.shape)
            for ring in (outline, *holes):
                assert max(Counter(map(tuple, ring[:-1])).values()) == 1
                steps = np.diff(np.array([*ring, ring[1]]), axis=0)
                assert ((steps != 0).sum(axis=1) == 1).all()  # along rows and columns
                assert ((steps[1:] != 0) != (steps[:-1] != 0)).all()  # and a turn at every corner
                assert (inside | ~fill_rings([ring], labels.shape)).all()
            assert (
                sum(map(int, map(shoelace_area, holes))) + shoelace_area(outline)
                == fill_rings([outline, *holes], labels.shape).sum()
            )


@pytest.mark.parametrize(("grain", "seed"), [(1, 0), (9, 0), (9, 1)])
def test_a_large_map_of_noise(seed: int, grain: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 4, (48 // grain, 64 // grain)).astype(np.uint8)
    labels = cv2.resize(noise, (64, 48), interpolation=cv2.INTER_NEAREST)
    labels[labels == 3] = IGNORE_INDEX
    for label, found in trace_polygons(labels, CLASSES).items():
        rings = [ring for polygon in found for ring in polygon]
        np.testing.assert_array_equal(fill_rings(rings, labels.shape), labels == label)
        assert len(found) == len(connected_regions(labels == label))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["1"], [[[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]]),
        # to the image's edges
        (["11", "11"], [[[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]]),
        # pixels that touch at a corner are two regions
        (["1.", ".1"], [[[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]], [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]]]),
        ([".1", "1."], [[[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]], [[[0, 1], [1, 1], [1, 2], [0, 2], [0, 1]]]]),
        ([".."], []),
    ],
)
def test_polygons_of_small_maps(rows: list[str], expected: list[Polygon]) -> None:
    labels = np.array([[IGNORE_INDEX if symbol == "." else int(symbol) for symbol in row] for row in rows], np.uint8)
    assert trace_polygons(labels, CLASSES).get(1, []) == expected


def test_an_island_in_a_hole_in_an_island_in_a_hole() -> None:
    labels = np.zeros((11, 13), np.uint8)
    for inset in range(1, 5):
        labels[inset : 11 - inset, inset : 13 - inset] = inset % 2
    traced = trace_polygons(labels, 2)
    check_exact(labels, traced)
    assert {label: [len(polygon) for polygon in found] for label, found in traced.items()} == {
        0: [2, 2, 1],
        1: [2, 2],
    }


def test_a_ring_that_touches_itself_is_split_into_outline_and_hole() -> None:
    closing = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)  # the ring of ones closes only at a corner
    outline, hole = trace_polygons(closing, 2)[1][0]
    assert [1, 1] in hole and [2, 2] in hole and [2, 2] in outline
    assert (shoelace_area(outline), shoelace_area(hole)) == (8, -1)
    diagonal = np.ones((4, 4), np.uint8)
    diagonal[1, 1] = diagonal[2, 2] = 0
    assert [shoelace_area(ring) for ring in trace_polygons(diagonal, 2)[1][0]] == [16, -1, -1]


def test_labels_without_class_have_no_polygons() -> None:
    labels = np.array([[0, 5, 254, IGNORE_INDEX]], np.uint8)
    assert set(trace_polygons(labels, 5)) == {0}
    assert set(trace_polygons(labels, 255)) == {0, 5, 254}
    assert trace_polygons(np.full((3, 4), IGNORE_INDEX, np.uint8), 255) == {}


def disc(radius: int) -> Labels:
    y, x = np.mgrid[: 2 * radius + 9, : 2 * radius + 9] - radius - 4
    return (x * x + y * y <= radius * radius).astype(np.uint8)


@pytest.mark.parametrize("tolerance", [1.0, 2.5])
def test_simplified_outlines_stay_within_the_tolerance(tolerance: float) -> None:
    labels = disc(40)
    exact, simple = (trace_polygons(labels, 2, by)[1][0][0] for by in (0.0, tolerance))
    assert 4 < len(simple) < len(exact) / 3
    assert shoelace_area(simple) > 0
    outline = np.array(simple, np.int32)
    distances = [abs(cv2.pointPolygonTest(outline, (float(x), float(y)), True)) for x, y in exact]
    assert 0 < max(distances) <= tolerance
    assert len(trace_polygons(labels, 2, 2.5)[1][0][0]) <= len(trace_polygons(labels, 2, 1.0)[1][0][0])


def test_collapsed_rings_are_left_out() -> None:
    labels = disc(20)
    labels[22:25, 10:30] = 0  # a gap of three rows
    labels[2, 2] = 1  # and a single pixel
    assert [len(polygon) for polygon in trace_polygons(labels, 2)[1]] == [1, 2]
    assert [len(polygon) for polygon in trace_polygons(labels, 2, 8.0)[1]] == [1]


@pytest.mark.parametrize("size", [(40, 3), (3, 40), (1, 9), (9, 1)])
def test_strips_of_rows_make_no_difference(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, CLASSES, size, np.uint8)
    whole = trace_polygons(labels, CLASSES)
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 16)
    assert trace_polygons(labels, CLASSES) == whole


def test_too_many_corners_are_refused_in_whichever_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((100, 4), np.uint8)
    labels[90:] = np.random.default_rng(0).integers(0, CLASSES, (10, 4), np.uint8)
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 16)
    monkeypatch.setattr(polygons, "MAX_CORNERS", 20)
    with pytest.raises(ImageTooLargeError, match="corners"):
        trace_polygons(labels, CLASSES)


def test_a_long_ring_is_simplified_within_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts: every pixel that changes is near the exact outline, and corners are saved."""
    labels = np.zeros((60, 60), np.uint8)
    labels[np.add.outer(np.arange(60), np.arange(60)) < 70] = 1  # a staircase of about a hundred corners
    monkeypatch.setattr(polygons, "MAX_SIMPLIFIED_CORNERS", 16)
    (ring,) = trace_polygons(labels, 2, 1.0)[1][0]
    assert len(ring) < 30
    changed = fill_rings([ring], labels.shape) != labels.astype(bool)
    inner = cv2.erode(labels, np.ones((5, 5), np.uint8)) == 1
    assert changed.sum() < 100 and not changed[inner].any()
