"""Volumes of one grid as the channels of one volume, as nnU-Net stores them: `_0000`, `_0001`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.sample import Sample, VolumeGrid

MAX_GRID_SHIFT = 0.1  # voxels by which the grids of two files may differ: headers are written in float32


def stack_channels(parts: Sequence[Sample]) -> Sample:
    """The channels of volumes whose grids are one, in their order; the only volume as it is."""
    if len(parts) == 1:
        return parts[0]
    dtype = np.result_type(*(part.values.dtype for part in parts))
    dtype = dtype if dtype.name in ("uint8", "uint16", "int16") else np.dtype(np.float32)
    values = np.concatenate([part.values.astype(dtype, copy=False) for part in parts], axis=-1)
    names = tuple(f"band{index + 1}" for index in range(values.shape[-1]))
    return replace(parts[0], values=values, channels=names)


def describe_mismatch(one: Sample, other: Sample) -> str:
    """How the grids of two volumes differ, such as "have the shapes 35 x 51 x 35 and 35 x 50 x 35"; empty if they are one."""
    if one.size != other.size:
        shapes = " and ".join(" x ".join(map(str, file_shape(each))) for each in (one, other))
        return f"they have the shapes {shapes}"
    grids = [each.frame.grid if each.frame else None for each in (one, other)]
    if grids[0] and grids[1]:
        shift = grid_shift(grids[0], grids[1])
        if shift > MAX_GRID_SHIFT:
            return f"their affines put the same voxel up to {shift:.1f} voxels apart"
    elif one.spacing and other.spacing and not np.allclose(one.spacing.values, other.spacing.values, rtol=0.01):
        spacings = " and ".join(
            " x ".join(f"{step:g}" for step in each.spacing.values) for each in (one, other) if each.spacing
        )
        return f"they have the spacings {spacings}"
    return ""


def grid_shift(one: VolumeGrid, other: VolumeGrid) -> float:
    """How far the corners of two grids of one shape lie apart, in voxels of the first."""
    first, second = np.array(one.affine), np.array(other.affine)
    last = np.array(one.shape) - 1
    corners = np.array([[*(last * [a, b, c]), 1.0] for a in (0, 1) for b in (0, 1) for c in (0, 1)]).T
    distance = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def file_shape(sample: Sample) -> tuple[int, ...]:
    """The shape of a volume in its file's order of axes."""
    return sample.frame.grid.shape if sample.frame and sample.frame.grid else sample.size
