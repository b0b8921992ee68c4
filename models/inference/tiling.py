"""Images larger than a tile: overlapping windows, blended in logit space at the network's own stride.

Windows go by rows. Of all that they say no more is held than one row of windows: what no later window reaches is decided
(`models/inference/postprocess.py`) and forgotten. The labels are those of the whole blended map decided in one go, bit for bit.

As in nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) a window counts by a Gaussian around its centre,
because a network sees least at the border; unlike there it is applied an axis at a time, with the shares of the windows
brought to a sum of 1 beforehand: they form a lattice, so that the sum of products is the product of sums.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import RGB, Labels
from models.inference.geometry import SIZE_DIVISOR, resize_and_pad, round_up
from models.inference.postprocess import (
    Confidence,
    InterpolationTaps,
    Scores,
    interpolation_taps,
    pixel_centres,
    resize_scores,
    write_label_rows,
)

# The part of an image at (top, left) of (height, width), all of it inside: RGB uint8 height x width x 3.
WindowReader = Callable[[tuple[int, int], tuple[int, int]], RGB]

# A contiguous canvas, RGB uint8 H x W x 3 with H and W multiples of 64 -> logits, float32 C x h x w.
LogitsFunction = Callable[[RGB], Scores]

MIN_TILE_SIZE = 256  # pixels; less is mostly border
MAX_BAND_BYTES = 2**28  # the logits of a row of windows: beyond it tiles are made smaller


class AxisWindows(NamedTuple):
    """The windows along one axis, in pixels: all of one length, the last one ending where the canvas does."""

    starts: tuple[int, ...]
    side: int

    @property
    def padded_length(self) -> int:
        """The image's length, brought up to the next bucket."""
        return self.starts[-1] + self.side

    def weights(self, stride: int) -> list[NDArray[np.float32]]:
        """How much each window counts at each of its grid's rows: float32 > 0; at each row of the canvas the sum is 1."""
        weights = gaussian_weights(self.side // stride)
        parts = [slice(start // stride, start // stride + len(weights)) for start in self.starts]
        total = np.zeros(self.padded_length // stride)
        for part in parts:
            total[part] += weights
        return [(weights / total[part]).astype(np.float32) for part in parts]


def predict_sliding_window(
    ask: LogitsFunction, image: RGB, tile: int = 1024, overlap: int = 256, confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """Label every pixel of an image of any size by windows of at most `tile` x `tile` pixels.

    Args:
        ask: the network; every call of one image gets a canvas of one size.
        image: RGB uint8, H x W x 3, H and W >= 1, in any memory layout.
        tile: side of a window; halved, to 256 at the least, while the logits of a row of windows are too large.
        overlap: the least that neighbours share; half a tile where that was halved below it.
        confidence: whether to return the softmax probabilities of the labels.

    Returns: labels uint8 H x W, and their probabilities float32 H x W in 0..1 or None. An image that fits into one
    window gets exactly what it gets untiled.
    Raises: ValueError where tile or overlap are no multiples of 64, or overlap is not below tile.
    """
    if tile % SIZE_DIVISOR or overlap % SIZE_DIVISOR or not 0 <= overlap < tile:
        raise ValueError(
            f"A tile of {tile} that overlaps by {overlap}: multiples of {SIZE_DIVISOR} with overlap < tile, please."
        )
    size = image.shape[:2]
    labels = np.empty(size, np.uint8)
    sure = np.empty(size, np.float32) if confidence else None
    _predict_into(ask, image, tile, overlap, labels, sure)
    return labels, sure


def _predict_into(
    ask: LogitsFunction, image: RGB, tile: int, overlap: int, labels: Labels, sure: Confidence | None
) -> None:
    down, across = (compute_windows(length, tile, overlap) for length in image.shape[:2])
    answer = ask(extract_window(image, (0, 0), (down.side, across.side)))
    if len(down.starts) == len(across.starts) == 1:
        rows = interpolation_taps(pixel_centres(down.padded_length, answer.shape[1]), answer.shape[1]).section(
            0, len(labels)
        )
        write_label_rows(answer, rows, across.padded_length, labels, sure)
        return
    stride, classes = infer_output_stride(answer, (down.side, across.side)), len(answer)
    too_large = 4 * classes * down.side * across.padded_length / stride**2 > MAX_BAND_BYTES
    wide = labels.shape[1] > labels.shape[0]
    if too_large and (wide or tile > MIN_TILE_SIZE):
        del answer
        if wide:  # bands along the shorter side are shorter
            _predict_into(
                _transposed_network(ask),
                image.swapaxes(0, 1),
                tile,
                overlap,
                labels.T,
                None if sure is None else sure.T,
            )
        else:
            tile = max(MIN_TILE_SIZE, _round_down(tile // 2))
            _predict_into(ask, image, tile, min(overlap, _round_down(tile // 2)), labels, sure)
        return
    corners = [(top, left) for top in down.starts for left in across.starts]
    others = (ask(extract_window(image, corner, (down.side, across.side))) for corner in corners[1:])
    answers = chain(iter([answer]), others)
    del answer  # at stride 1 it is 88 MB: what is blended is let go
    for done, band, part in _blend_windows(answers, classes, stride, (down, across), len(labels)):
        write_label_rows(band, part, across.padded_length, labels[done], None if sure is None else sure[done])


def predict_sliding_window_rows(
    ask: LogitsFunction,
    window: WindowReader,
    size: tuple[int, int],
    tile: int = 1024,
    overlap: int = 256,
    confidence: bool = False,
) -> Iterator[tuple[Labels, Confidence | None]]:
    """As `tiled`, for an image of (height, width) that is read by windows because it does not fit in memory.

    Yields: labels and probabilities of some rows, over the whole width, from the first row to the last. They are what
    `tiled` gives, unless a row of windows is too large for memory and the image wider than high: it is not turned here.
    """
    height, width = size
    down, across = (compute_windows(length, tile, overlap) for length in size)

    def asked(top: int, left: int) -> Scores:
        part = window((top, left), (min(down.side, height - top), min(across.side, width - left)))
        return ask(resize_and_pad(part, (part.shape[0], part.shape[1])))

    answer = asked(0, 0)
    stride, classes = infer_output_stride(answer, (down.side, across.side)), len(answer)
    if 4 * classes * down.side * across.padded_length / stride**2 > MAX_BAND_BYTES and tile > MIN_TILE_SIZE:
        del answer
        tile = max(MIN_TILE_SIZE, _round_down(tile // 2))
        yield from predict_sliding_window_rows(
            ask, window, size, tile, min(overlap, _round_down(tile // 2)), confidence
        )
        return
    corners = [(top, left) for top in down.starts for left in across.starts]
    answers = chain(iter([answer]), (asked(*corner) for corner in corners[1:]))
    del answer
    for done, band, part in _blend_windows(answers, classes, stride, (down, across), height):
        labels = np.empty((done.stop - done.start, width), np.uint8)
        sure = np.empty(labels.shape, np.float32) if confidence else None
        write_label_rows(band, part, across.padded_length, labels, sure)
        yield labels, sure


def _blend_windows(
    answers: Iterator[Scores], classes: int, stride: int, lattice: tuple[AxisWindows, AxisWindows], rows: int
) -> Iterator[tuple[slice, Scores, InterpolationTaps]]:
    """Blend what is answered of the windows, row by row.

    Yields: which of the image's `rows` have become final, and what `decide_rows` takes to decide them. The scores hold
    until the next are asked for.
    """
    down, across = lattice
    side, height = down.side // stride, down.padded_length // stride
    at = interpolation_taps(pixel_centres(down.padded_length, height), height).section(0, rows)
    # The row above the windows' stays until the pixels between it and theirs are decided.
    band = np.zeros((classes, 1 + side, across.padded_length // stride), np.float32)
    first, decided = 0, 0  # the grid's row that is the band's first, and how many rows of the image are done
    ends = [*down.starts[1:], down.padded_length]
    for top, end, row_share in zip(down.starts, ends, down.weights(stride), strict=True):
        place = slice(top // stride - first, top // stride - first + side)
        for left, share in zip(across.starts, across.weights(stride), strict=True):
            columns = slice(left // stride, left // stride + len(share))
            _accumulate(next(answers), np.outer(row_share, share), band[:, place, columns])
        known = at.count_ready(end // stride)
        yield slice(decided, known), band, at.section(decided, known, first)
        _shift_rows_up(band, end // stride - 1 - first)
        first, decided = end // stride - 1, known


def _accumulate(answer: Scores, weights: NDArray[np.float32], band: Scores) -> None:
    # A plane at a time: at stride 1 a window of 21 classes is 88 MB.
    for total, plane in zip(band, answer, strict=True):
        fitting = plane if plane.shape == weights.shape else resize_scores(plane[None], total.shape)[0]
        total += fitting * weights


def _shift_rows_up(band: Scores, rows: int) -> None:
    """Move each plane up by `rows` >= 0 rows; zeros come in from below."""
    kept = band.shape[1] - rows
    for plane in band:
        plane[:kept] = plane[rows:]
        plane[kept:] = 0


def _transposed_network(ask: LogitsFunction) -> LogitsFunction:
    """The same network for images whose x and y have changed places."""
    return lambda canvas: ask(np.ascontiguousarray(canvas.swapaxes(0, 1))).swapaxes(1, 2)


def compute_windows(length: int, tile: int, overlap: int) -> AxisWindows:
    """As few windows as cover `length` pixels with this overlap, no longer than that needs, evenly spread over 64s.

    A canvas that is a little longer than a tile would else cost two whole ones. Evenly, because then all neighbours share
    about as much; flush with the end only the last two would. Never wider apart than side - overlap: whole steps divided
    evenly and rounded down keep that.
    """
    canvas = round_up(length, SIZE_DIVISOR)
    if canvas <= tile:
        return AxisWindows((0,), canvas)
    steps = -(-(canvas - tile) // (tile - overlap))
    side = round_up(-(-(canvas + steps * overlap) // (steps + 1)), SIZE_DIVISOR)
    return AxisWindows(
        tuple(i * ((canvas - side) // SIZE_DIVISOR) // steps * SIZE_DIVISOR for i in range(steps + 1)), side
    )


@cache
def gaussian_weights(length: int) -> NDArray[np.float64]:
    """A Gaussian over `length` rows of a grid, 1 at the centre, sigma length / 8: e^-8 at the ends, never zero."""
    distance = np.arange(length) - (length - 1) / 2
    weights = np.exp(-0.5 * (distance * 8 / length) ** 2)
    weights.flags.writeable = False  # the cache's own
    return weights


def infer_output_stride(answer: Scores, size: tuple[int, int]) -> int:
    """Pixels from sample to sample of a network's answer, C x h x w, to a canvas of this (height, width).

    1 where that is no whole number, or none on whose grid all windows begin: such answers are upsampled one by one.
    """
    height, width = answer.shape[1:]
    stride = size[0] // height
    fits = stride > 0 and SIZE_DIVISOR % stride == 0 and (height * stride, width * stride) == size
    return stride if fits else 1


def extract_window(image: RGB, corner: tuple[int, int], size: tuple[int, int]) -> RGB:
    """The window of this (height, width) at (top, left), contiguous; beyond the image its edge is repeated."""
    top, left = corner
    window = image[top : top + size[0], left : left + size[1]]
    return resize_and_pad(window, (window.shape[0], window.shape[1]))


def _round_down(pixels: int) -> int:
    return pixels // SIZE_DIVISOR * SIZE_DIVISOR
