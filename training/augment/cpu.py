"""A draw laid on one image by albumentations' functions, cv2 underneath: the only place that knows albumentations.

It is imported when the first image comes, since importing it takes seconds. Its functions are called with what was drawn;
its own transforms draw each from a generator of its own, which a seed makes the same for all of them.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment.noise import gaussian_noise
from training.augment.params import FILL_COLOR, AugmentParams


def augment_image(image: RGB, labels: Labels, draw: AugmentParams, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """Augment RGB uint8 H x W x 3 and labels uint8 H x W to `crop`, (height, width): warp, colours, blur, noise."""
    image, labels = warp(image, labels, draw, crop)
    image = gaussian_blur(adjust_color(image, draw), draw)
    if draw.noise_std:
        added = gaussian_noise(torch.tensor([draw.noise_seed]), torch.tensor([draw.noise_std]), crop)[0]
        image = np.asarray(cv2.add(image, added.numpy(), dtype=cv2.CV_8U), np.uint8)  # saturates at 0 and 255
    return image, labels


def warp(image: RGB, labels: Labels, draw: AugmentParams, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """The crop: the image bilinear, FILL coming in from outside, the labels by nearest neighbour, with VOID."""
    from albumentations.augmentations.geometric import functional as geometric

    matrix = draw.matrix - np.array([[0, 0, draw.window_corner[0]], [0, 0, draw.window_corner[1]]])
    # cv2 interpolates four channels in less than half the time of three, and to the same values.
    four = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2RGBA)
    inputs = (
        (four, cv2.INTER_LINEAR, (*FILL_COLOR, 0)),
        (np.ascontiguousarray(labels), cv2.INTER_NEAREST, (IGNORE_INDEX,)),
    )
    constant = cv2.BORDER_CONSTANT
    if draw.elastic_grid is None:
        # `geometric.warp_affine` would hand back an image of the wrong size where the matrix is the identity.
        move = geometric.warp_affine_with_value_extension
        four, labels = (
            move(pixels, matrix, crop[::-1], how | cv2.WARP_INVERSE_MAP, constant, fill) for pixels, how, fill in inputs
        )
    else:
        x, y = elastic_coordinates(draw.elastic_grid, matrix, crop)
        four, labels = (geometric.remap(pixels, x, y, how, constant, fill) for pixels, how, fill in inputs)
    return np.asarray(cv2.cvtColor(four, cv2.COLOR_RGBA2RGB), np.uint8), labels


def elastic_coordinates(
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


def adjust_color(image: RGB, draw: AugmentParams) -> RGB:
    """Brightness, contrast, saturation, hue, in this order, as torchvision and albumentations define them.

    The order does not change: drawn orders buy little, and would make a batch wait for a sort on the GPU.
    """
    from albumentations.augmentations.pixel import functional as pixel

    brightness, contrast, saturation = draw.color_factors
    image = pixel.adjust_brightness_torchvision(image, brightness)
    image = pixel.adjust_contrast_torchvision(image, contrast)
    image = pixel.adjust_saturation_torchvision(image, saturation)
    if draw.hue_shift:
        # In uint8 cv2 counts hue in steps of two degrees, which moves colours by up to 8 levels.
        turned = pixel.adjust_hue_torchvision(image.astype(np.float32) / 255, draw.hue_shift)
        image = np.rint(turned * 255).astype(np.uint8)
    return image


def gaussian_blur(image: RGB, draw: AugmentParams) -> RGB:
    """By a Gaussian, the image mirrored at its edges."""
    from albumentations.augmentations.blur import functional as blur
    from albumentations.augmentations.pixel import functional as pixel

    if not draw.blur_sigma:
        return image
    return np.asarray(pixel.separable_convolve(image, blur.create_gaussian_kernel_1d(draw.blur_sigma)))
