"""Sliding windows over signals (T) and volumes (D, H, W): labels of recordings of any length in bounded memory.

Overlapping windows lie on the lattice of the network's deepest stride, so that the logits of all of them lie on one grid. They
are blended there, weighted by a Gaussian around each window's center (`tiling.py`, which does the same for images). Windows
are processed slab by slab along the longest axis, and only the logits of one slab are kept: time steps or slices that no later
window covers get their labels, and their logits are dropped. Logits of the whole sample, classes x axes, are never held. Of a
volume of 512 x 512 x 600, a slab of windows of 96 voxels takes 100 MB a class, at stride 1.

The number of logits of a window is that of the graph's output; it is not computed from the network's stride.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.inference.geometry import round_up
from models.inference.postprocess import (
    Confidence,
    InterpolationTaps,
    Scores,
    interpolation_taps,
    label_confidence,
    pixel_centers,
    write_label_rows,
)
from models.inference.tiling import AxisWindows, compute_windows, shift_rows_up
from models.spec import InputRule

Values = NDArray[Any]  # [*axes, C], as the network takes it

MAX_WINDOW = {"T": 2**14, "DHW": 96**3}  # time steps, voxels: of the largest window that the network gets
MAX_BATCH = {"T": 2**15, "DHW": 0}  # of all windows that it gets at once: 12 leads of 10 s at 250 Hz; of volumes, one
MIN_WINDOW = {"T": 2**10, "DHW": 32**3}  # smaller ones are mostly border
OVERLAP = {"T": 8, "DHW": 4}  # neighbors overlap by a window's length divided by this
MIN_LENGTH = 2  # of an axis: OpenVINO computes NaN in bf16 for volumes of one slice


def padded_lengths(lengths: tuple[int, ...], rule: InputRule) -> tuple[int, ...]:
    """The lengths of the network's input for a sample of these lengths: multiples of the rule's divisor."""
    least = rule.window or (MIN_LENGTH,) * len(lengths)
    return tuple(max(shortest, round_up(length, rule.divisor)) for length, shortest in zip(lengths, least, strict=True))


def pad_values(values: Values, lengths: tuple[int, ...]) -> Values:
    """Pad values [*axes, C] at the end of each axis to `lengths` by repeating the last ones; contiguous."""
    old = values.shape[:-1]
    if old == lengths:
        return np.ascontiguousarray(values)
    padded = np.empty((*lengths, values.shape[-1]), values.dtype)
    padded[tuple(map(slice, old))] = values
    for axis, length in enumerate(old):  # what was padded along the axes before is repeated with the rest
        before = (slice(None),) * axis
        padded[(*before, slice(length, None))] = padded[(*before, slice(length - 1, length))]
    return padded


@dataclass(frozen=True)
class Lattice:
    """The windows along each axis, in time steps or voxels."""

    axes: tuple[AxisWindows, ...]

    @property
    def sides(self) -> tuple[int, ...]:
        """The lengths of a window."""
        return tuple(axis.side for axis in self.axes)

    @property
    def count(self) -> int:
        """The number of windows."""
        return int(np.prod([len(axis.starts) for axis in self.axes]))

    @property
    def order(self) -> list[int]:
        """The axes by length, the longest first, so that a slab is small; the others in their order."""
        lengths = [axis.padded_length for axis in self.axes]
        longest = lengths.index(max(lengths))
        return [longest, *(axis for axis in range(len(lengths)) if axis != longest)]

    def corners(self) -> Iterator[tuple[int, ...]]:
        """The first entry of each window along each axis, slab by slab: in the order in which they are blended."""
        order = self.order
        for corner in itertools.product(*(self.axes[axis].starts for axis in order)):
            yield tuple(corner[order.index(axis)] for axis in range(len(order)))


def make_lattice(lengths: tuple[int, ...], rule: InputRule, max_window: int) -> Lattice:
    """Windows of at most `max_window` time steps or voxels for a sample of these lengths; one if it is not larger.

    With the rule's `window` all have exactly its lengths, and neighbors overlap by half.
    """
    canvas = padded_lengths(lengths, rule)
    if rule.window is not None:
        return Lattice(tuple(exact_windows(*both, rule.divisor) for both in zip(canvas, rule.window, strict=True)))
    if int(np.prod(canvas)) <= max_window:
        return Lattice(tuple(AxisWindows((0,), side) for side in canvas))
    sides, left = [0] * len(canvas), max_window
    # A short axis is taken whole, and the longer ones share the rest.
    for rank, axis in enumerate(np.argsort(canvas, kind="stable").tolist()):
        share = int(left ** (1 / (len(canvas) - rank)) + 1e-9) // rule.divisor * rule.divisor
        sides[axis] = min(canvas[axis], max(rule.divisor, MIN_LENGTH, share))
        left = max(1, left // sides[axis])
    return Lattice(
        tuple(
            AxisWindows((0,), full)
            if full <= side
            else compute_windows(full, side, overlap_of(side, rule), rule.divisor)
            for full, side in zip(canvas, sides, strict=True)
        )
    )


def overlap_of(side: int, rule: InputRule) -> int:
    """By how much neighboring windows of this length overlap at least: a multiple of the divisor, below the length."""
    return min(round_up(side // OVERLAP[rule.axes], rule.divisor), side - rule.divisor)


def exact_windows(canvas: int, side: int, divisor: int) -> AxisWindows:
    """The fewest windows of this length that cover `canvas` and overlap by half; they start at multiples of `divisor`."""
    steps = -(-(canvas - side) // max(1, side // 2))
    starts = (index * ((canvas - side) // divisor) // max(1, steps) * divisor for index in range(steps + 1))
    return AxisWindows(tuple(starts), side)


def predict_windows(
    window_logits: Iterator[Scores], lengths: tuple[int, ...], lattice: Lattice, divisor: int, confidence: bool
) -> tuple[Labels, Confidence | None]:
    """The labels of a sample of these lengths, from the logits of its windows.

    `window_logits`: float32 classes x grid of each of `lattice.corners()`; each is read before the next is taken. `divisor`: of the
    starts and sides of windows.
    Returns: labels uint8 [*axes], and their softmax probabilities float32 [*axes] if `confidence`, else None.
    """
    labels = np.empty(lengths, np.uint8)
    probabilities = np.empty(lengths, np.float32) if confidence else None
    # Below, all is in this order, the longest axis first.
    order = lattice.order
    turned = Lattice(tuple(lattice.axes[axis] for axis in order))
    ordered_labels = labels.transpose(order)
    ordered_probabilities = None if probabilities is None else probabilities.transpose(order)
    windows = (logits.transpose(0, *(1 + axis for axis in order)) for logits in islice(window_logits, lattice.count))
    first = next(windows)
    strides = tuple(grid_stride(side, grid, divisor) for side, grid in zip(turned.sides, first.shape[1:], strict=True))
    logits, classes = itertools.chain([first], windows), len(first)
    del first
    for ready, band, taps in blend_slabs(logits, classes, turned, strides, len(ordered_labels)):
        part = None if ordered_probabilities is None else ordered_probabilities[ready]
        write_labels(band, taps, tuple(axis.padded_length for axis in turned.axes), ordered_labels[ready], part)
    return labels, probabilities


def blend_slabs(
    logits: Iterator[Scores], classes: int, lattice: Lattice, strides: tuple[int, ...], length: int
) -> Iterator[tuple[slice, Scores, InterpolationTaps]]:
    """Blend the logits of the windows, one slab along the first axis at a time; `length` is that of the first axis.

    Yields: the part of the first axis whose blended logits are final, and the arguments of `write_labels`: the logits, valid
    until the next item, and the taps.
    """
    leading, *others = lattice.axes
    stride = strides[0]
    side, grid = leading.side // stride, leading.padded_length // stride
    weights = [list(axis.weights(step)) for axis, step in zip(others, strides[1:], strict=True)]

    def taps(start: int, stop: int) -> InterpolationTaps:
        # Those of the whole axis would take a gigabyte for a day's recording.
        return interpolation_taps(pixel_centers(leading.padded_length, grid, start, stop), grid)

    # The band keeps one row of the grid before the slab, until what lies between that row and the slab has labels.
    rest = tuple(axis.padded_length // step for axis, step in zip(others, strides[1:], strict=True))
    band = np.zeros((classes, 1 + side, *rest), np.float32)
    first, done = 0, 0  # the row of the grid at the start of the band, and the part of the first axis that has labels
    ends = [*leading.starts[1:], leading.padded_length]
    for top, end, slab_weights in zip(leading.starts, ends, leading.weights(stride), strict=True):
        rows = slice(top // stride - first, top // stride - first + side)
        places = [
            [(slice(start // step, start // step + len(weight)), weight) for start, weight in zip(axis.starts, each, strict=True)]
            for axis, step, each in zip(others, strides[1:], weights, strict=True)
        ]  # fmt: skip
        for window in itertools.product(*places):
            factors = [slab_weights, *(weight for _, weight in window)]
            inside = (slice(None), rows, *(part for part, _ in window))
            accumulate(next(logits), reduce(np.multiply.outer, factors), band[inside])
        ready = bisect_left(range(length), end // stride, key=lambda step: int(taps(step, step + 1).below[0]))
        yield slice(done, ready), band, taps(done, ready).section(0, ready - done, first)
        shift_rows_up(band, end // stride - 1 - first)
        first, done = end // stride - 1, ready


def accumulate(logits: Scores, weights: NDArray[np.float32], band: Scores) -> None:
    """Add weighted logits, classes x grid, to the band, one class at a time."""
    for total, plane in zip(band, logits, strict=True):
        for axis, length in enumerate(total.shape):
            if plane.shape[axis] != length:
                grid = plane.shape[axis]
                plane = interpolate_axis(plane, interpolation_taps(pixel_centers(length, grid), grid), axis)
        total += plane * weights


def interpolate_axis(maps: NDArray[np.float32], taps: InterpolationTaps, axis: int) -> NDArray[np.float32]:
    """Interpolate an array linearly along one axis."""
    weight = taps.weight.reshape([-1 if each == axis else 1 for each in range(maps.ndim)])
    result: NDArray[np.float32] = maps.take(taps.above, axis) * (1 - weight)
    result += maps.take(taps.below, axis) * weight
    return result


def write_labels(
    scores: Scores, taps: InterpolationTaps, padded: tuple[int, ...], labels: Labels, confidence: Confidence | None
) -> None:
    """Compute labels, and confidence if given, from the scores that they need: classes x n, or classes x n x h x w.

    `taps`: for each entry of the labels' first axis, its position between the n; `padded`: the lengths that the whole grid covers.
    """
    if labels.ndim == 1:
        part = None if confidence is None else confidence[:, None]
        write_label_rows(scores[:, :, None], taps, 1, labels[:, None], part)
        return
    grid = scores.shape[2]
    rows = interpolation_taps(pixel_centers(padded[1], grid), grid).section(0, labels.shape[1])
    for index, plane in enumerate(_slices(scores, taps)):
        part = None if confidence is None else confidence[index]
        write_label_rows(plane, rows, padded[2], labels[index], part)


def batch_confidence(scores: Scores, padded: tuple[int, ...], labels: Labels) -> Confidence:
    """The softmax probabilities of given labels, the engine's own, in scores N x classes x grid upsampled to the lengths `padded`.

    labels: uint8 N x axes, each axis at most `padded`. Returns: float32 of the labels' shape, 0..1.
    """
    if labels.ndim == 2:  # signals are the rows of an image
        return label_confidence(scores.transpose(1, 0, 2), (len(labels), padded[0]), labels)
    return np.stack([_volume_confidence(*each, padded) for each in zip(scores, labels, strict=True)])


def _volume_confidence(scores: Scores, labels: Labels, padded: tuple[int, ...]) -> Confidence:
    grid = scores.shape[1]
    taps = interpolation_taps(pixel_centers(padded[0], grid), grid).section(0, len(labels))
    planes = zip(_slices(scores, taps), labels, strict=True)
    return np.stack([label_confidence(plane, (padded[1], padded[2]), slice_labels) for plane, slice_labels in planes])


def _slices(scores: Scores, taps: InterpolationTaps) -> Iterator[Scores]:
    """The scores classes x h x w of each slice, between those of the grid."""
    for above, below, weight in zip(*taps, strict=True):
        yield scores[:, above] if weight == 0 else scores[:, above] * (1 - weight) + scores[:, below] * weight


def grid_stride(side: int, grid: int, divisor: int) -> int:
    """The stride of `grid` logits along an axis of a window; 1 if it does not divide `divisor`: such logits are upsampled first."""
    stride = side // grid
    return stride if stride > 0 and divisor % stride == 0 and grid * stride == side else 1


def extract_window(values: Values, corner: tuple[int, ...], sides: tuple[int, ...]) -> Values:
    """The window of values [*axes, C] at `corner`, contiguous; outside of the sample its edge is repeated."""
    inside = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
    return pad_values(values[inside], sides)
