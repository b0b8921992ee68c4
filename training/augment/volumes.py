"""Augments volumes: takes a random patch of one, turns, scales, mirrors and bends it, and changes its intensities.

`sample_params` samples every change as numbers; `apply_params` applies them to tensors on any device. The changes and their
probabilities are those of nnU-Net's default (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), with a
bias field for MR. Labels are moved by nearest neighbor, and what comes from outside of the volume is ignored.

Turns are in mm: a voxel of 1 x 1 x 5 mm is not turned as if it were a cube. Where one axis is at least 3 times as coarse as
another, the volume is turned, bent and blurred within its slices only.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.imaging.decode import Labels
from models.readers.prepare import fill_values
from models.sample import Statistics, Values
from models.spec import IGNORE_INDEX, InputRule
from training.augment.samples import LEVELS_PER_DEVIATION, to_dtype
from training.config import TrainConfig

ANISOTROPY = 3.0  # ratio of spacings, from which an axis is coarse
ELASTIC_CELLS = 6  # control points of the displacement along each axis
BIAS_CELLS = 4
# Probabilities of the changes, as in nnU-Net; those of the last two are ours.
P_ROTATE, P_SCALE, P_NOISE, P_BLUR, P_BRIGHTNESS, P_CONTRAST, P_LOW_RESOLUTION, P_GAMMA, P_INVERTED_GAMMA = (
    0.2, 0.2, 0.1, 0.2, 0.15, 0.15, 0.25, 0.3, 0.1,
)  # fmt: skip
P_ELASTIC, P_BIAS = 0.2, 0.15

Size = tuple[int, int, int]  # voxels along D, H, W


@dataclass(frozen=True)
class VolumeParams:
    """The changes of one patch. The defaults change nothing."""

    start: Size  # index in the volume of the patch's first voxel, before it is turned; negative: outside of it
    crop: Size
    matrix: NDArray[np.float64] | None = (
        None  # 3 x 3: from offsets from the patch's center to those in the volume, voxels
    )
    elastic: NDArray[np.float32] | None = None  # 3 x g x g x g: displacement in voxels of the volume
    flips: tuple[bool, bool, bool] = (False, False, False)  # of D, H and W
    noise_std: float = 0.0  # in standard deviations of the volume
    noise_seed: int = 0
    blur_sigma: tuple[float, float, float] = (0.0, 0.0, 0.0)  # voxels along D, H, W
    brightness: float = 1.0  # factor
    contrast: float = 1.0  # factor on the distance to the patch's mean
    zoom: float = 1.0  # resolution of the patch, 0..1
    in_plane: tuple[bool, bool, bool] = (True, True, True)  # the axes that lose resolution
    gamma: float = 1.0
    inverted_gamma: bool = False
    bias: NDArray[np.float32] | None = None  # g x g x g: logarithm of the bias field


def augment_volume(
    values: Values,
    labels: Labels,
    rng: np.random.Generator,
    crop: Size,
    config: TrainConfig,
    rule: InputRule,
    statistics: Statistics | None = None,
) -> tuple[Values, Labels]:
    """A random patch of values D x H x W x C and labels uint8 D x H x W, augmented: `crop` x C in the type of the values.

    `statistics`: mean and scale of the whole volume by channel, 2 x C, for the scaling `zscore`.
    """
    spacing = rule.spacing.values if rule.spacing else (1.0, 1.0, 1.0)
    params = sample_params(labels, rng, crop, config, spacing)
    window, fill = source_window(params, labels.shape), fill_values(rule).astype(np.float32)
    mean, deviation = intensity_units(rule, statistics)
    if statistics is not None:
        fill = mean
    inside = tuple(slice(first, last) for first, last in window)
    origin = np.array([first for first, _ in window])
    image = torch.from_numpy(np.ascontiguousarray(values[inside].astype(np.float32))).movedim(-1, 0)
    mask = torch.from_numpy(np.ascontiguousarray(labels[inside]))
    units = torch.from_numpy(np.stack([fill, mean, deviation]))
    changed, moved = apply_params(image, mask, params, origin, units)
    result = changed.movedim(0, -1).contiguous().numpy()
    return to_dtype(result, values.dtype), moved.numpy()


def sample_params(
    labels: Labels, rng: np.random.Generator, crop: Size, config: TrainConfig, spacing: tuple[float, ...]
) -> VolumeParams:
    """Sample where a patch lies and how it is changed, by the settings of a run."""
    fine = np.array([step < ANISOTROPY * min(spacing) for step in spacing])
    start = sample_start(labels, rng, crop, config.class_balanced_crops)
    matrix = _sample_matrix(rng, config, np.array(spacing), fine)
    elastic = None
    if config.elastic and rng.random() < P_ELASTIC:
        reach = rng.uniform(0, config.elastic) * min(np.array(crop)[fine])
        elastic = rng.uniform(-reach, reach, (3, *[ELASTIC_CELLS] * 3)).astype(np.float32) * fine[:, None, None, None]
    sigma = rng.uniform(0.5, config.blur) if config.blur > 0.5 and rng.random() < P_BLUR else 0.0
    jitter, gamma, inverted = config.color_jitter, 1.0, False
    if config.gamma:
        inverted = bool(rng.random() < P_INVERTED_GAMMA)
        gamma = math.exp(rng.uniform(-config.gamma, config.gamma)) if inverted or rng.random() < P_GAMMA else 1.0
    bias = None
    if config.bias_field and rng.random() < P_BIAS:
        bias = rng.uniform(-config.bias_field, config.bias_field, [BIAS_CELLS] * 3).astype(np.float32)
    has_low_resolution = config.low_resolution < 1 and rng.random() < P_LOW_RESOLUTION
    return VolumeParams(
        start,
        crop,
        matrix,
        elastic,
        flips=_sample_flips(rng, config.flip_axes),
        noise_std=rng.uniform(0, config.noise / LEVELS_PER_DEVIATION) if rng.random() < P_NOISE else 0.0,
        noise_seed=int(rng.integers(2**31)),
        blur_sigma=(sigma * bool(fine[0]), sigma * bool(fine[1]), sigma * bool(fine[2])),
        brightness=rng.uniform(1 - jitter, 1 + jitter) if jitter and rng.random() < P_BRIGHTNESS else 1.0,
        contrast=rng.uniform(1 - jitter, 1 + jitter) if jitter and rng.random() < P_CONTRAST else 1.0,
        zoom=rng.uniform(config.low_resolution, 1) if has_low_resolution else 1.0,
        in_plane=(bool(fine[0]), bool(fine[1]), bool(fine[2])),
        gamma=gamma,
        inverted_gamma=inverted,
        bias=bias,
    )


def _sample_flips(rng: np.random.Generator, axes: str) -> tuple[bool, bool, bool]:
    d, h, w = (bool(rng.random() < 0.5) and axis in axes for axis in "DHW")
    return d, h, w


def sample_start(labels: Labels, rng: np.random.Generator, crop: Size, class_balanced: float) -> Size:
    """Where a patch begins: anywhere in the volume; a volume that is smaller lies anywhere in the patch.

    With the probability `class_balanced`, a voxel of a class that is sampled from those of the volume, without background, is at
    the center, as far as the patch stays in the volume.
    """
    size = labels.shape
    low, high = np.minimum(0, np.subtract(size, crop)), np.maximum(0, np.subtract(size, crop))
    start = rng.integers(low, high + 1)
    if rng.random() < class_balanced:
        counts = np.bincount(labels.reshape(-1), minlength=256)
        counts[[0, IGNORE_INDEX]] = 0
        present = np.flatnonzero(counts)
        if len(present):
            label = int(rng.choice(present))
            voxel = np.unravel_index(_nth_index(labels.reshape(-1), label, int(rng.integers(counts[label]))), size)
            start = np.clip(np.array(voxel) - np.array(crop) // 2, low, high)
    return int(start[0]), int(start[1]), int(start[2])


def _nth_index(flat: Labels, label: int, number: int) -> int:
    """The index of the `number`-th voxel of a label, block by block: a list of all of them may be larger than the volume."""
    block = 1 << 20
    for first in range(0, len(flat), block):
        found = flat[first : first + block] == label
        count = int(np.count_nonzero(found))
        if number < count:
            return first + int(np.flatnonzero(found)[number])
        number -= count
    raise AssertionError("fewer voxels than were counted")


def _sample_matrix(
    rng: np.random.Generator, config: TrainConfig, spacing: NDArray[np.float64], fine: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    turn = config.rotate and rng.random() < P_ROTATE
    scale = config.scale != (1.0, 1.0) and rng.random() < P_SCALE
    if not (turn or scale):
        return None
    rotation = np.eye(3)
    for axis in range(3) if turn else ():
        others = [other for other in range(3) if other != axis]
        if fine[others].all():  # no turn mixes a coarse axis with a fine one
            angle = math.radians(rng.uniform(-config.rotate, config.rotate))
            part = np.eye(3)
            part[np.ix_(others, others)] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            rotation = rotation @ part
    factor = math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1]))) if scale else 1.0
    return np.asarray(rotation * spacing[None, :] / spacing[:, None] / factor)


def source_window(params: VolumeParams, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """The part of a volume of `size` that a patch reads: (first, last) along each axis, at least one voxel."""
    middle = np.array(params.start) + (np.array(params.crop) - 1) / 2
    half = (np.array(params.crop) - 1) / 2
    reach = half if params.matrix is None else np.abs(params.matrix) @ half
    if params.elastic is not None:
        reach = reach + np.abs(params.elastic).max(axis=(1, 2, 3))
    first = np.clip(np.floor(middle - reach) - 1, 0, np.array(size) - 1).astype(int)
    last = np.clip(np.ceil(middle + reach) + 2, first + 1, size).astype(int)
    return list(zip(first.tolist(), last.tolist(), strict=True))


def intensity_units(rule: InputRule, statistics: Statistics | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of the intensities, by channel; without `statistics`, as photographs have in a fixed range."""
    if statistics is not None:
        return statistics[0], statistics[1]
    low, high = np.array(rule.scaling.low), np.array(rule.scaling.high)
    return ((low + high) / 2).astype(np.float32), ((high - low) * LEVELS_PER_DEVIATION / 255).astype(np.float32)


