"""Sizes, and the steps between them: from an image to the canvas that a network sees, and from its labels back.

Sizes are (height, width) in pixels.
"""

import cv2
import numpy as np

from models.imaging.decode import RGB, Labels
from models.spec import InputRule

# Engines plan memory and kernels anew for each size that they meet: 35 ms instead of 8 an image and a heap that
# grows without end over random sizes. Padded to multiples of this, few sizes are left. It is also a multiple of
# the deepest stride, 32, so that every feature map divides evenly.
SIZE_DIVISOR = 64


def network_input_size(size: tuple[int, int], rule: InputRule) -> tuple[int, int]:
    """The (height, width) at which the network sees an image of this size."""
    if rule.size is not None:
        return rule.size
    if rule.side is None:
        return size
    scale = rule.side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_image(image: RGB, size: tuple[int, int], into: RGB | None = None) -> RGB:
    """Resize RGB uint8 H x W x 3, `into` an array of that size: by area where it shrinks (no aliasing), else bilinear."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    resized = cv2.resize(image, size[::-1], into, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize uint8 H x W by nearest neighbour; the result owns its memory.

    cv2's plain INTER_NEAREST takes the pixel left of the centre and shifts the mask by up to half a pixel.
    """
    if labels.shape == size:
        return labels.copy()
    resized = cv2.resize(np.ascontiguousarray(labels), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, dtype=np.uint8)


def resize_and_pad(image: RGB, size: tuple[int, int], size_divisor: int = SIZE_DIVISOR) -> RGB:
    """The image at `size` on a canvas whose height and width divide by `bucket`, its last row and column repeated.

    RGB uint8 H x W x 3, contiguous: copied once, or not at all where nothing is to be done.
    """
    height, width = size
    whole = round_up(height, size_divisor), round_up(width, size_divisor)
    if image.shape[:2] == size == whole and image.flags.c_contiguous and image.flags.writeable:
        return image
    canvas = np.empty((*whole, 3), np.uint8)
    inside = canvas[:height, :width]
    if image.shape[:2] == size:
        inside[:] = image
    else:
        resize_image(image, size, inside)
    canvas[height:, :width] = inside[-1:]
    canvas[:, width:] = canvas[:, width - 1 : width]
    return canvas


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below a length."""
    return -(-length // multiple) * multiple
