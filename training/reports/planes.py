"""A volume as one image: an axial, a coronal and a sagittal slice through the middle of its classes, side by side."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import RGB, Labels
from models.inference.geometry import resize_labels
from models.sample import Sample
from models.spec import IGNORE_INDEX
from training.reports.samples import gray

MIN_HEIGHT = 240  # pixels of the image: small volumes are enlarged


def three_planes(sample: Sample, *masks: Labels) -> tuple[RGB, list[Labels]]:
    """The slices of the first channel, RGB uint8 H x W x 3, and those of masks uint8 D x H x W in the same places.

    Axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left; heads are up. Lengths are to
    scale. The space around smaller slices is black, and background in the masks.
    """
    spacing = sample.spacing.values if sample.spacing else (1.0, 1.0, 1.0)
    d, h, w = _center(masks[0])
    views = [(0, d, (spacing[1], spacing[2])), (1, h, (spacing[0], spacing[2])), (2, w, (spacing[0], spacing[1]))]
    sizes = [np.array(np.delete(sample.size, axis)) * steps for axis, _, steps in views]
    scale = MIN_HEIGHT / max(size[0] for size in sizes)
    shapes = [(max(1, round(size[0] * scale)), max(1, round(size[1] * scale))) for size in sizes]

    def slices(volume: NDArray[Any]) -> list[NDArray[Any]]:
        planes = [np.take(volume, index, axis=axis) for axis, index, _ in views]
        return [planes[0], planes[1][::-1], planes[2][::-1]]  # D runs to the head

    image = gray(np.concatenate([plane.ravel() for plane in slices(sample.values[..., 0])])[None])[0]
    photos, first = [], 0
    for plane in slices(sample.values[..., 0]):
        photos.append(image[first : first + plane.size].reshape(*plane.shape, 3))
        first += plane.size
    photo = [
        np.stack([_resize(each[..., channel], shape) for channel in range(3)], axis=-1)
        for each, shape in zip(photos, shapes, strict=True)
    ]
    joined = [
        _join([_resize(plane, shape) for plane, shape in zip(slices(mask), shapes, strict=True)]) for mask in masks
    ]
    return np.ascontiguousarray(_join(photo)), joined


def _resize(plane: NDArray[np.generic], shape: tuple[int, int]) -> Labels:
    return resize_labels(np.ascontiguousarray(plane, np.uint8), shape)


def _center(target: Labels) -> tuple[int, int, int]:
    """The voxel in the middle of the classes other than background; of the volume without any."""
    found = np.argwhere((target > 0) & (target != IGNORE_INDEX))
    d, h, w = (
        found.mean(axis=0).round().astype(int).tolist() if len(found) else (length // 2 for length in target.shape)
    )
    return d, h, w


def _join(planes: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images side by side, with zeros below the lower ones."""
    height = max(len(plane) for plane in planes)
    return np.concatenate(
        [np.pad(plane, [(0, height - len(plane)), *[(0, 0)] * (plane.ndim - 1)]) for plane in planes], axis=1
    )
