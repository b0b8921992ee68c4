"""Upsampling of logits outside the graph: to confidence, and to the labels of tiles and test-time augmentation.

Scores are logits, finite float32, C x h x w with 2 <= C <= 255, on a grid that covers the image evenly. Upsampling is
bilinear with half-pixel centers and clamped edges (torch's `align_corners=False`). It works on strips of rows, because
the upsampled logits of 21 classes for 12 megapixels take a gigabyte.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels

Scores = NDArray[np.float32]  # C x h x w, logits
Confidence = NDArray[np.float32]  # H x W, softmax probability of the label, 0..1

# Bytes of the upsampled floats of a strip: small enough for a CPU's cache; with 32 MB it took a third longer.
STRIP_BYTES = 2**22

# A class that is this many logits below the highest adds less than e^-20 = 2e-9 to the softmax's sum.
SOFTMAX_CUTOFF = 20.0


class InterpolationTaps(NamedTuple):
    """For each sample on an axis, the two rows (or columns) of the grid between which it is interpolated."""

    above: NDArray[np.intp]
    below: NDArray[np.intp]
    weight: NDArray[np.float32]  # of `below`, 0..1; `above` has the rest

    def section(self, start: int, stop: int, first: int = 0) -> "InterpolationTaps":
        """The samples `start` to `stop` (exclusive), for an array that begins at the grid's row `first`."""
        return InterpolationTaps(
            self.above[start:stop] - first, self.below[start:stop] - first, self.weight[start:stop]
        )

    def count_ready(self, rows: int) -> int:
        """The number of leading samples that need only the grid's first `rows` rows."""
        return int(np.searchsorted(self.below, rows))


