"""Sliding-window prediction for images larger than a tile: logits of overlapping windows are blended at the network's stride.

Windows are processed row by row, and only the logits of one row of windows are kept: pixels that no later window covers
get their labels (`models/inference/postprocess.py`) and their logits are dropped. The labels are bit for bit those of the
argmax over the whole blended map.

As in nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), a window is weighted by a Gaussian around its center,
because a network has least context at the border. Unlike there, the Gaussian is applied along each axis separately, with
the weights normalized to a sum of 1 in advance: the windows form a lattice, so that the sum of products is the product
of sums.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.inference.geometry import SIZE_DIVISOR, Image, resize_and_pad, round_up
from models.inference.postprocess import (
    Confidence,
    InterpolationTaps,
    Scores,
    interpolation_taps,
    pixel_centers,
    resize_scores,
    write_label_rows,
)

# Reads the window of an image at (top, left) of (height, width), entirely inside it: height x width x C, as the network takes it.
WindowReader = Callable[[tuple[int, int], tuple[int, int]], Image]

# A contiguous canvas, H x W x C with H and W multiples of 64 -> logits, float32 classes x h x w.
LogitsFunction = Callable[[Image], Scores]

MIN_TILE_SIZE = 256  # pixels a side; smaller tiles are mostly border
MAX_BAND_BYTES = 2**28  # of the logits of a row of windows; tiles are made smaller to stay below


class AxisWindows(NamedTuple):
    """The windows along one axis, in pixels: all of one length; the last one ends at the end of the padded image."""

    starts: tuple[int, ...]
    side: int

    @property
    def padded_length(self) -> int:
        """The image's length, rounded up to a multiple of SIZE_DIVISOR."""
        return self.starts[-1] + self.side

    def weights(self, stride: int) -> Iterator[NDArray[np.float32]]:
        """The weight of each window at each of its rows of the grid, float32 > 0; the windows' weights sum to 1 everywhere."""
        weights, starts = gaussian_weights(self.side // stride), [start // stride for start in self.starts]
        for start in starts:
            total = np.zeros(len(weights))
            for other in starts[bisect_right(starts, start - len(weights)) : bisect_left(starts, start + len(weights))]:
                before, after = max(0, start - other), max(0, other - start)
                total[after : len(weights) - before] += weights[before : len(weights) - after]
            yield (weights / total).astype(np.float32)


def predict_sliding_window(
    predict_logits: LogitsFunction, image: Image, tile: int = 1024, overlap: int = 256, confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """Predict labels for an image of any size in windows of at most `tile` x `tile` pixels.

    Args:
        predict_logits: the network; every call for one image gets a canvas of the same size.
        image: H x W x C, H and W >= 1, in any memory layout.
        tile: side of a window; halved, down to 256, while the logits of a row of windows are too large.
        overlap: minimum overlap of neighbors; at most half a tile if the tile was halved.
        confidence: whether to return the softmax probabilities of the labels.

    Returns: labels uint8 H x W, and their probabilities float32 H x W in 0..1 or None. For an image that fits into one
    window, they are exactly those without tiling.
    Raises: ValueError if tile or overlap are not multiples of 64, or overlap is not below tile.
    """
    if tile % SIZE_DIVISOR or overlap % SIZE_DIVISOR or not 0 <= overlap < tile:
        raise ValueError(
            f"Got tile {tile} and overlap {overlap}; expected multiples of {SIZE_DIVISOR} with 0 <= overlap < tile."
        )
    size = image.shape[:2]
    labels = np.empty(size, np.uint8)
    probabilities = np.empty(size, np.float32) if confidence else None
    _predict_into(predict_logits, image, tile, overlap, labels, probabilities)
    return labels, probabilities


def _predict_into(
    predict_logits: LogitsFunction,
    image: Image,
    tile: int,
    overlap: int,
    labels: Labels,
    confidence: Confidence | None,
) -> None:
    """Write labels, and confidence if given, for a whole image."""
    rows, columns = (compute_windows(length, tile, overlap) for length in image.shape[:2])
    window_size = rows.side, columns.side
    first = predict_logits(extract_window(image, (0, 0), window_size))
    if len(rows.starts) == len(columns.starts) == 1:
        grid = first.shape[1]
        taps = interpolation_taps(pixel_centers(rows.padded_length, grid), grid).section(0, len(labels))
        write_label_rows(first, taps, columns.padded_length, labels, confidence)
        return
    stride, classes = infer_output_stride(first, window_size), len(first)
    too_large = 4 * classes * rows.side * columns.padded_length / stride**2 > MAX_BAND_BYTES
    is_wide = labels.shape[1] > labels.shape[0]
    if too_large and is_wide:  # transposed, because rows of windows along the shorter side have fewer logits
        del first
        transposed_confidence = None if confidence is None else confidence.T
        transposed = _transposed_network(predict_logits)
        _predict_into(transposed, image.swapaxes(0, 1), tile, overlap, labels.T, transposed_confidence)
        return
    if too_large and tile > MIN_TILE_SIZE:
        del first
        tile, overlap = _halve_tile(tile, overlap)
        _predict_into(predict_logits, image, tile, overlap, labels, confidence)
        return
    corners = [(top, left) for top in rows.starts for left in columns.starts]
    others = (predict_logits(extract_window(image, corner, window_size)) for corner in corners[1:])
    logits = chain(iter([first]), others)
    del first  # at stride 1 a window has 88 MB, which are freed once it is blended
    for ready, band, taps in _blend_windows(logits, classes, stride, (rows, columns), len(labels)):
        part = None if confidence is None else confidence[ready]
        write_label_rows(band, taps, columns.padded_length, labels[ready], part)


def predict_sliding_window_rows(
    predict_logits: LogitsFunction,
    window: WindowReader,
    size: tuple[int, int],
    tile: int = 1024,
    overlap: int = 256,
    confidence: bool = False,
) -> Iterator[tuple[Labels, Confidence | None]]:
    """As `predict_sliding_window`, for an image of (height, width) that is read in windows to save memory.

    Yields: labels and probabilities of consecutive rows over the whole width, from the first to the last. They equal those
    of `predict_sliding_window`, unless a row of windows is too large for memory and the image is wider than high: it is
    not transposed here.
    """
    height, width = size
    rows, columns = (compute_windows(length, tile, overlap) for length in size)

    def predict_window(top: int, left: int) -> Scores:
        part = window((top, left), (min(rows.side, height - top), min(columns.side, width - left)))
        return predict_logits(resize_and_pad(part, (part.shape[0], part.shape[1]), (rows.side, columns.side)))

    first = predict_window(0, 0)
    stride, classes = infer_output_stride(first, (rows.side, columns.side)), len(first)
    if 4 * classes * rows.side * columns.padded_length / stride**2 > MAX_BAND_BYTES and tile > MIN_TILE_SIZE:
        del first
        tile, overlap = _halve_tile(tile, overlap)
        yield from predict_sliding_window_rows(predict_logits, window, size, tile, overlap, confidence)
        return
    corners = [(top, left) for top in rows.starts for left in columns.starts]
    logits = chain(iter([first]), (predict_window(*corner) for corner in corners[1:]))
    del first
    for ready, band, taps in _blend_windows(logits, classes, stride, (rows, columns), height):
        labels = np.empty((ready.stop - ready.start, width), np.uint8)
        probabilities = np.empty(labels.shape, np.float32) if confidence else None
        write_label_rows(band, taps, columns.padded_length, labels, probabilities)
        yield labels, probabilities


def _halve_tile(tile: int, overlap: int) -> tuple[int, int]:
    """Half the tile, at least MIN_TILE_SIZE, and the overlap, at most half the new tile; multiples of SIZE_DIVISOR."""
    tile = max(MIN_TILE_SIZE, _round_down(tile // 2))
    return tile, min(overlap, _round_down(tile // 2))


def _blend_windows(
    logits: Iterator[Scores], classes: int, stride: int, lattice: tuple[AxisWindows, AxisWindows], image_rows: int
) -> Iterator[tuple[slice, Scores, InterpolationTaps]]:
    """Blend the logits of the windows, one row of windows at a time.

    Yields: the rows of the image whose blended logits are final, and the arguments for `write_label_rows`: the logits,
    valid until the next item, and the taps.
    """
    rows, columns = lattice
    side, grid = rows.side // stride, rows.padded_length // stride
    taps = interpolation_taps(pixel_centers(rows.padded_length, grid), grid).section(0, image_rows)
    # The band keeps one row of the grid above the windows, until the pixels between that row and theirs have labels.
    band = np.zeros((classes, 1 + side, columns.padded_length // stride), np.float32)
    first, done = 0, 0  # the row of the grid at the top of the band, and the rows of the image that have labels
    ends = [*rows.starts[1:], rows.padded_length]
    for top, end, row_weights in zip(rows.starts, ends, rows.weights(stride), strict=True):
        band_rows = slice(top // stride - first, top // stride - first + side)
        for left, column_weights in zip(columns.starts, columns.weights(stride), strict=True):
            band_columns = slice(left // stride, left // stride + len(column_weights))
            _accumulate(next(logits), np.outer(row_weights, column_weights), band[:, band_rows, band_columns])
        ready = taps.count_ready(end // stride)
        yield slice(done, ready), band, taps.section(done, ready, first)
        shift_rows_up(band, end // stride - 1 - first)
        first, done = end // stride - 1, ready


def _accumulate(logits: Scores, weights: NDArray[np.float32], band: Scores) -> None:
    # One plane at a time, because at stride 1 a window of 21 classes has 88 MB.
    for total, plane in zip(band, logits, strict=True):
        resized = plane if plane.shape == weights.shape else resize_scores(plane[None], total.shape)[0]
        total += resized * weights


def shift_rows_up(band: Scores, rows: int) -> None:
    """Move each plane up by `rows` >= 0 rows, and fill the rest with zeros."""
    kept = band.shape[1] - rows
    for plane in band:
        plane[:kept] = plane[rows:]
        plane[kept:] = 0


def _transposed_network(predict_logits: LogitsFunction) -> LogitsFunction:
    """The network for transposed images."""
    return lambda canvas: predict_logits(np.ascontiguousarray(canvas.swapaxes(0, 1))).swapaxes(1, 2)


def compute_windows(length: int, tile: int, overlap: int, divisor: int = SIZE_DIVISOR) -> AxisWindows:
    """The fewest windows that cover `length` pixels with at least this overlap, evenly spread, in multiples of `divisor`.

    Windows are as short as their number allows: else an image slightly longer than a tile would take two whole ones. They
    are spread evenly, so that all neighbors overlap about equally; with the last window flush to the end, only the last
    two would overlap more. They are never farther apart than side - overlap, because the steps are rounded down.
    """
    canvas = round_up(length, divisor)
    if canvas <= tile:
        return AxisWindows((0,), canvas)
    steps = -(-(canvas - tile) // (tile - overlap))
    side = round_up(-(-(canvas + steps * overlap) // (steps + 1)), divisor)
    return AxisWindows(tuple(i * ((canvas - side) // divisor) // steps * divisor for i in range(steps + 1)), side)


@cache
def gaussian_weights(length: int) -> NDArray[np.float64]:
    """A Gaussian over `length` rows of a grid, 1 at the center, sigma length / 8: e^-8 at the ends, never zero."""
    distance = np.arange(length) - (length - 1) / 2
    weights = np.exp(-0.5 * (distance * 8 / length) ** 2)
    weights.flags.writeable = False  # it is in the cache
    return weights


def infer_output_stride(logits: Scores, size: tuple[int, int]) -> int:
    """The stride, in pixels, of a network's logits, C x h x w, for a canvas of this (height, width).

    1 if the stride is not a whole number or does not divide 64: such logits are upsampled window by window.
    """
    height, width = logits.shape[1:]
    stride = size[0] // height
    fits = stride > 0 and SIZE_DIVISOR % stride == 0 and (height * stride, width * stride) == size
    return stride if fits else 1


def extract_window(image: Image, corner: tuple[int, int], size: tuple[int, int]) -> Image:
    """The window of this (height, width) at (top, left), contiguous; outside the image its edge is repeated."""
    top, left = corner
    window = image[top : top + size[0], left : left + size[1]]
    return resize_and_pad(window, (window.shape[0], window.shape[1]), size)


def _round_down(pixels: int) -> int:
    return pixels // SIZE_DIVISOR * SIZE_DIVISOR
