"""Augments one sample of any channels and dtype: the same geometry as `cpu.py`, color only where there is red, green and blue.

Numbers that `policy.py` samples in levels of 0..255 become units of the samples by the range of the scaling; for `zscore` a
level is 1/58 of the sample's standard deviation, as in photographs (ImageNet's is 58 levels).
"""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.inference.geometry import MAX_CV_CHANNELS, Image
from models.readers.prepare import fill_values
from models.sample import Statistics
from models.spec import IGNORE_INDEX, RGB_CHANNELS, InputRule
from training.augment.cpu import adjust_color_of_floats, elastic_coordinates
from training.augment.noise import gaussian_noise
from training.augment.params import IDENTITY_COLOR_FACTORS, AugmentParams, crop_to_source_window, gaussian_kernel

LEVELS_PER_DEVIATION = 58.0


def augment_sample(
    image: Image, labels: Labels, params: AugmentParams, crop: tuple[int, int], rule: InputRule,
    statistics: Statistics | None = None,
) -> tuple[Image, Labels]:  # fmt: skip
    """Augment H x W x C, in the rule's channels and dtype, and labels uint8 H x W to `crop`, (height, width).

    `statistics`: mean and scale of the whole sample, for `zscore`. The area from outside the image holds each channel's middle.
    """
    fill = fill_values(rule) if statistics is None else statistics[0]
    image, labels, params = crop_to_source_window(image, labels, params, crop)  # of 13 channels, a third of the time
    image, labels = _warp(image, labels, params, crop, fill.astype(np.float64))
    changes_color = params.color_factors != IDENTITY_COLOR_FACTORS or params.hue_shift
    if changes_color and (rgb := rgb_indices(rule)) and rule.scaling.low:
        image = _adjust_color(image, params, rule, rgb)
    if params.blur_sigma:
        kernel = gaussian_kernel(params.blur_sigma)
        blurred = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
        image = np.asarray(blurred).reshape(image.shape)
    if params.noise_std:
        noise = gaussian_noise(
            torch.tensor([params.noise_seed]), torch.tensor([params.noise_std]), crop, len(rule.channels)
        )[0].numpy()
        image = to_dtype(image.astype(np.float32) + noise * sample_levels(rule, statistics), image.dtype)
    return image, labels


def rgb_indices(rule: InputRule) -> list[int]:
    """The channels red, green and blue, in this order; empty without all three."""
    names = [name.lower() for name in rule.channels]
    return [names.index(name) for name in RGB_CHANNELS] if set(RGB_CHANNELS) <= set(names) else []


def sample_levels(rule: InputRule, statistics: Statistics | None) -> NDArray[np.float32]:
    """The size of one level of 0..255, by channel, in units of the samples."""
    if statistics is not None:
        return np.asarray(statistics[1] / LEVELS_PER_DEVIATION, np.float32)
    return np.asarray((np.array(rule.scaling.high) - np.array(rule.scaling.low)) / 255, np.float32)


def _warp(
    image: Image, labels: Labels, params: AugmentParams, crop: tuple[int, int], fill: NDArray[np.float64]
) -> tuple[Image, Labels]:
    matrix = params.matrix - np.array([[0, 0, params.window_corner[0]], [0, 0, params.window_corner[1]]])
    grid = None if params.elastic_grid is None else elastic_coordinates(params.elastic_grid, matrix, crop)

    def move(part: Image, interpolation: int, border: tuple[float, ...]) -> Image:
        part = np.ascontiguousarray(part)
        if grid is not None:
            moved = cv2.remap(part, *grid, interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
        else:
            flags = interpolation | cv2.WARP_INVERSE_MAP
            moved = cv2.warpAffine(
                part, matrix, crop[::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=border
            )
        return np.asarray(moved)

    result = np.empty((*crop, image.shape[2]), image.dtype)
    for first in range(0, image.shape[2], MAX_CV_CHANNELS):
        part = slice(first, first + MAX_CV_CHANNELS)
        border = tuple(fill[part].tolist())
        result[:, :, part] = move(image[:, :, part], cv2.INTER_LINEAR, border).reshape(*crop, len(border))
    return result, move(labels, cv2.INTER_NEAREST, (IGNORE_INDEX,)).astype(np.uint8)


def _adjust_color(image: Image, params: AugmentParams, rule: InputRule, rgb: list[int]) -> Image:
    low = np.array([rule.scaling.low[index] for index in rgb], np.float32)
    span = np.array([rule.scaling.high[index] for index in rgb], np.float32) - low
    unit = ((image[:, :, rgb].astype(np.float32) - low) / span).clip(0, 1)
    image = image.copy()
    image[:, :, rgb] = to_dtype(adjust_color_of_floats(unit, params) * span + low, image.dtype)
    return image


def to_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> Image:
    """Values in the type of the samples; integers are rounded and clipped to the range of theirs."""
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.asarray(np.rint(values).clip(limits.min, limits.max), dtype)