def pixel_centers(length: int, grid: float, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
    """Positions of the centers of `length` pixels, or of some of them, on a grid of `grid` rows that covers all, in rows."""
    return (2 * np.arange(start, length if stop is None else stop) + 1) * grid / (2 * length) - 0.5


def interpolation_taps(positions: NDArray[np.float64], grid: int) -> InterpolationTaps:
    """The rows of a grid of `grid` rows, and their weights, for samples at `positions`; edges are repeated."""
    inside = positions.clip(0, grid - 1)
    above = np.floor(inside).astype(np.intp)
    weight = (inside - above).astype(np.float32)
    return InterpolationTaps(above, above + (weight > 0), weight)


def interpolate_rows(scores: Scores, taps: InterpolationTaps) -> Scores:
    """Interpolate scores C x h x w along rows to C x len(taps) x w; a view if no sample is between two rows."""
    if not taps.weight.any():
        start, stop = taps.above[0], taps.above[-1] + 1
        return scores[:, start:stop] if stop - start == len(taps.above) else scores[:, taps.above]
    # Not `a + (b - a) * t`: this form is monotone in floats too, so that a class that is lower at both rows stays lower.
    weight = taps.weight[:, None]
    rows = scores[:, taps.above] * (1 - weight)
    rows += scores[:, taps.below] * weight
    return rows


def resize_scores(scores: Scores, size: tuple[int, int]) -> Scores:
    """Resize scores C x h x w to another (height, width), larger or smaller, bilinear."""
    taps = interpolation_taps(pixel_centers(size[0], scores.shape[1]), scores.shape[1])
    return _resize_columns(interpolate_rows(scores, taps), size[1])


def scores_to_labels(
    scores: Scores, size: tuple[int, int], confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """Upsample scores to an image of `size` (height, width) and take the argmax.

    Returns: labels, uint8 H x W (the lowest class if scores are equal), and if `confidence` their softmax probabilities,
    float32 H x W in 0..1, else None.
    """
    labels = np.empty(size, np.uint8)
    probabilities = np.empty(size, np.float32) if confidence else None
    grid = scores.shape[1]
    write_label_rows(scores, interpolation_taps(pixel_centers(size[0], grid), grid), size[1], labels, probabilities)
    return labels, probabilities


def write_label_rows(
    scores: Scores, taps: InterpolationTaps, width: int, labels: Labels, confidence: Confidence | None
) -> None:
    """Compute the labels of some rows of an image from the rows of the grid that they need.

    Labels are bit for bit those of the whole image computed at once; confidence is within 1e-6 of that.

    Args:
        scores: rows of the grid, C x n x w.
        taps: for each row of the image, its position between these n rows.
        width: the number of columns to which w is upsampled.
        labels: output, len(taps) x at most `width`; further columns are dropped.
        confidence: output of the same shape, or None.
    """
    for strip, upsampled, candidates in _upsampled_strips(scores, taps, width, labels.shape, confidence is not None):
        highest = _write_argmax(upsampled, labels[strip], candidates)
        if confidence is not None:
            _write_confidence(upsampled, highest, confidence[strip])


def label_confidence(scores: Scores, size: tuple[int, int], labels: Labels) -> Confidence:
    """The softmax probabilities of given labels, the engine's own, in scores upsampled to `size` (height, width).

    In bf16 and int8 the graph's labels are not everywhere the argmax of its upsampled logits. Labels are the same with
    and without confidence because they always come from the graph.

    labels: uint8, at most `size`; pixels beyond them are not computed. Returns: float32 of the labels' shape, 0..1.
    """
    confidence = np.empty(labels.shape, np.float32)
    grid = scores.shape[1]
    taps = interpolation_taps(pixel_centers(size[0], grid), grid)
    for strip, upsampled, candidates in _upsampled_strips(scores, taps, size[1], labels.shape, softmax=True):
        _write_confidence(upsampled, _scores_of(labels[strip], upsampled, candidates), confidence[strip])
    return confidence


def _upsampled_strips(
    scores: Scores, taps: InterpolationTaps, width: int, shape: tuple[int, ...], softmax: bool
) -> Iterator[tuple[slice, Scores, NDArray[np.intp] | None]]:
    """Upsample strip by strip, for an image of `shape`; columns beyond it are dropped.

    Yields: the rows of the image, the scores of their candidate classes at full size, and these classes (None for all).
    """
    classes, _, columns = scores.shape
    height = max(1, STRIP_BYTES // (4 * classes * (width + 3 * columns)))
    for start in range(0, shape[0], height):
        stop = min(start + height, shape[0])
        first, last = taps.above[start], taps.below[stop - 1]
        rows = scores[:, first : last + 1]
        candidates = _candidate_classes(rows, width, softmax)
        rows = rows if candidates is None else rows[candidates]
        upsampled = _resize_columns(interpolate_rows(rows, taps.section(start, stop, first)), width)
        yield slice(start, stop), upsampled[:, :, : shape[1]], candidates


def _resize_columns(rows: Scores, width: int) -> Scores:
    # One call for all classes and rows, along x only: the result of a row depends on no other row, bit for bit.
    classes, height, columns = rows.shape
    if columns == width:
        return rows
    flat = np.ascontiguousarray(rows).reshape(classes * height, columns)
    resized = cv2.resize(flat, (width, classes * height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32).reshape(classes, height, width)


def _candidate_classes(grid: Scores, width: int, softmax: bool) -> NDArray[np.intp] | None:
    """The classes that can be the label of a pixel (or count in its softmax) between these rows of the grid; None for all.

    An interpolated score is within the range of the four samples around it: a class whose highest of the four is below
    the lowest of another cannot be the label. An image contains few of a network's classes.
    """
    classes, _, columns = grid.shape
    if classes == 2 or width < 4 * columns:  # the check would cost as much as the upsampling
        return None
    lowest, highest = grid, grid
    if grid.shape[1] > 1:
        lowest, highest = np.minimum(grid[:, 1:], grid[:, :-1]), np.maximum(grid[:, 1:], grid[:, :-1])
    if columns > 1:
        lowest = np.minimum(lowest[:, :, 1:], lowest[:, :, :-1])
        highest = np.maximum(highest[:, :, 1:], highest[:, :, :-1])
    threshold = lowest.max(axis=0)
    # The margin exceeds rounding errors, which may make neighboring scores equal.
    threshold -= max(1e-5 * float(np.abs(threshold).max()), SOFTMAX_CUTOFF if softmax else 0.0)
    candidates = np.flatnonzero((highest >= threshold).any(axis=(1, 2)))
    return None if len(candidates) in (0, classes) else candidates


def _write_argmax(scores: Scores, labels: Labels, classes: NDArray[np.intp] | None) -> Scores:
    """Write the class of the highest plane into `labels`, H x W; returns the highest score, float32 H x W.

    `classes`: the classes of the planes, ascending; None for all.
    """
    indices = range(len(scores)) if classes is None else classes.tolist()
    highest: Scores = scores[0].copy()
    winner = np.full(highest.shape, indices[0], np.uint8)
    is_higher = np.empty(highest.shape, np.uint8)
    for plane, index in zip(scores[1:], indices[1:], strict=True):
        # Indices ascend, so that the maximum of the old winner and a new one is the new one: no branch, no gather.
        np.greater(plane, highest, out=is_higher.view(np.bool_))
        np.multiply(is_higher, np.uint8(index), out=is_higher)
        np.maximum(winner, is_higher, out=winner)
        np.maximum(highest, plane, out=highest)
    labels[:] = winner
    return highest


def _scores_of(labels: Labels, scores: Scores, classes: NDArray[np.intp] | None) -> Scores:
    """The score of each pixel's label, float32 H x W; -inf for a label that is not among the `classes` of the planes."""
    chosen = np.full(labels.shape, -np.inf, np.float32)
    for plane, index in zip(scores, range(len(scores)) if classes is None else classes.tolist(), strict=True):
        np.copyto(chosen, plane, where=labels == index)
    return chosen


def _write_confidence(scores: Scores, chosen: Scores, confidence: Confidence) -> None:
    """Write the softmax probability of the chosen score, 1 / sum(exp(score - chosen)), into `confidence`, H x W."""
    total = np.zeros_like(chosen)
    difference = np.empty_like(chosen)
    with np.errstate(over="ignore"):  # far below another class the sum is infinite, and the probability 0
        for plane in scores:
            np.subtract(plane, chosen, out=difference)
            np.exp(difference, out=difference)
            total += difference
    np.reciprocal(total, out=confidence)
