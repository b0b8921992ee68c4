"""From a network's scores to labels: the one place outside the graph where logits are upsampled.

Scores are logits, finite float32, C x h x w with 2 <= C <= 255, on a grid that covers the image evenly. Upsampling is
bilinear with half-pixel centres and clamped edges (torch's `align_corners=False`). It goes by strips of rows, because 21
classes of an image of 12 megapixels would be a float volume of a gigabyte.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels

Scores = NDArray[np.float32]  # C x h x w, logits
Confidence = NDArray[np.float32]  # H x W, softmax probability of the label, 0..1

# The upsampled floats of a strip: small enough for a CPU's cache, where 32 MB took a third longer.
STRIP_BYTES = 2**22

# A class so many logits below the winner adds less than e^-20 = 2e-9 to the softmax's sum.
SOFTMAX_CUTOFF = 20.0


class InterpolationTaps(NamedTuple):
    """For each sample on an axis, the two rows (or columns) of a grid that it lies between."""

    above: NDArray[np.intp]
    below: NDArray[np.intp]
    weight: NDArray[np.float32]  # the share of `below`, 0..1; `above` has the rest

    def section(self, start: int, stop: int, first: int = 0) -> "InterpolationTaps":
        """The samples from `start` to before `stop`, for a grid whose first row at hand is `first`."""
        return InterpolationTaps(
            self.above[start:stop] - first, self.below[start:stop] - first, self.weight[start:stop]
        )

    def count_ready(self, rows: int) -> int:
        """How many samples, counted from the first, need none but the grid's first `rows` rows."""
        return int(np.searchsorted(self.below, rows))


def pixel_centres(length: int, grid: float) -> NDArray[np.float64]:
    """Where the centres of `length` pixels lie on a grid that has `grid` rows over them, in rows from the first."""
    return (2 * np.arange(length) + 1) * grid / (2 * length) - 0.5


def interpolation_taps(positions: NDArray[np.float64], grid: int) -> InterpolationTaps:
    """What to read from a grid of `grid` rows for samples at `positions`; beyond its edges the edge is repeated."""
    inside = positions.clip(0, grid - 1)
    above = np.floor(inside).astype(np.intp)
    weight = (inside - above).astype(np.float32)
    return InterpolationTaps(above, above + (weight > 0), weight)


def interpolate_rows(scores: Scores, at: InterpolationTaps) -> Scores:
    """Scores C x h x w at other rows, C x len(at) x w; the scores themselves where the rows are theirs already."""
    if not at.weight.any():
        start, stop = at.above[0], at.above[-1] + 1
        return scores[:, start:stop] if stop - start == len(at.above) else scores[:, at.above]
    # Not `a + (b - a) * t`: this form is monotone in floats too, so that a class behind at both rows stays behind.
    weight = at.weight[:, None]
    rows = scores[:, at.above] * (1 - weight)
    rows += scores[:, at.below] * weight
    return rows


def resize_scores(scores: Scores, size: tuple[int, int]) -> Scores:
    """Scores C x h x w at another (height, width), larger or smaller, bilinear."""
    return _resize_columns(
        interpolate_rows(scores, interpolation_taps(pixel_centres(size[0], scores.shape[1]), scores.shape[1])), size[1]
    )


