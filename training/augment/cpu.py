"""A draw laid on one picture by albumentations' functions, cv2 underneath: the only place that knows albumentations.

It is imported when the first picture comes, since importing it takes seconds. Its functions are called with what was drawn;
its own transforms draw each from a generator of its own, which a seed makes the same for all of them.
"""

import cv2
import numpy as np
import torch

from models.image import RGB, Labels
from models.spec import VOID
from training.augment.draw import FILL, Draw
from training.augment.noise import noise


def apply(picture: RGB, labels: Labels, draw: Draw, crop: tuple[int, int]) -> tuple[RGB, Labels]:
    """Augment RGB uint8 H x W x 3 and labels uint8 H x W to `crop`, (height, width): warp, colours, blur, noise."""
    picture = warp(picture, draw, crop, cv2.INTER_LINEAR, FILL)
    labels = warp(labels, draw, crop, cv2.INTER_NEAREST, VOID)
    picture = blurred(coloured(picture, draw), draw)
    if draw.noise:
        added = noise(torch.tensor([draw.seed]), torch.tensor([draw.noise]), crop)[0]
        picture = (picture + added.numpy()).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture), np.ascontiguousarray(labels)


def warp(
    pixels: RGB | Labels, draw: Draw, crop: tuple[int, int], interpolation: int, fill: tuple[int, ...] | int
) -> RGB | Labels:
    """The crop of RGB uint8 H x W x 3 or labels uint8 H x W; `fill` comes in from outside."""
    from albumentations.augmentations.geometric import functional as geometric

    matrix = draw.matrix - np.array([[0, 0, draw.corner[0]], [0, 0, draw.corner[1]]])
    pixels = np.ascontiguousarray(pixels)
    if draw.elastic is None:
        # `geometric.warp_affine` would hand back a picture of the wrong size where the matrix is the identity.
        return np.asarray(
            geometric.warp_affine_with_value_extension(
                pixels,
                matrix,
                dsize=crop[::-1],
                flags=interpolation | cv2.WARP_INVERSE_MAP,
                border_mode=cv2.BORDER_CONSTANT,
                border_value=fill,
            )
        )
    x, y = elastic_map(draw.elastic, matrix, crop)
    return np.asarray(geometric.remap(pixels, x, y, interpolation, cv2.BORDER_CONSTANT, fill))


def elastic_map(
    cells: np.typing.NDArray[np.float32], matrix: np.typing.NDArray[np.float64], crop: tuple[int, int]
) -> np.typing.NDArray[np.float64]:
    """Where each pixel of the crop is read: float64 2 x h x w, x then y. The crop's pixels move, then the matrix maps them."""
    moved = np.stack([cv2.resize(each, crop[::-1], interpolation=cv2.INTER_CUBIC) for each in cells]).astype(np.float64)
    moved += np.stack(np.meshgrid(np.arange(crop[1]), np.arange(crop[0])))
    return np.asarray(np.tensordot(matrix[:, :2], moved, axes=1) + matrix[:, 2, None, None])


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
