"""Values as colors: one color map for amounts, one for signed values."""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import RGB, Labels
from models.spec import ClassInfo, palette

# Anchors of a perceptually even map from dark violet to yellow, RGB (viridis, CC0).
_ANCHORS = np.array(
    [(68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
     (110, 206, 88), (181, 222, 43), (253, 231, 37)], np.float32,
)  # fmt: skip
_LOW, _HIGH = np.array((33, 102, 172), np.float32), np.array((178, 24, 43), np.float32)  # negative, positive
_ZERO = np.array((247, 247, 247), np.float32)


def heat_colors(values: NDArray[np.floating], top: float | None = None) -> RGB:
    """Amounts H x W, from 0 to `top` (default: their maximum), as RGB uint8 H x W x 3."""
    peak = float(values.max()) if top is None else top
    scaled = np.clip(values / peak if peak > 0 else np.zeros_like(values), 0, 1) * (len(_ANCHORS) - 1)
    below = np.minimum(scaled.astype(int), len(_ANCHORS) - 2)
    weight = (scaled - below)[..., None].astype(np.float32)
    return np.asarray(_ANCHORS[below] * (1 - weight) + _ANCHORS[below + 1] * weight + 0.5, np.uint8)


def signed_colors(values: NDArray[np.floating], top: float | None = None) -> RGB:
    """Values H x W, blue below zero and red above, as RGB uint8 H x W x 3; `top` is the largest absolute value."""
    peak = float(np.abs(values).max()) if top is None else top
    scaled = np.clip(values / peak if peak > 0 else np.zeros_like(values), -1, 1)[..., None].astype(np.float32)
    colors = np.where(scaled < 0, _ZERO + (_ZERO - _LOW) * scaled, _ZERO + (_HIGH - _ZERO) * scaled)
    return np.asarray(colors + 0.5, np.uint8)


def label_colors(labels: Labels, classes: list[ClassInfo]) -> RGB:
    """Labels uint8 H x W in the colors of their classes, RGB uint8 H x W x 3."""
    return np.array(palette(classes), np.uint8)[labels]


def enlarge(image: RGB, factor: int) -> RGB:
    """Repeat every pixel `factor` times in both directions."""
    return np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def tile_images(images: list[RGB], columns: int, gap: int = 2) -> RGB:
    """Images of one size in rows of `columns`, with a transparent-looking gray gap; RGB uint8."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def shrink(image: RGB, longest: int) -> RGB:
    """Resize by area so that the long side has at most `longest` pixels."""
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
