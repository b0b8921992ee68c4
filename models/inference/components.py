"""Connected components of a class in a volume, and their post-processing: `keep_largest` and `min_volume` of a bundle.

Voxels are connected by their faces (6-connectivity): two that touch at an edge or a corner only belong to two components.

Components are found slice by slice (OpenCV) and linked through neighboring slices, so that no map of the whole volume's components
is held: `scipy.ndimage.label` needs 4 bytes a voxel, and is not installed where a bundle is only served.
"""

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import ComponentRule

BACKGROUND = 0  # the label of the voxels of a removed component
ROUNDING = 1e-6  # voxels: 0.3 ml of 1 mm voxels are 300, also where the quotient is a little more

SliceComponents = NDArray[np.int32]  # H x W, 0 outside of the class


def apply_component_rules(labels: Labels, rules: Mapping[int, ComponentRule], voxel_ml: float) -> None:
    """Turn the components of each class that its rule removes into background. `labels`: uint8 D x H x W, changed in place.

    Of the components of a class, those smaller than its `min_volume` go, and with `keep_largest` all but the largest. The rules
    apply class by class: what is removed of one class changes no component of another. `voxel_ml`: the volume of a voxel in ml.
    """
    for label, rule in rules.items():
        if rule.keep_largest or rule.min_volume:
            _remove_components(labels, label, rule.keep_largest, rule.min_volume / voxel_ml - ROUNDING)


class Components(NamedTuple):
    """The components of a class. Each slice has components of its own, its parts; a component is made of parts that touch."""

    sizes: NDArray[np.int64]  # P, voxels of the component that each part belongs to
    component: NDArray[np.int64]  # P, the component of each part: the number of its first part
    ends: NDArray[np.int64]  # D, the number of parts up to and with each slice


def find_components(labels: Labels, label: int) -> Components:
    """The components of a class, 6-connected. `labels`: uint8 D x H x W."""
    areas, ends, links = list[NDArray[np.int64]](), list[int](), list[NDArray[np.int64]]()
    before: SliceComponents | None = None
    first_before = first = 0  # numbers of the first parts of the slice before and of this one
    for plane in labels:
        count, parts, stats, _ = cv2.connectedComponentsWithStats(_mask(plane, label), connectivity=4, ltype=cv2.CV_32S)
        if before is not None and count > 1:
            touching = (before > 0) & (parts > 0)
            pairs = np.unique(before[touching].astype(np.int64) * count + parts[touching])
            links.append(np.stack([first_before + pairs // count - 1, first + pairs % count - 1]))
        areas.append(stats[1:, cv2.CC_STAT_AREA].astype(np.int64))
        before, first_before, first = (np.asarray(parts) if count > 1 else None), first, first + count - 1
        ends.append(first)
    component = _join(first, np.concatenate(links, axis=1) if links else np.zeros((2, 0), np.int64))
    sizes = np.bincount(component, np.concatenate(areas), first).astype(np.int64)[component]
    return Components(sizes, component, np.array(ends))


def _remove_components(labels: Labels, label: int, keep_largest: bool, min_voxels: float) -> None:
    found = find_components(labels, label)
    removed = found.sizes < min_voxels
    if keep_largest and len(found.sizes):
        removed |= found.component != found.component[np.argmax(found.sizes)]  # of equal ones, the first
    for plane, parts_removed in zip(labels, np.split(removed, found.ends[:-1]), strict=True):
        if parts_removed.any():  # the parts of this slice, found again: they have the same numbers
            _, parts = cv2.connectedComponents(_mask(plane, label), connectivity=4, ltype=cv2.CV_32S)
            plane[np.concatenate([[False], parts_removed])[parts]] = BACKGROUND


def _mask(plane: Labels, label: int) -> NDArray[np.uint8]:
    return np.asarray(plane == label).view(np.uint8)


def _join(count: int, links: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lowest number among the parts that each of `count` parts is linked with, also through others. `links`: 2 x L."""
    lowest = np.arange(count)
    while True:
        one, two = lowest[links]
        if np.array_equal(one, two):
            return lowest
        np.minimum.at(lowest, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(shorter := lowest[lowest], lowest):
            lowest = shorter
