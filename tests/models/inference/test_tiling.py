"""Sliding windows and their blending: agreement with untiled prediction, seams, edges, memory."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import models.inference.tiling
from models.imaging.decode import RGB, Labels
from models.inference.geometry import SIZE_DIVISOR, resize_and_pad, round_up
from models.inference.postprocess import Scores, resize_scores, scores_to_labels
from models.inference.tiling import (
    LogitsFunction,
    compute_windows,
    extract_window,
    gaussian_weights,
    infer_output_stride,
    predict_sliding_window,
)

multiples_of_64 = st.integers(1, 12).map(lambda count: count * 64)


def blob_image(height: int, width: int, seed: int = 0) -> RGB:
    """Soft patches of color of about forty pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def color_network(stride: int = 8, radius: int = 16) -> LogitsFunction:
    """Four classes by the mean color of a box of 2 radius + 1 pixels, with zeros outside the canvas, as in a padded
    convolution, so that scores within `radius` of the border are wrong.
    """
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.35, 0.35, 0.35]], np.float32)

    def predict(canvas: RGB) -> Scores:
        assert canvas.flags.c_contiguous and canvas.shape[0] % 64 == canvas.shape[1] % 64 == 0
        side = 2 * radius + 1
        means = cv2.boxFilter(canvas.astype(np.float32), -1, (side, side), borderType=cv2.BORDER_CONSTANT)
        size = canvas.shape[1] // stride, canvas.shape[0] // stride
        coarse = cv2.resize(means, size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray((coarse @ colors.T).transpose(2, 0, 1))

    return predict


def predict_untiled(predict: LogitsFunction, image: RGB) -> Labels:
    """Predict the whole image on one canvas."""
    height, width = image.shape[:2]
    canvas = resize_and_pad(image, (height, width), (round_up(height, SIZE_DIVISOR), round_up(width, SIZE_DIVISOR)))
    return scores_to_labels(predict(canvas), canvas.shape[:2])[0][: image.shape[0], : image.shape[1]]


def blend_whole(predict: LogitsFunction, image: RGB, tile: int, overlap: int, stride: int) -> Scores:
    """The blended scores of the whole image."""
    rows, columns = (compute_windows(length, tile, overlap) for length in image.shape[:2])
    scores: Scores | None = None
    for top, row_weights in zip(rows.starts, rows.weights(stride), strict=True):
        for left, weights in zip(columns.starts, columns.weights(stride), strict=True):
            logits = predict(extract_window(image, (top, left), (rows.side, columns.side)))
            logits = resize_scores(logits, (rows.side // stride, columns.side // stride))
            if scores is None:
                scores = np.zeros(
                    (len(logits), rows.padded_length // stride, columns.padded_length // stride), np.float32
                )
            y, x = top // stride, left // stride
            scores[:, y : y + len(row_weights), x : x + len(weights)] += logits * np.outer(row_weights, weights)
    assert scores is not None
    return scores


@settings(max_examples=60, deadline=None)
@example(length=1, tile=64, overlap=0)
@example(length=1025, tile=1024, overlap=960)
@given(length=st.integers(1, 9000), tile=multiples_of_64, overlap=multiples_of_64)
def test_windows_cover_everything_and_overlap(length: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - 64)
    windows = compute_windows(length, tile, overlap)
    starts = np.array(windows.starts)
    assert starts[0] == 0 and not (starts % 64).any() and windows.side % 64 == 0
    assert length <= windows.padded_length < length + 64
    gaps = np.diff(starts)
    if len(gaps):
        assert windows.side <= tile
        assert gaps.min() > 0 and gaps.max() <= windows.side - overlap and gaps.max() - gaps.min() <= 64
        assert len(starts) * (windows.side - 64) - len(gaps) * overlap < windows.padded_length  # no longer than needed
        assert len(gaps) == -(-(windows.padded_length - tile) // (tile - overlap))  # none more than needed
    for stride in (1, 8, 64):
        total = np.zeros(windows.padded_length // stride)
        for start, weights in zip(windows.starts, windows.weights(stride), strict=True):
            assert weights.dtype == np.float32 and (weights > 0).all()
            total[start // stride : start // stride + len(weights)] += weights
        np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 127, 128, 1024])
def test_weights_are_a_gaussian_without_zeros(length: int) -> None:
    weights = gaussian_weights(length)
    assert gaussian_weights(length) is weights
    np.testing.assert_array_equal(weights, weights[::-1])
    assert (np.diff(weights[: (length + 1) // 2]) > 0).all()
    assert (np.float32(weights) ** 2 > 1e-8).all()
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 0
    if length >= 128:  # two sigmas, a quarter of the length, from the center
        assert weights[length // 4] == pytest.approx(np.exp(-2), rel=0.1)


@pytest.mark.parametrize("size", [(900, 1300), (257, 1024), (1024, 256), (640, 641)])
@pytest.mark.parametrize("stride", [1, 4, 8, 32])
def test_tiled_labels_agree_with_untiled_ones(size: tuple[int, int], stride: int) -> None:
    image = blob_image(*size)
    labels, probabilities = predict_sliding_window(color_network(stride), image, tile=256, overlap=128)
    whole = predict_untiled(color_network(stride), image)
    assert (labels.shape, labels.dtype, probabilities) == (size, np.uint8, None)
    assert len(np.unique(whole)) == 4
    assert np.mean(labels == whole) >= 0.995


def test_differences_do_not_concentrate_at_seams() -> None:
    image = blob_image(1500, 1500)
    wrong = predict_sliding_window(color_network(), image, tile=256, overlap=128)[0] != predict_untiled(
        color_network(), image
    )
    starts = np.array(compute_windows(1500, 256, 128).starts)
    borders = np.concatenate([starts[1:], starts[:-1] + 256])
    seam = np.zeros(1500, bool)
    for border in borders:
        seam[border - 2 : border + 2] = True
    for axis in (0, 1):
        by_line = wrong.mean(axis=axis)
        assert by_line[seam].mean() <= 0.005
        assert by_line.max() <= 0.03


def test_labels_at_the_edges_agree_with_untiled_ones() -> None:
    image = blob_image(700, 1001)
    labels, _ = predict_sliding_window(color_network(), image, tile=256, overlap=128)
    whole = predict_untiled(color_network(), image)
    for edge in (np.s_[:32], np.s_[-32:], np.s_[:, :32], np.s_[:, -32:]):
        assert np.mean(labels[edge] == whole[edge]) >= 0.99


@pytest.mark.parametrize(
    ("stride", "tile", "overlap", "size"),
    [
        (8, 256, 64, (900, 1300)),
        (8, 128, 64, (300, 200)),
        (8, 128, 0, (257, 300)),
        (1, 128, 64, (300, 333)),
        (2, 192, 128, (401, 65)),
        (32, 128, 64, (300, 300)),
        (64, 128, 64, (300, 300)),
    ],
)
def test_bands_do_not_change_the_result(stride: int, tile: int, overlap: int, size: tuple[int, int]) -> None:
    image = blob_image(*size)
    scores = blend_whole(color_network(stride), image, tile, overlap, stride)
    canvas = scores.shape[1] * stride, scores.shape[2] * stride
    labels, probabilities = predict_sliding_window(color_network(stride), image, tile, overlap, confidence=True)
    whole, expected_confidence = scores_to_labels(scores, canvas, confidence=True)
    assert probabilities is not None and expected_confidence is not None
    np.testing.assert_array_equal(labels, whole[: size[0], : size[1]])
    np.testing.assert_allclose(probabilities, expected_confidence[: size[0], : size[1]], atol=1e-6)


@settings(max_examples=20, deadline=None)
@example(size=(1, 1))
@example(size=(1, 700))
@example(size=(700, 1))
@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_any_size_and_any_memory_layout(size: tuple[int, int]) -> None:
    image = blob_image(*size[::-1]).swapaxes(0, 1)[:, ::-1]
    image.flags.writeable = False
    labels, probabilities = predict_sliding_window(color_network(), image, tile=128, overlap=64, confidence=True)
    assert probabilities is not None
    assert labels.shape == probabilities.shape == size and labels.flags.c_contiguous
    assert probabilities.dtype == np.float32 and probabilities.min() > 0 and probabilities.max() <= 1
    np.testing.assert_array_equal(
        labels, predict_sliding_window(color_network(), image.copy(), tile=128, overlap=64)[0]
    )


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 256), st.integers(1, 256)))
def test_an_image_of_one_tile_is_not_tiled(size: tuple[int, int]) -> None:
    seen = []

    def predict(canvas: RGB) -> Scores:
        seen.append(canvas.shape[:2])
        return color_network()(canvas)

    image = blob_image(*size)
    np.testing.assert_array_equal(
        predict_sliding_window(predict, image, tile=256, overlap=64)[0], predict_untiled(color_network(), image)
    )
    assert seen == [(round_up(size[0], SIZE_DIVISOR), round_up(size[1], SIZE_DIVISOR))]


def test_every_window_has_the_same_size_and_the_images_pixels() -> None:
    image = blob_image(500, 130)
    seen = []

    def predict(canvas: RGB) -> Scores:
        seen.append(canvas.copy())
        return color_network()(canvas)

    predict_sliding_window(predict, image, tile=256, overlap=128)
    padded = np.pad(image, ((0, 12), (0, 62), (0, 0)), "edge")
    assert compute_windows(500, 256, 128).starts == (0, 128, 256)
    for top, canvas in zip((0, 128, 256), seen, strict=True):
        np.testing.assert_array_equal(canvas, padded[top : top + 256])


@pytest.mark.parametrize("stride", [1, 8])
def test_constant_scores_stay_constant(stride: int) -> None:
    def predict(canvas: RGB) -> Scores:
        shape = canvas.shape[0] // stride, canvas.shape[1] // stride
        return np.stack([np.full(shape, value, np.float32) for value in (-3.3, 1.7, 1.6)])

    labels, probabilities = predict_sliding_window(predict, blob_image(401, 777), tile=128, overlap=64, confidence=True)
    assert (labels == 1).all()
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-0.1) + np.exp(-5)), atol=1e-5)


@pytest.mark.parametrize("grid", [(37, 41), (127, 127), (1, 1), (3, 100), (512, 512)])
def test_grids_that_do_not_divide_the_window(grid: tuple[int, int]) -> None:
    def predict(canvas: RGB) -> Scores:
        return resize_scores(color_network()(canvas), grid)

    image = blob_image(300, 400)
    assert infer_output_stride(predict(image[:256, :256].copy()), (256, 256)) == 1
    labels, _ = predict_sliding_window(predict, image, tile=256, overlap=128)
    whole, _ = scores_to_labels(blend_whole(predict, image, 256, 128, 1), (320, 448))
    np.testing.assert_array_equal(labels, whole[:300, :400])


@pytest.mark.parametrize(
    ("grid", "size", "stride"),
    [((32, 48), (256, 384), 8), ((8, 8), (256, 256), 32), ((4, 4), (256, 256), 64), ((2, 2), (256, 256), 1),
     ((64, 64), (192, 192), 1), ((32, 16), (256, 256), 1), ((256, 256), (256, 256), 1)],
)  # fmt: skip
def test_infer_output_stride(grid: tuple[int, int], size: tuple[int, int], stride: int) -> None:
    assert infer_output_stride(np.zeros((2, *grid), np.float32), size) == stride


@pytest.mark.parametrize(
    ("tile", "overlap"), [(100, 0), (0, 0), (256, 256), (256, 320), (256, 100), (256, -64), (-64, -128)]
)
def test_invalid_tiles_and_overlaps(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"Got tile {tile} and overlap {overlap}; expected multiples of 64"):
        predict_sliding_window(color_network(), blob_image(64, 64), tile, overlap)


@pytest.mark.parametrize(("size", "sides"), [((1600, 1500), [960, 512, 256]), ((700, 1600), [960, 960, 512, 256])])
def test_tiles_shrink_if_a_row_of_windows_is_too_large(
    size: tuple[int, int], sides: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.inference.tiling, "MAX_BAND_BYTES", 1000)
    image = blob_image(*size)
    seen = []

    def predict(canvas: RGB) -> Scores:
        seen.append(max(canvas.shape))
        return color_network()(canvas)

    labels, _ = predict_sliding_window(predict, image)
    assert list(dict.fromkeys(seen)) == list(dict.fromkeys(sides))
    assert seen[: len(sides)] == sides
    assert labels.flags.c_contiguous
    assert np.mean(labels == predict_untiled(color_network(), image)) >= 0.995


def test_a_long_image_is_tiled_along_its_shorter_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.inference.tiling, "MAX_BAND_BYTES", 4 * 4 * (256 // 8) * (320 // 8))
    image = blob_image(300, 1400)
    labels, probabilities = predict_sliding_window(color_network(), image, tile=256, overlap=128, confidence=True)
    assert probabilities is not None and labels.shape == probabilities.shape == (300, 1400)
    turned, expected_confidence = predict_sliding_window(
        color_network(), image.swapaxes(0, 1), tile=256, overlap=128, confidence=True
    )
    assert expected_confidence is not None  # the box filter sums along the other axis first: equal up to rounding
    assert np.mean(labels == turned.T) > 0.9999
    np.testing.assert_allclose(probabilities, expected_confidence.T, atol=1e-3)


@pytest.mark.parametrize(("stride", "limit"), [(8, 30e6), pytest.param(1, 300e6, marks=pytest.mark.slow)])
def test_memory_is_bounded_by_a_row_of_windows(stride: int, limit: float) -> None:
    image = np.broadcast_to(blob_image(1, 4096), (2048, 4096, 3))  # one row of pixels in memory

    def predict(canvas: RGB) -> Scores:
        return np.ones((21, canvas.shape[0] // stride, canvas.shape[1] // stride), np.float32)

    tracemalloc.start()
    labels, _ = predict_sliding_window(predict, image, tile=512, overlap=128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - labels.nbytes < limit  # the whole map would take 11 MB of logits at stride 8, 705 MB at stride 1