def scores_to_labels(
    scores: Scores, size: tuple[int, int], confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """The label of each pixel of an image of `size` (height, width), and on request how probable it is.

    Returns: argmax of the upsampled scores, uint8 H x W (of equals the lowest class), and the softmax probability of
    that label, float32 H x W in 0..1, or None.
    """
    labels = np.empty(size, np.uint8)
    sure = np.empty(size, np.float32) if confidence else None
    grid = scores.shape[1]
    write_label_rows(scores, interpolation_taps(pixel_centres(size[0], grid), grid), size[1], labels, sure)
    return labels, sure


def write_label_rows(
    scores: Scores, at: InterpolationTaps, width: int, labels: Labels, sure: Confidence | None
) -> None:
    """Decide some rows of an image from the rows of the grid that are at hand.

    Labels are those of the whole image decided in one go, bit for bit; confidence is within 1e-6 of that.

    Args:
        scores: rows of the grid, C x n x w.
        at: for each of the image's rows, where it lies between these n rows.
        width: to how many columns w is upsampled.
        labels: len(at) x at most `width`, where the labels go; the columns beyond its width are left out.
        sure: of the same shape, where the confidence goes; None where nobody asked.
    """
    classes, _, columns = scores.shape
    height = max(1, STRIP_BYTES // (4 * classes * (width + 3 * columns)))
    for start in range(0, len(labels), height):
        stop = min(start + height, len(labels))
        first, last = at.above[start], at.below[stop - 1]
        rows = scores[:, first : last + 1]
        named = _candidate_classes(rows, width, sure is not None)
        rows = rows if named is None else rows[named]
        floats = _resize_columns(interpolate_rows(rows, at.section(start, stop, first)), width)[:, :, : labels.shape[1]]
        best = _write_argmax(floats, labels[start:stop], named)
        if sure is not None:
            _write_confidence(floats, best, sure[start:stop])


def _resize_columns(rows: Scores, width: int) -> Scores:
    # One call for all classes and rows, along x alone: what comes out of a row depends on no other row, bit for bit.
    classes, height, columns = rows.shape
    if columns == width:
        return rows
    flat = np.ascontiguousarray(rows).reshape(classes * height, columns)
    wide = cv2.resize(flat, (width, classes * height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(wide, dtype=np.float32).reshape(classes, height, width)


def _candidate_classes(grid: Scores, width: int, softmax: bool) -> NDArray[np.intp] | None:
    """The classes that can win a pixel (or that count in its softmax) between these rows of the grid; None is all.

    An interpolated score stays within those of the four samples around it: a class whose highest of four is below
    another's lowest is out. Images hold few of a network's classes at a time.
    """
    classes, _, columns = grid.shape
    if classes == 2 or width < 4 * columns:  # looking costs as much as upsampling there
        return None
    lowest, highest = grid, grid
    if grid.shape[1] > 1:
        lowest, highest = np.minimum(grid[:, 1:], grid[:, :-1]), np.maximum(grid[:, 1:], grid[:, :-1])
    if columns > 1:
        lowest = np.minimum(lowest[:, :, 1:], lowest[:, :, :-1])
        highest = np.maximum(highest[:, :, 1:], highest[:, :, :-1])
    bar = lowest.max(axis=0)
    # Rounding may make equals of neighbours: the slack keeps classes apart by more than that.
    slack = max(1e-5 * float(np.abs(bar).max()), SOFTMAX_CUTOFF if softmax else 0.0)
    bar -= slack
    named = np.flatnonzero((highest >= bar).any(axis=(1, 2)))
    return None if len(named) in (0, classes) else named


def _write_argmax(scores: Scores, labels: Labels, named: NDArray[np.intp] | None) -> Scores:
    """Write the label of the highest plane into `labels`, H x W; returns that highest score, float32 H x W."""
    names = range(len(scores)) if named is None else named.tolist()
    best: Scores = scores[0].copy()
    winner = np.full(best.shape, names[0], np.uint8)
    higher = np.empty(best.shape, np.uint8)
    for plane, name in zip(scores[1:], names[1:], strict=True):
        # Names rise, so that the larger of the old winner and a new one is the new one: no branch, no gather.
        np.greater(plane, best, out=higher.view(np.bool_))
        np.multiply(higher, np.uint8(name), out=higher)
        np.maximum(winner, higher, out=winner)
        np.maximum(best, plane, out=best)
    labels[:] = winner
    return best


def _write_confidence(scores: Scores, best: Scores, sure: Confidence) -> None:
    """Write the softmax probability of the highest score, 1 / sum(exp(score - best)), into `sure`, H x W."""
    total = np.zeros_like(best)
    rest = np.empty_like(best)
    for plane in scores:
        np.subtract(plane, best, out=rest)
        np.exp(rest, out=rest)
        total += rest
    np.reciprocal(total, out=sure)
