"""Errors by the size of the objects: which thickness a network still finds."""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX

SIZES = (8, 16, 32, 64)  # thickness of objects in pixels: upper ends of the bins; the last bin has none
SIZE_NAMES = (*(f"up to {end} px" for end in SIZES), f"above {SIZES[-1]} px")


def size_counts(target: Labels, wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """2 x bins: pixels of objects, and how many of them are wrong, by the thickness of the object.

    `target`: uint8 H x W; `wrong`: bool H x W.
    """
    counts = np.zeros((2, len(SIZES) + 1), np.int64)
    for label in np.flatnonzero(np.bincount(target.ravel(), minlength=256)[:IGNORE_INDEX]):
        mask = (target == label).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = slice(top, top + height), slice(left, left + width)
        number, components = cv2.connectedComponents(mask[box], connectivity=4)
        bordered = cv2.copyMakeBorder(mask[box], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        inside = cv2.distanceTransform(bordered, cv2.DIST_L2, 5)[1:-1, 1:-1]
        # An object is thicker than `end` if one of its pixels is: a maximum by object takes ten times as long.
        bins = np.zeros(number, int)
        for end in SIZES:
            bins += np.bincount(components[2 * inside - 1 > end], minlength=number) > 0
        pixels = np.bincount((2 * components + wrong[box]).ravel(), minlength=2 * number).reshape(number, 2)[1:]
        np.add.at(counts[0], bins[1:], pixels.sum(axis=1))
        np.add.at(counts[1], bins[1:], pixels[:, 1])
    return counts
