"""Orientation of volumes: from a file's axes to D, H, W and back, without resampling.

The canonical orientation is that of DICOM and ITK (LPS): D runs to the patient's head, H to the back, W to the left, so that a
slice `values[d]` is upright and seen from the feet, as on a radiologist's screen. An oblique volume keeps its own grid: each
axis gets the nearest direction. Affines are those of NIfTI, which runs to the right, the front and the head (RAS).
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import CorruptImageError
from models.sample import MM3_PER_ML, Affine4, Sample, VolumeGrid

# World axis (x right, y front, z head) and sign of D, H and W.
CANONICAL = ((2, 1), (1, -1), (0, -1))
MIN_DETERMINANT = 1e-3  # of the directions, each of length 1; 0 if they lie in a plane


def to_canonical(array: NDArray[Any], affine: ArrayLike) -> tuple[NDArray[Any], VolumeGrid]:
    """A file's array, i x j x k with further axes, as a view D x H x W with the same further axes; and the file's grid.

    Raises: CorruptImageError for an affine that is not finite, or whose axes lie in a plane.
    """
    matrix = check_affine(affine)
    order, flipped = _nearest_axes(matrix)
    shape = (array.shape[0], array.shape[1], array.shape[2])
    rows: Affine4 = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix.tolist())
    grid = VolumeGrid(shape, rows, order, flipped, str(array.dtype))
    moved = array.transpose(*order, *range(3, array.ndim))
    return moved[_slices(flipped)], grid


def to_file_grid(values: NDArray[Any], grid: VolumeGrid) -> NDArray[Any]:
    """The inverse of `to_canonical`: D x H x W, such as labels, as a view in the file's order i x j x k."""
    order = [grid.order.index(axis) for axis in range(3)]
    return values[_slices(grid.flipped)].transpose(*order, *range(3, values.ndim))


def grid_of(sample: Sample) -> VolumeGrid:
    """The grid of the file that a volume comes from.

    A file that does not say how it lies in a patient counts its voxels along W, H, D, and is taken as in canonical orientation;
    without a spacing, its voxels are cubes of 1 mm.
    """
    if sample.frame is not None and sample.frame.grid is not None:
        return sample.frame.grid
    depth, height, width = sample.size
    d, h, w = sample.spacing.values if sample.spacing else (1.0, 1.0, 1.0)
    affine: Affine4 = ((-w, 0.0, 0.0, 0.0), (0.0, -h, 0.0, 0.0), (0.0, 0.0, d, 0.0), (0.0, 0.0, 0.0, 1.0))
    return VolumeGrid((width, height, depth), affine, (2, 1, 0), dtype=sample.dtype)


def spacing_of(grid: VolumeGrid) -> tuple[float, float, float]:
    """The distance of neighboring voxels along D, H and W, in mm."""
    lengths = np.linalg.norm(np.array(grid.affine)[:3, :3], axis=0)
    d, h, w = (float(lengths[axis]) for axis in grid.order)
    return d, h, w


def voxel_ml(affine: ArrayLike) -> float:
    """The volume in ml of a voxel of an affine to mm, 4 x 4."""
    return float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3]))) / MM3_PER_ML


def canonical_affine(grid: VolumeGrid) -> NDArray[np.float64]:
    """The 4 x 4 affine from (d, h, w, 1) to (x, y, z, 1) in mm (RAS)."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for ours, (axis, flip) in enumerate(zip(grid.order, grid.flipped, strict=True)):
        change[axis, ours] = -1 if flip else 1
        change[axis, 3] = grid.shape[axis] - 1 if flip else 0
    return np.asarray(np.array(grid.affine) @ change)


def axis_names(affine: ArrayLike) -> str:
    """The directions that i, j and k run to, such as `RAS` or `LPI`, each the nearest one."""
    order, flipped = _nearest_axes(np.asarray(affine, np.float64))
    names = [""] * 3
    for (world, sign), axis, flip in zip(CANONICAL, order, flipped, strict=True):
        names[axis] = ("LR", "PA", "IS")[world][int(sign * (-1 if flip else 1) > 0)]
    return "".join(names)


def check_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """A 4 x 4 affine as float64. Raises: CorruptImageError if it is not finite, or not invertible."""
    matrix = np.asarray(affine, np.float64)
    advice = "Correct the header, and save the file again."
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.abs(matrix).max() > 1e9:
        raise CorruptImageError(f"The volume's affine has values that are not finite numbers of mm. {advice}")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if (lengths <= 1e-9).any():
        listed = " x ".join(f"{length:g}" for length in lengths)
        raise CorruptImageError(f"The volume has a spacing of {listed} mm; expected more than 0. {advice}")
    if abs(np.linalg.det(matrix[:3, :3] / lengths)) < MIN_DETERMINANT:
        raise CorruptImageError(f"The volume's affine puts its axes into one plane. {advice}")
    return matrix


def _nearest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """The file's axis for each of D, H, W, and whether it runs the other way: the assignment that turns the volume least."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.array([[sign * directions[world, axis] for axis in range(3)] for world, sign in CANONICAL])
    # Of assignments that are equally near, as at 45 degrees, the first one is taken on every machine.
    best = max(itertools.permutations(range(3)), key=lambda order: round(sum(abs(cosines[range(3), order])), 6))
    d, h, w = best
    return (d, h, w), (bool(cosines[0, d] < 0), bool(cosines[1, h] < 0), bool(cosines[2, w] < 0))


def _slices(flipped: tuple[bool, bool, bool]) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else None) for flip in flipped)
