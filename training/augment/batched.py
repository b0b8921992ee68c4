"""Augments a whole batch on its device: the same results as `cpu.py`, in a few kernels.

Nothing reads a value back from a GPU, so nothing waits. Coordinates are products of single float32 numbers, not a matrix
product, which TF32 would round to 10 bits, and never under autocast: bfloat16 has no odd numbers above 256.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.spec import IGNORE_INDEX
from training.augment.batched_color import adjust_color, cached_tensor, gaussian_blur, shift_hue
from training.augment.noise import gaussian_noise
from training.augment.params import FILL_COLOR, BatchedAugmentParams


@torch.no_grad()
def augment_batch(
    images: Tensor, labels: Tensor, params: BatchedAugmentParams, crop: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Augment images uint8 N x H x W x 3 RGB and labels uint8 N x H x W to `crop`, (height, width).

    Each image is in the upper left of its H x W; everything beyond its `params.size` counts as outside.
    Returns: images uint8 N x h x w x 3 and labels uint8 N x h x w, contiguous.
    """
    with torch.autocast(images.device.type, enabled=False):
        x, y = source_coordinates(params, crop)
        moved = sample_bilinear(
            images, cached_tensor(FILL_COLOR, images.device).expand(len(images), -1), params, x, y
        ).round_()
        if params.color_factors.shape[1]:
            moved = adjust_color(moved, params.color_factors)
        if params.hue_shift.shape[0]:
            moved = shift_hue(moved, params.hue_shift)
        if params.blur_kernel.shape[1]:
            moved = gaussian_blur(moved, params.blur_kernel)
        moved = moved.permute(0, 2, 3, 1)
        if params.noise_std.shape[0]:
            moved = (moved + gaussian_noise(params.noise_seed, params.noise_std, crop)).clamp_(0, 255)
        return moved.to(torch.uint8).contiguous(), sample_nearest(labels, params, x, y)


def source_coordinates(params: BatchedAugmentParams, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Source coordinates of the crop's pixels: x and y, float32 N x h x w each, in pixels from `params.center_pixel`."""
    height, width = crop
    device = params.linear.device
    x = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None] - (height - 1) / 2
    if params.elastic_grid.shape[2]:
        moved = F.interpolate(params.elastic_grid, crop, mode="bicubic", align_corners=False)
        x, y = x + moved[:, 0], y + moved[:, 1]
    linear, center = params.linear[..., None, None], params.center_fraction[..., None, None]
    return (
        linear[:, 0, 0] * x + linear[:, 0, 1] * y + center[:, 0],
        linear[:, 1, 0] * x + linear[:, 1, 1] * y + center[:, 1],
    )


def sample_bilinear(images: Tensor, fill: Tensor, params: BatchedAugmentParams, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear: float32 N x C x h x w. At its edges an image blends into its `fill`, float32 N x C, as in cv2."""
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device)[:, None] < params.size[:, 0, None, None]
    columns = torch.arange(width, device=images.device) < params.size[:, 1, None, None]
    # `grid_sample` reads 0 outside, so `fill` is subtracted before and added after.
    values = images.to(torch.float32).sub_(fill[:, None, None]).mul_((rows & columns)[..., None])
    origin = params.center_pixel[..., None, None]
    # Coordinates of `grid_sample`: -1 to 1 between the outer edges of the first and the last pixel (align_corners=False).
    grid = torch.stack([(2 * (x + origin[:, 0]) + 1) / width - 1, (2 * (y + origin[:, 1]) + 1) / height - 1], dim=-1)
    moved = F.grid_sample(values.permute(0, 3, 1, 2), grid, "bilinear", "zeros", align_corners=False)
    return moved.add_(fill[:, :, None, None])


def sample_nearest(labels: Tensor, params: BatchedAugmentParams, x: Tensor, y: Tensor) -> Tensor:
    """Nearest neighbor: labels uint8 N x h x w. Halves round to the even pixel, as in cv2.

    By index instead of `grid_sample`, which has no uint8 and would convert coordinates to -1..1 and back.
    """
    origin, size = params.center_pixel[..., None, None], params.size[..., None, None]
    column, row = x.round().to(torch.int64) + origin[:, 0], y.round().to(torch.int64) + origin[:, 1]
    inside = (column >= 0) & (column < size[:, 1]) & (row >= 0) & (row < size[:, 0])
    height, width = labels.shape[1:]
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    moved = labels.reshape(len(labels), -1).gather(1, index.flatten(1)).view(index.shape)
    return torch.where(inside, moved, IGNORE_INDEX).to(torch.uint8)
