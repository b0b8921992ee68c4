"""Resamples a volume to a spacing, and labels back to the volume's own grid.

A network reads a volume in windows, and only these are resampled: a copy of the whole at another spacing is not held.

Intensities are interpolated linearly, axis by axis; where the new grid is coarser, over the width of its voxels, so that thin
structures become fainter and do not vanish by chance. Labels take the nearest voxel. Both grids cover the same extent: voxel
centers lie at (index + 0.5) * spacing.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from models.errors import ImageTooLargeError
from models.imaging.nearest import nearest_indices
from models.readers.limits import MAX_VOXELS
from models.readers.statistics import StatisticsAccumulator
from models.sample import Sample, Values
from models.spec import Spacing

GROUP_VALUES = 1 << 22  # of slices that are interpolated at a time, about
MAX_SCALE = 100.0  # between the spacing of a file and the network's: more is a wrong header
SAME_SPACING = 0.01  # relative difference of spacings that are not worth resampling


def to_spacing(sample: Sample, spacing: Spacing | None, in_windows: bool = False) -> Sample:
    """A volume at a spacing in mm, float32; as it is if either spacing is unknown, or both are equal within 1%.

    Its frame stays that of the file: `resize_nearest` takes labels back to `sample.size`. `in_windows`: its values are
    `ResampledValues`, which are computed where they are read.
    Raises: ImageTooLargeError for a volume that would become too large.
    """
    size = resampled_size(sample.size, sample.spacing, spacing)
    if size == sample.size or sample.spacing is None:
        return sample
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        listed = " x ".join(map(str, size))
        raise ImageTooLargeError(
            f"At the spacing of this model the volume would have {listed} voxels; the limit is {MAX_VOXELS:,}. Is the spacing in "
            "its header right? Crop it otherwise."
        )
    values = ResampledValues(sample.values, size)
    found = tuple(step * old / new for step, old, new in zip(sample.spacing.values, sample.size, size, strict=True))
    valid = None if sample.valid is None else resize_nearest(sample.valid, size)
    statistics = sample.statistics
    if statistics is not None:
        sums = StatisticsAccumulator(values.shape[-1])
        for slices in values.groups():
            sums.add(values[slices], None if valid is None else valid[slices])
        statistics = sums.result()
    return replace(
        sample,
        values=cast(Values, values) if in_windows else values[:],
        valid=valid,
        spacing=Spacing(values=found, unit=sample.spacing.unit),
        statistics=statistics,
    )


def resampled_size(size: tuple[int, ...], spacing: Spacing | None, target: Spacing | None) -> tuple[int, ...]:
    """The lengths D, H and W at the target spacing; at least 1, and as they are along axes of the same spacing."""
    if spacing is None or target is None:
        return tuple(size)
    factors = [old / new for old, new in zip(spacing.values, target.values, strict=True)]
    if max(max(factors), 1 / min(factors)) > MAX_SCALE:
        listed = [" x ".join(f"{step:g}" for step in each.values) for each in (spacing, target)]
        raise ImageTooLargeError(
            f"The volume has a spacing of {listed[0]} mm, and this model was trained at {listed[1]} mm. Correct the file's header."
        )
    return tuple(
        length if abs(factor - 1) <= SAME_SPACING else max(1, round(length * factor))
        for length, factor in zip(size, factors, strict=True)
    )


class ResampledValues:
    """Values D x H x W x C as float32 of other lengths, linearly. They are computed where they are read, and not kept."""

    def __init__(self, values: Values, size: tuple[int, ...]) -> None:
        self.values, self.shape, self.dtype = values, (*size, values.shape[3]), np.dtype(np.float32)
        axes = sorted(range(3), key=lambda axis: size[axis] / values.shape[axis])  # those that shrink first
        self.weights = {
            axis: axis_weights(values.shape[axis], size[axis]) for axis in axes if size[axis] != values.shape[axis]
        }

    def __len__(self) -> int:
        return int(self.shape[0])

    def groups(self) -> list[slice]:
        """All slices in groups of about GROUP_VALUES."""
        step = max(1, GROUP_VALUES * self.shape[0] // max(1, math.prod(self.shape), self.values.size))
        return [slice(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]

    def __getitem__(self, part: slice | tuple[slice, ...]) -> Values:
        """Slices, or a window: the first and last voxels along D, H and W."""
        if part == slice(None):
            result = np.empty(self.shape, np.float32)
            for slices in self.groups():  # only one of them is held at lengths in between
                result[slices] = self[slices]
            return result
        window = part if isinstance(part, tuple) else (part,)
        needed = list(window)
        for axis, inside in enumerate(window):
            if axis in self.weights:
                taps = self.weights[axis].taps[inside]
                needed[axis] = slice(int(taps.min()), int(taps.max()) + 1)
        found = self.values[tuple(needed)].astype(np.float32, copy=False)
        for axis, weights in self.weights.items():
            section = weights.section(window[axis], needed[axis].start) if axis < len(window) else weights
            found = resize_axis(found, axis, section)
        return found


def resize_values(values: Values, size: tuple[int, ...]) -> Values:
    """Values D x H x W x C as float32 of the lengths `size`, linearly."""
    return ResampledValues(values, size)[:]


def resize_nearest(labels: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Labels, or other values, D x H x W of the lengths `size`: each takes the nearest one; itself if it has these lengths."""
    for axis, length in enumerate(size):
        if labels.shape[axis] != length:
            labels = labels.take(nearest_indices(labels.shape[axis], length), axis=axis)
    return labels


class AxisWeights(NamedTuple):
    """The old voxels along an axis from which each new one is made, and their weights, which sum to 1."""

    taps: NDArray[np.intp]  # N x K
    weights: NDArray[np.float32]  # N x K

    def section(self, part: slice, first: int) -> "AxisWeights":
        """The new voxels of `part`, made of old ones from `first` on."""
        return AxisWeights(self.taps[part] - first, self.weights[part])


def axis_weights(old: int, length: int) -> AxisWeights:
    """The weights that bring an axis of `old` voxels to `length`: a triangle that is as wide as a voxel of the coarser grid."""
    scale = max(1.0, old / length)  # half the triangle's width, in old voxels
    centers = (np.arange(length) + 0.5) * old / length - 0.5
    first = np.floor(centers - scale).astype(np.intp) + 1
    taps = first[:, None] + np.arange(int(np.floor(2 * scale)) + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centers[:, None]) / scale)
    return AxisWeights(taps.clip(0, old - 1), (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def resize_axis(values: Values, axis: int, by: AxisWeights) -> Values:
    """Resize one axis of values D x H x W x C, as float32."""
    length, count = by.taps.shape
    result = np.zeros([length if index == axis else side for index, side in enumerate(values.shape)], np.float32)
    along = [1] * values.ndim
    along[axis] = -1
    for tap in range(count):
        if by.weights[:, tap].any():
            result += values.take(by.taps[:, tap], axis=axis) * by.weights[:, tap].reshape(along)
    return result
