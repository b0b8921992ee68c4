"""Resizing and padding: from an image to the network's input, and from its labels back to the image's size.

Sizes are (height, width) in pixels.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.imaging.nearest import nearest_indices
from models.spec import InputRule

Image = NDArray[Any]  # H x W x C: RGB uint8, or the channels and dtype of an `InputRule`
RGB_COUNT, MAX_CV_CHANNELS = 3, 4  # OpenCV resizes by area, and fills borders, with up to four channels

# Tiles are multiples of this, twice the deepest stride, so that the logits of all windows lie on one grid.
SIZE_DIVISOR = 64
# Pixels; smaller images are padded to it, because networks of stride 32 have no map of a smaller one.
MIN_CANVAS_SIDE = 32


def network_input_size(size: tuple[int, int], rule: InputRule) -> tuple[int, int]:
    """The (height, width) to which the input rule resizes an image of this size."""
    if rule.size is not None:
        return rule.size
    if rule.side is None:
        return size
    scale = rule.side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_image(image: Image, size: tuple[int, int], into: Image | None = None) -> Image:
    """Resize H x W x C, optionally into an array: by area when shrinking (no aliasing), else bilinear."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if image.shape[2] == RGB_COUNT:
        return np.asarray(cv2.resize(image, size[::-1], into, interpolation=interpolation), dtype=image.dtype)
    resized = np.empty((*size, image.shape[2]), image.dtype) if into is None else into
    for first in range(0, image.shape[2], MAX_CV_CHANNELS):
        part = np.ascontiguousarray(image[:, :, first : first + MAX_CV_CHANNELS])
        resized[:, :, first : first + MAX_CV_CHANNELS] = cv2.resize(
            part, size[::-1], interpolation=interpolation
        ).reshape(*size, part.shape[2])
    return resized


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize uint8 H x W by nearest neighbor, without a shift against `resize_image`; the result owns its memory.

    cv2's INTER_NEAREST uses the pixel left of the center and shifts the mask by up to half a pixel.
    """
    if labels.shape == size:
        return labels.copy()
    rows, columns = (nearest_indices(*lengths) for lengths in zip(labels.shape, size, strict=True))
    # Whole rows are copied fastest: take them first where they become fewer, last where they become more.
    if size[0] <= labels.shape[0]:
        return labels.take(rows, axis=0).take(columns, axis=1)
    return labels.take(columns, axis=1).take(rows, axis=0)


def canvas_size(fitted: tuple[int, int], rule: InputRule) -> tuple[int, int]:
    """The (height, width) of the canvas, the network's input, for an image that the rule resized to `fitted`.

    Padding to the stride keeps the grid of logits aligned with the image: without, that of a network of stride 8 is
    stretched by up to 7 pixels. A network that was trained here sees such canvases in its training too, and loses mIoU without
    padding (docs/inference.md). An imported network runs as its authors run it, without padding if it can.
    """
    if rule.size is not None:
        return fitted
    height, width = (max(MIN_CANVAS_SIDE, round_up(side, rule.divisor)) for side in fitted)
    return height, width


def resize_and_pad(image: Image, size: tuple[int, int], padded: tuple[int, int]) -> Image:
    """Resize an image to `size`, and pad it below and right to `padded` by repeating the last row and column.

    Returns: H x W x C, contiguous; the image itself if there is nothing to do.
    """
    height, width = size
    if image.shape[:2] == size == padded and image.flags.c_contiguous and image.flags.writeable:
        return image
    canvas = np.empty((*padded, image.shape[2]), image.dtype)
    inside = canvas[:height, :width]
    if image.shape[:2] == size:
        inside[:] = image
    else:
        resize_image(image, size, inside)
    canvas[height:, :width] = inside[-1:]
    canvas[:, width:] = canvas[:, width - 1 : width]
    return canvas


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `length`."""
    return -(-length // multiple) * multiple
