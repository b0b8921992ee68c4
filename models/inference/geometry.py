"""Sizes, and the steps between them: from a picture to the canvas that a network sees, and from its labels back.

Sizes are (height, width) in pixels.
"""

import cv2
import numpy as np

from models.imaging.decode import RGB, Labels
from models.spec import InputRule

# Engines plan memory and kernels anew for each size that they meet: 35 ms instead of 8 a picture and a heap that
# grows without end over random sizes. Padded to multiples of this, few sizes are left. It is also a multiple of
# the deepest stride, 32, so that every feature map divides evenly.
BUCKET = 64


def fitted_size(size: tuple[int, int], rule: InputRule) -> tuple[int, int]:
    """The (height, width) at which the network sees a picture of this size."""
    if rule.size is not None:
        return rule.size
    if rule.side is None:
        return size
    scale = rule.side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_picture(picture: RGB, size: tuple[int, int], into: RGB | None = None) -> RGB:
    """Resize RGB uint8 H x W x 3, `into` an array of that size: by area where it shrinks (no aliasing), else bilinear."""
    if picture.shape[:2] == size:
        return picture
    shrinks = size[0] * size[1] < picture.shape[0] * picture.shape[1]
    resized = cv2.resize(picture, size[::-1], into, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize uint8 H x W by nearest neighbour; the result owns its memory.

    cv2's plain INTER_NEAREST takes the pixel left of the centre and shifts the mask by up to half a pixel.
    """
    if labels.shape == size:
        return labels.copy()
    resized = cv2.resize(np.ascontiguousarray(labels), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, dtype=np.uint8)


def to_canvas(picture: RGB, size: tuple[int, int], bucket: int = BUCKET) -> RGB:
    """The picture at `size` on a canvas whose height and width divide by `bucket`, its last row and column repeated.

    RGB uint8 H x W x 3, contiguous: copied once, or not at all where nothing is to be done.
    """
    height, width = size
    whole = ceil_to(height, bucket), ceil_to(width, bucket)
    if picture.shape[:2] == size == whole and picture.flags.c_contiguous and picture.flags.writeable:
        return picture
    canvas = np.empty((*whole, 3), np.uint8)
    inside = canvas[:height, :width]
    if picture.shape[:2] == size:
        inside[:] = picture
    else:
        resize_picture(picture, size, inside)
    canvas[height:, :width] = inside[-1:]
    canvas[:, width:] = canvas[:, width - 1 : width]
    return canvas


def ceil_to(length: int, multiple: int) -> int:
    """The smallest multiple that is not below a length."""
    return -(-length // multiple) * multiple