@torch.no_grad()
def apply_params(
    image: Tensor, labels: Tensor, params: VolumeParams, origin: NDArray[np.int64], units: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the changes to an image float32 C x D x H x W and labels uint8 D x H x W, on their device.

    `origin`: index in the whole volume of their first voxel. `units`: 3 x C, the value outside of the volume, and mean and
    standard deviation of its intensities. Returns: float32 C x crop and uint8 crop.
    """
    units = units.to(image.device)[:, :, None, None, None]
    fill, mean, deviation = units
    if params.matrix is None and params.elastic is None:
        moved, mask = _copy_patch(image, labels, params, origin, fill)
    else:
        grid = _sampling_grid(params, origin, labels.shape, image.device)
        moved = F.grid_sample((image - fill)[None], grid, "bilinear", "zeros", align_corners=False)[0] + fill
        shifted = labels[None, None].float() - IGNORE_INDEX  # what is outside is 0, which becomes the ignored label
        nearest = F.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)[0, 0]
        mask = (nearest + IGNORE_INDEX).to(torch.uint8)
    flipped = [axis for axis, flip in enumerate(params.flips) if flip]
    if flipped:
        moved, mask = moved.flip([axis + 1 for axis in flipped]), mask.flip(flipped)
    return _change_intensities((moved - mean) / deviation, params) * deviation + mean, mask


def _copy_patch(
    image: Tensor, labels: Tensor, params: VolumeParams, origin: NDArray[np.int64], fill: Tensor
) -> tuple[Tensor, Tensor]:
    moved = fill.expand(-1, *params.crop).clone()
    mask = torch.full(params.crop, IGNORE_INDEX, dtype=torch.uint8, device=labels.device)
    begin = np.array(params.start) - origin
    first, last = np.maximum(begin, 0), np.minimum(begin + params.crop, labels.shape)
    if (first < last).all():
        source = tuple(slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
        target = tuple(slice(a, b) for a, b in zip((first - begin).tolist(), (last - begin).tolist(), strict=True))
        moved[:, *target], mask[target] = image[:, *source], labels[source]
    return moved, mask


def _sampling_grid(params: VolumeParams, origin: NDArray[np.int64], size: torch.Size, device: torch.device) -> Tensor:
    """Where each voxel of the patch is read, in `grid_sample`'s units: 1 x crop x 3, x first."""
    matrix = np.eye(3) if params.matrix is None else params.matrix
    middle = np.array(params.start) + (np.array(params.crop) - 1) / 2 - origin
    offsets = [
        torch.arange(length, dtype=torch.float32, device=device).sub_((length - 1) / 2).reshape(shape)
        for length, shape in zip(params.crop, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    ]
    elastic = None
    if params.elastic is not None:
        elastic = enlarge_cells(torch.from_numpy(params.elastic).to(device), params.crop)
    grid = torch.empty((1, *params.crop, 3), device=device)
    for axis in range(3):
        # In grid_sample's units, -1 and 1 are the outer borders of the first and the last voxel.
        unit = 2.0 / size[axis]
        source = offsets[0] * float(matrix[axis, 0] * unit) + float((2 * middle[axis] + 1) / size[axis] - 1)
        source = source + offsets[1] * float(matrix[axis, 1] * unit)
        target = grid[0, ..., 2 - axis]
        torch.add(source, offsets[2] * float(matrix[axis, 2] * unit), out=target)
        if elastic is not None:
            target.add_(elastic[axis], alpha=unit)
    return grid


def _change_intensities(image: Tensor, params: VolumeParams) -> Tensor:
    """Change an image C x D x H x W whose intensities have mean 0 and standard deviation 1."""
    if params.noise_std:
        generator = torch.Generator(image.device).manual_seed(params.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = image.add(noise, alpha=params.noise_std)
    if any(params.blur_sigma):
        image = gaussian_blur(image, params.blur_sigma)
    if params.bias is not None:
        field = enlarge_cells(torch.from_numpy(params.bias).to(image.device)[None], params.crop).exp_()
        lowest = image.amin(dim=(1, 2, 3), keepdim=True)  # intensities are products of tissue and field, from 0 on
        image = (image - lowest) * field + lowest
    if params.brightness != 1:
        image = image * params.brightness
    if params.contrast != 1:
        center = image.mean(dim=(1, 2, 3), keepdim=True)
        image = center + (image - center) * params.contrast
    if params.zoom < 1:
        small = [
            max(1, round(length * params.zoom)) if fine else length
            for length, fine in zip(params.crop, params.in_plane, strict=True)
        ]
        coarse = F.interpolate(image[None], small, mode="nearest-exact")
        image = F.interpolate(coarse, params.crop, mode="trilinear", align_corners=False)[0]
    if params.gamma != 1:
        image = change_gamma(image, params.gamma, params.inverted_gamma)
    return image


def enlarge_cells(cells: Tensor, size: Size) -> Tensor:
    """Control points C x g x g x g -> C x D x H x W, linearly, the outer ones at the borders.

    `F.interpolate` gives the same; axis by axis it takes a quarter of the time.
    """
    for axis, length in enumerate(size, start=1):
        positions = torch.linspace(0, cells.shape[axis] - 1, length, device=cells.device)
        points = torch.arange(cells.shape[axis], device=cells.device)
        weights = (1 - (positions[:, None] - points).abs()).clamp_min_(0)  # length x g
        cells = (weights @ cells.movedim(axis, -2)).movedim(-2, axis) if axis < 3 else cells @ weights.T
    return cells


def gaussian_blur(image: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Blur an image C x D x H x W along each axis; its border is repeated."""
    for axis, width in enumerate(sigma):
        length = image.shape[axis + 1]
        radius = int(4 * width + 0.5)  # as scipy.ndimage.gaussian_filter1d
        if not radius or length == 1:
            continue
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
        indices = torch.arange(-radius, length + radius, device=image.device).clamp_(0, length - 1)
        padded, total = image.index_select(axis + 1, indices), torch.zeros_like(image)
        for tap, weight in enumerate((weights / weights.sum()).tolist()):
            total.add_(padded.narrow(axis + 1, tap, length), alpha=weight)
        image = total
    return image


def change_gamma(image: Tensor, gamma: float, inverted: bool) -> Tensor:
    """Raise the intensities of each channel, as 0..1 between their extremes, to a power; mean and deviation are kept."""
    axes = (1, 2, 3)
    deviation, mean = _deviation_and_mean(image)
    image = -image if inverted else image
    low, high = image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True)
    powered = ((image - low) / (high - low).clamp_min(1e-7)).pow_(gamma)
    powered = 1 - powered if inverted else powered
    new_deviation, new_mean = _deviation_and_mean(powered)
    return (powered - new_mean) * (deviation / new_deviation.clamp_min(1e-7)) + mean


def _deviation_and_mean(image: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of C x D x H x W, C x 1 x 1 x 1. `torch.std_mean` takes three times as long on a CPU."""
    axes = (1, 2, 3)
    mean = image.mean(dim=axes, keepdim=True)
    return (image - mean).square_().mean(dim=axes, keepdim=True).sqrt_(), mean
