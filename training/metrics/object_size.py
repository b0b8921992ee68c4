"""Errors by the size of the objects: which thickness a network still finds."""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX

SIZES = (8, 16, 32, 64)  # thickness of objects in pixels: upper ends of the bins; the last bin has none
SIZE_NAMES = (*(f"up to {end} px" for end in SIZES), f"above {SIZES[-1]} px")


def size_counts(target: Labels, wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """2 x bins: pixels of objects, and how many of them are wrong, by the thickness of the object."""
    counts = np.zeros((2, len(SIZES) + 1), np.int64)
    for label in np.unique(target[target != IGNORE_INDEX]):
        mask = (target == label).astype(np.uint8)
        number, components = cv2.connectedComponents(mask, connectivity=4)
        inside = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        thickness = np.zeros(number)
        np.maximum.at(thickness, components, inside)
        bins = np.searchsorted(SIZES, 2 * thickness - 1)
        pixels = np.bincount(components[mask == 1], minlength=number)
        errors = np.bincount(components[(mask == 1) & wrong], minlength=number)
        np.add.at(counts[0], bins[1:], pixels[1:])
        np.add.at(counts[1], bins[1:], errors[1:])
    return counts
