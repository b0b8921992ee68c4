"""A draw laid on one picture by albumentations' functions, cv2 underneath: the only place that knows albumentations.

It is imported when the first picture comes, since importing it takes seconds. Its functions are called with what was drawn;
its own transforms draw each from a generator of its own, which a seed makes the same for all of them.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.imaging.decode import RGB, Labels
from models.spec import VOID
from training.augment.noise import noise
from training.augment.params import FILL, Draw


def apply(picture: RGB, labels: Labels, draw: Draw, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """Augment RGB uint8 H x W x 3 and labels uint8 H x W to `crop`, (height, width): warp, colours, blur, noise."""
    picture, labels = warped(picture, labels, draw, crop)
    picture = blurred(coloured(picture, draw), draw)
    if draw.noise:
        added = noise(torch.tensor([draw.seed]), torch.tensor([draw.noise]), crop)[0]
        picture = np.asarray(cv2.add(picture, added.numpy(), dtype=cv2.CV_8U), np.uint8)  # saturates at 0 and 255
    return picture, labels


def warped(picture: RGB, labels: Labels, draw: Draw, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """The crop: the picture bilinear, FILL coming in from outside, the labels by nearest neighbour, with VOID."""
    from albumentations.augmentations.geometric import functional as geometric

    matrix = draw.matrix - np.array([[0, 0, draw.corner[0]], [0, 0, draw.corner[1]]])
    # cv2 interpolates four channels in less than half the time of three, and to the same values.
    four = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2RGBA)
    inputs = (four, cv2.INTER_LINEAR, (*FILL, 0)), (np.ascontiguousarray(labels), cv2.INTER_NEAREST, (VOID,))
    constant = cv2.BORDER_CONSTANT
    if draw.elastic is None:
        # `geometric.warp_affine` would hand back a picture of the wrong size where the matrix is the identity.
        move = geometric.warp_affine_with_value_extension
        four, labels = (
            move(pixels, matrix, crop[::-1], how | cv2.WARP_INVERSE_MAP, constant, fill) for pixels, how, fill in inputs
        )
    else:
        x, y = elastic_map(draw.elastic, matrix, crop)
        four, labels = (geometric.remap(pixels, x, y, how, constant, fill) for pixels, how, fill in inputs)
    return np.asarray(cv2.cvtColor(four, cv2.COLOR_RGBA2RGB), np.uint8), labels


def elastic_map(
    cells: NDArray[np.float32], matrix: NDArray[np.float64], crop: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where each pixel of the crop is read, x and y, h x w each: the crop's pixels move, then the matrix maps them."""
    across, down = (cv2.resize(each, crop[::-1], interpolation=cv2.INTER_CUBIC) for each in cells)
    x, y = np.arange(crop[1]), np.arange(crop[0])[:, None]
    read = [
        (row[0] * x + (row[1] * y + row[2])).astype(np.float32)
        + np.float32(row[0]) * across
        + np.float32(row[1]) * down
        for row in matrix
    ]
    return read[0], read[1]


def coloured(picture: RGB, draw: Draw) -> RGB:
    """Brightness, contrast, saturation, hue, in this order, as torchvision and albumentations define them.

    The order does not change: drawn orders buy little, and would make a batch wait for a sort on the GPU.
    """
    from albumentations.augmentations.pixel import functional as pixel

    brightness, contrast, saturation = draw.colour
    picture = pixel.adjust_brightness_torchvision(picture, brightness)
    picture = pixel.adjust_contrast_torchvision(picture, contrast)
    picture = pixel.adjust_saturation_torchvision(picture, saturation)
    if draw.hue:
        # In uint8 cv2 counts hue in steps of two degrees, which moves colours by up to 8 levels.
        turned = pixel.adjust_hue_torchvision(picture.astype(np.float32) / 255, draw.hue)
        picture = np.rint(turned * 255).astype(np.uint8)
    return picture


def blurred(picture: RGB, draw: Draw) -> RGB:
    """By a Gaussian, the picture mirrored at its edges."""
    from albumentations.augmentations.blur import functional as blur
    from albumentations.augmentations.pixel import functional as pixel

    if not draw.blur:
        return picture
    return np.asarray(pixel.separable_convolve(picture, blur.create_gaussian_kernel_1d(draw.blur)))
