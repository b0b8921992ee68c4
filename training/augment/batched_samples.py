"""Augments a batch of any channels and dtype on its device: the same results as `samples.py`, as `batched.py` for photographs."""

import torch
from torch import Tensor

from models.readers.prepare import fill_values
from models.spec import InputRule
from training.augment.batched import sample_bilinear, sample_nearest, source_coordinates
from training.augment.batched_color import adjust_color_of_floats, blur_of_floats, cached_tensor, rotate_hue
from training.augment.noise import gaussian_noise
from training.augment.params import BatchedAugmentParams
from training.augment.samples import LEVELS_PER_DEVIATION, rgb_indices, sample_levels


@torch.no_grad()
def augment_samples(
    images: Tensor,
    labels: Tensor,
    params: BatchedAugmentParams,
    crop: tuple[int, int],
    rule: InputRule,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Augment images N x H x W x C, in the rule's channels and dtype, and labels uint8 N x H x W to `crop`, (height, width).

    `statistics`: float32 N x 2 x C, mean and scale of the whole samples, for `zscore`. The rest as `augment_batch`.
    Returns: images N x h x w x C in the rule's dtype and labels uint8 N x h x w, contiguous.
    """
    with torch.autocast(images.device.type, enabled=False):
        if statistics is None:
            fill = cached_tensor(tuple(fill_values(rule).tolist()), images.device).expand(len(images), -1)
            levels = cached_tensor(tuple(sample_levels(rule, None).tolist()), images.device).expand(len(images), -1)
        else:
            fill, levels = _to_range(statistics[:, 0], rule), statistics[:, 1] / LEVELS_PER_DEVIATION
        x, y = source_coordinates(params, crop)
        moved = _to_range(sample_bilinear(images, fill, params, x, y), rule)
        if rule.scaling.low and (rgb := rgb_indices(rule)):
            _adjust_color(moved, params, rule, rgb)
        if params.blur_kernel.shape[1]:
            moved = _to_range(blur_of_floats(moved, params.blur_kernel), rule)
        moved = moved.permute(0, 2, 3, 1)
        if params.noise_std.shape[0]:
            noise = gaussian_noise(params.noise_seed, params.noise_std, crop, len(rule.channels))
            noisy = _to_range(moved + noise * levels[:, None, None], rule)
            moved = torch.where(params.noise_std[:, None, None, None] > 0, noisy, moved)
        return moved.to(getattr(torch, rule.dtype)).contiguous(), sample_nearest(labels, params, x, y)


def _adjust_color(images: Tensor, params: BatchedAugmentParams, rule: InputRule, rgb: list[int]) -> None:
    """Change the color of float32 N x C x h x w in place; samples without a change keep values outside of the range."""
    has_factors, has_hue = bool(params.color_factors.shape[1]), bool(params.hue_shift.shape[0])
    if not (has_factors or has_hue):
        return
    bounds = [
        cached_tensor(tuple(float(values[index]) for index in rgb), images.device).view(3, 1, 1)
        for values in (rule.scaling.low, rule.scaling.high)
    ]
    low, span = bounds[0], bounds[1] - bounds[0]
    before = torch.stack([images[:, index] for index in rgb], dim=1)
    unit = ((before - low) / span).clamp_(0, 1)
    changes = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    if has_factors:
        unit = adjust_color_of_floats(unit, params.color_factors.to(torch.float32))
        changes |= (params.color_factors != 1).any(dim=1)
    if has_hue:
        unit = torch.where(params.hue_shift[:, None, None, None] != 0, rotate_hue(unit, params.hue_shift), unit)
        changes |= params.hue_shift != 0
    after = torch.where(changes[:, None, None, None], _to_range(unit * span + low, rule), before)
    for position, index in enumerate(rgb):
        images[:, index] = after[:, position]


def _to_range(values: Tensor, rule: InputRule) -> Tensor:
    """Round to whole values of the rule's dtype, within its limits; floats stay as they are."""
    if rule.dtype == "float32":
        return values
    limits = torch.iinfo(getattr(torch, rule.dtype))
    return values.round().clamp_(limits.min, limits.max)
