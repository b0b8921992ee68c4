"""Augments one image by albumentations' functions, which use cv2.

albumentations is imported with the first image, because importing it takes seconds. Its functions are called with the
sampled parameters; its own transforms have a generator each, which one seed makes equal, and so correlated.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.imaging.decode import RGB, Labels
from models.spec import IGNORE_INDEX
from training.augment.noise import gaussian_noise
from training.augment.params import FILL_COLOR, AugmentParams


def augment_image(image: RGB, labels: Labels, params: AugmentParams, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """Augment RGB uint8 H x W x 3 and labels uint8 H x W to `crop`, (height, width): warp, color, blur, noise."""
    image, labels = warp(image, labels, params, crop)
    image = gaussian_blur(adjust_color(image, params), params)
    if params.noise_std:
        noise = gaussian_noise(torch.tensor([params.noise_seed]), torch.tensor([params.noise_std]), crop)[0]
        image = np.asarray(cv2.add(image, noise.numpy(), dtype=cv2.CV_8U), np.uint8)  # saturates at 0 and 255
    return image, labels


def warp(image: RGB, labels: Labels, params: AugmentParams, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """The warped crop: the image bilinear with FILL_COLOR outside, the labels nearest neighbor with IGNORE_INDEX outside."""
    from albumentations.augmentations.geometric import functional as geometric

    matrix = params.matrix - np.array([[0, 0, params.window_corner[0]], [0, 0, params.window_corner[1]]])
    # cv2 interpolates four channels in less than half the time of three, to the same values.
    rgba = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2RGBA)
    inputs = (
        (rgba, cv2.INTER_LINEAR, (*FILL_COLOR, 0)),
        (np.ascontiguousarray(labels), cv2.INTER_NEAREST, (IGNORE_INDEX,)),
    )
    constant = cv2.BORDER_CONSTANT
    if params.elastic_grid is None:
        # `geometric.warp_affine` returns an image of the wrong size if the matrix is the identity.
        warp_affine = geometric.warp_affine_with_value_extension
        rgba, labels = (
            warp_affine(pixels, matrix, crop[::-1], mode | cv2.WARP_INVERSE_MAP, constant, fill)
            for pixels, mode, fill in inputs
        )
    else:
        x, y = elastic_coordinates(params.elastic_grid, matrix, crop)
        rgba, labels = (geometric.remap(pixels, x, y, mode, constant, fill) for pixels, mode, fill in inputs)
    return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8), labels


def elastic_coordinates(
    grid: NDArray[np.float32], matrix: NDArray[np.float64], crop: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Source coordinates of the crop's pixels, x and y, h x w each: `grid` displaces them, then `matrix` maps them."""
    shift_x, shift_y = (cv2.resize(axis, crop[::-1], interpolation=cv2.INTER_CUBIC) for axis in grid)
    x, y = np.arange(crop[1]), np.arange(crop[0])[:, None]
    source = [
        (row[0] * x + (row[1] * y + row[2])).astype(np.float32)
        + np.float32(row[0]) * shift_x
        + np.float32(row[1]) * shift_y
        for row in matrix
    ]
    return source[0], source[1]


def adjust_color(image: RGB, params: AugmentParams) -> RGB:
    """Brightness, contrast, saturation, hue, in this order, as torchvision and albumentations define them.

    The order is fixed: a random order gains little, and would make a batch wait for a sort on the GPU.
    """
    from albumentations.augmentations.pixel import functional as pixel

    brightness, contrast, saturation = params.color_factors
    image = pixel.adjust_brightness_torchvision(image, brightness)
    image = pixel.adjust_contrast_torchvision(image, contrast)
    image = pixel.adjust_saturation_torchvision(image, saturation)
    if params.hue_shift:
        # In uint8, cv2 has hue in steps of two degrees, which changes colors by up to 8 levels.
        shifted = pixel.adjust_hue_torchvision(image.astype(np.float32) / 255, params.hue_shift)
        image = np.rint(shifted * 255).astype(np.uint8)
    return image


def adjust_color_of_floats(image: NDArray[np.float32], params: AugmentParams) -> NDArray[np.float32]:
    """As `adjust_color`, of RGB float32 H x W x 3 in 0..1."""
    from albumentations.augmentations.pixel import functional as pixel

    brightness, contrast, saturation = params.color_factors
    image = pixel.adjust_brightness_torchvision(image, brightness)
    image = pixel.adjust_contrast_torchvision(image, contrast)
    image = pixel.adjust_saturation_torchvision(image, saturation)
    if params.hue_shift:
        image = pixel.adjust_hue_torchvision(image, params.hue_shift)
    return np.asarray(image, np.float32)


def gaussian_blur(image: RGB, params: AugmentParams) -> RGB:
    """Blur by a Gaussian, mirrored at the edges."""
    from albumentations.augmentations.blur import functional as blur
    from albumentations.augmentations.pixel import functional as pixel

    if not params.blur_sigma:
        return image
    return np.asarray(pixel.separable_convolve(image, blur.create_gaussian_kernel_1d(params.blur_sigma)))
