"""Occlusion: how much the score of a pixel's class falls when a part of the image is hidden (Zeiler and Fergus 2014).

A square of the image's mean value slides over the image; each position costs one prediction. Where the class
probability falls, the network needs what was hidden. The map is computed around the point, as far as `REACH` squares.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.explain.colors import signed_colors
from models.explain.facts import Facts, Finding
from models.explain.subject import Subject

TITLE = "Occlusion"
REACH = 3  # squares on either side of the point, along each axis: 49 predictions


def compute(subject: Subject) -> Facts:
    """The fall of the logarithm of the class probability at the point, by hidden square, and the runner-up class."""
    label = subject.target_label()
    side = square_side(subject)
    values = occlusion_map(subject, label, side)
    x, y = subject.point
    ranking = np.argsort(subject.probabilities[:, y, x])[::-1]
    runner_up = int(ranking[ranking != label][0])
    own = abs(float(values[y, x]))
    numbers = {
        "class": subject.classes[label].name,
        "probability": round(float(subject.probabilities[label, y, x]), 4),
        "runner_up": subject.classes[runner_up].name,
        "runner_up_probability": round(float(subject.probabilities[runner_up, y, x]), 4),
        "square": side,
        "largest_fall": round(float(values.max()), 4),
        "fall_at_point": round(own, 4),
    }
    return Facts(numbers, {"occlusion": signed_colors(values)})


def square_side(subject: Subject) -> int:
    """Side of the hidden square in pixels: an eighth of the short side."""
    return max(4, min(subject.size) // 8)


def occlusion_map(subject: Subject, label: int, side: int) -> NDArray[np.float32]:
    """The fall of log p of a class at the point, float32 H x W; 0 where nothing was hidden."""
    x, y = subject.point
    before = np.log(max(float(subject.probabilities[label, y, x]), 1e-6))
    height, width = subject.size
    grid = np.zeros((2 * REACH + 1, 2 * REACH + 1), np.float32)
    for row, column in np.ndindex(*grid.shape):
        top, left = y + (row - REACH) * side - side // 2, x + (column - REACH) * side - side // 2
        hidden = subject.image.copy()
        part = hidden[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
        if part.size:
            part[:] = subject.mean_sample
            after = np.log(max(float(subject.predict(hidden)[label, y, x]), 1e-6))
            grid[row, column] = before - after
    return _paste(grid, (height, width), subject.point, side)


def _paste(grid: NDArray[np.float32], size: tuple[int, int], point: tuple[int, int], side: int) -> NDArray[np.float32]:
    """The squares of the grid at their place in an image of `size`."""
    whole = np.zeros(size, np.float32)
    large = cv2.resize(grid, None, fx=side, fy=side, interpolation=cv2.INTER_NEAREST)
    top, left = (center - REACH * side - side // 2 for center in reversed(point))
    rows = slice(max(0, top), min(size[0], top + large.shape[0]))
    columns = slice(max(0, left), min(size[1], left + large.shape[1]))
    whole[rows, columns] = large[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return whole


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """None: what a network needs is no fault."""
    return []
