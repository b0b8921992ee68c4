import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.errors import DataError
from training.data.formats.rasterize import (
    COMPRESSED_RLE,
    POLYGONS,
    UNCOMPRESSED_RLE,
    decode_compressed_rle,
    region_runs,
)


def rasterize_part(data: bytes, kind: int, size: tuple[int, int]) -> np.ndarray:
    columns = np.zeros(size[0] * size[1], np.uint8)
    for start, stop in region_runs(data, kind, size).tolist():
        assert start <= stop
        columns[start:stop] = 1
    return columns.reshape(size[1], size[0]).T


def rasterize_polygon(*points: float, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return rasterize_part(np.array(points, np.float32).tobytes(), POLYGONS, size)


def encode_compressed_rle(counts: list[int]) -> bytes:
    """`rleToString` of maskApi.c in Python."""
    text = bytearray()
    for index, count in enumerate(counts):
        value = count - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            five, value = value & 0x1F, value >> 5
            more = value != (-1 if five & 0x10 else 0)
            text.append(48 + five + 32 * more)
    return bytes(text)


def rle_counts(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    ends = [*(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    counts = np.diff([0, *ends]).tolist()
    return counts if flat[0] == 0 else [0, *counts]


def test_a_rectangle_covers_exactly_its_pixels() -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:6] = 1
    assert (rasterize_polygon(2, 1, 6, 1, 6, 4, 2, 4) == expected).all()
    assert (rasterize_polygon(2, 4, 6, 4, 6, 1, 2, 1) == expected).all()
    assert (rasterize_polygon(2.4, 1.4, 6.4, 1.4, 6.4, 4.4, 2.4, 4.4) == expected).all()


def test_polygons_with_a_common_edge_do_not_overlap() -> None:
    upper = rasterize_polygon(0, 0, 8, 0, 0, 6)
    lower = rasterize_polygon(8, 0, 8, 6, 0, 6)
    assert (upper + lower == 1).all()


def test_self_intersecting_polygons_use_the_even_odd_rule() -> None:
    bow = rasterize_polygon(0, 0, 8, 8, 8, 0, 0, 8, size=(8, 8))
    assert bow[4, 0] == bow[4, 7] == 1
    assert bow[0, 4] == bow[7, 4] == 0


def test_polygons_are_clipped_to_the_image() -> None:
    assert (rasterize_polygon(-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9) == 1).all()
    assert (rasterize_polygon(-5, -5, -1, -5, -1, -1) == 0).all()
    assert (rasterize_polygon(9, 0, 20, 0, 20, 6, 9, 6) == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 20, width=32), st.floats(-10, 20, width=32)), min_size=3, max_size=12))
def test_a_polygon_covers_the_pixels_whose_center_is_inside(points: list[tuple[float, float]]) -> None:
    corners = np.array(points, np.float64)
    inside, on_edge = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    rows, columns = np.mgrid[:6, :8] + 0.5
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if x1 == x2:
            continue
        crosses = (x1 <= columns) != (x2 <= columns)
        y = y1 + (columns - x1) * (y2 - y1) / (x2 - x1)
        on_edge |= crosses & (np.abs(y - rows) < 1e-6)
        inside ^= crosses & (y > rows)
    assert ((rasterize_polygon(*corners.ravel()) == inside) | on_edge).all()


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
def test_run_lengths_round_trip(mask: np.ndarray) -> None:
    counts = rle_counts(mask)
    assert decode_compressed_rle(encode_compressed_rle(counts)).tolist() == counts
    assert (rasterize_part(encode_compressed_rle(counts), COMPRESSED_RLE, mask.shape) == mask).all()
    assert (rasterize_part(np.array(counts, np.uint32).tobytes(), UNCOMPRESSED_RLE, mask.shape) == mask).all()


def test_run_lengths_of_pycocotools_are_decoded() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:30, 10:12] = mask[2:39, 12:40] = mask[0, 49] = 1
    mask[::3, 20:25] = 0
    # pycocotools 2.0.11, `encode` of that mask
    text = (
        b"e<i0?0M<G00000000000000lNN100000000000000000000002ON100000000000000000000002ON100000000000000000000002ON100000"
        b"000000000000000002ON100000000000000000000002S10000000000000000000000000000V;lNnE"
    )
    assert encode_compressed_rle(rle_counts(mask)) == text
    assert (rasterize_part(text, COMPRESSED_RLE, mask.shape) == mask).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 under numpy 2
def test_polygons_agree_with_pycocotools() -> None:
    from pycocotools import mask as pycocotools

    random = np.random.default_rng(0)
    differing = total = 0
    for _ in range(100):
        corners = random.integers(3, 40)
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        points = random.uniform((0, 0), (640, 480)) + random.uniform(20, 150) * np.stack(
            [np.cos(angles), np.sin(angles)], 1
        )
        theirs = pycocotools.decode(pycocotools.frPyObjects([points.ravel().tolist()], 480, 640))[:, :, 0]
        differing += (rasterize_polygon(*points.ravel(), size=(480, 640)) != theirs).sum()
        total += theirs.sum()
    assert differing / total < 0.005


@pytest.mark.parametrize("text", [b"", b"~~", b"0\x20", b"Q", "é".encode(), b"o" * 40 + b"0"])
def test_invalid_letters_are_an_error(text: bytes) -> None:
    with pytest.raises(DataError, match="run lengths"):
        region_runs(text, COMPRESSED_RLE, (6, 8))


def test_run_lengths_for_another_size_are_an_error() -> None:
    with pytest.raises(DataError, match="cover 47 pixels, but the image has 8 x 6"):
        region_runs(np.array([40, 7], np.uint32).tobytes(), UNCOMPRESSED_RLE, (6, 8))


def test_a_corner_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DataError, match="not a finite number"):
        rasterize_polygon(0, 0, float("nan"), 1, 5, 5)
