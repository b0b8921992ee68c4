"""Draws laid on a whole batch, on the device where it lies: the same results as `cpu.py`, in a few kernels.

Nothing here asks a GPU for a value, so that nothing waits. Coordinates are products of single numbers in float32, never a
matrix product, which TF32 would round to 10 bits, and never under autocast: bfloat16 knows no odd number above 256.
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
    images: Tensor, labels: Tensor, draws: BatchedAugmentParams, crop: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Augment images uint8 N x H x W x 3 RGB and labels uint8 N x H x W to `crop`, (height, width).

    Each image lies in the upper left of its H x W; beyond its `draws.size` all is outside, whatever stands there.
    Returns: images uint8 N x h x w x 3 and labels uint8 N x h x w, contiguous.
    """
    with torch.autocast(images.device.type, enabled=False):
        x, y = source_coordinates(draws, crop)
        moved = sample_bilinear(images, draws, x, y)
        if draws.color_factors.shape[1]:
            moved = adjust_color(moved, draws.color_factors)
        if draws.hue_shift.shape[0]:
            moved = shift_hue(moved, draws.hue_shift)
        if draws.blur_kernel.shape[1]:
            moved = gaussian_blur(moved, draws.blur_kernel)
        moved = moved.permute(0, 2, 3, 1)
        if draws.noise_std.shape[0]:
            moved = (moved + gaussian_noise(draws.noise_seed, draws.noise_std, crop)).clamp_(0, 255)
        return moved.to(torch.uint8).contiguous(), sample_nearest(labels, draws, x, y)


def source_coordinates(draws: BatchedAugmentParams, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the crop's pixels are read: x and y, float32 N x h x w each, in pixels from `draws.origin`."""
    height, width = crop
    device = draws.linear.device
    x = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None] - (height - 1) / 2
    if draws.elastic_grid.shape[2]:
        moved = F.interpolate(draws.elastic_grid, crop, mode="bicubic", align_corners=False)
        x, y = x + moved[:, 0], y + moved[:, 1]
    linear, centre = draws.linear[..., None, None], draws.center_fraction[..., None, None]
    return (
        linear[:, 0, 0] * x + linear[:, 0, 1] * y + centre[:, 0],
        linear[:, 1, 0] * x + linear[:, 1, 1] * y + centre[:, 1],
    )


def sample_bilinear(images: Tensor, draws: BatchedAugmentParams, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear, float32 N x 3 x h x w of whole levels 0..255; at its edges an image blends into FILL, as cv2 does it."""
    height, width = images.shape[1:3]
    fill = cached_tensor(FILL_COLOR, images.device)
    rows = torch.arange(height, device=images.device)[:, None] < draws.size[:, 0, None, None]
    columns = torch.arange(width, device=images.device) < draws.size[:, 1, None, None]
    # `grid_sample` takes 0 for what lies outside; so must FILL be, for the time.
    values = images.to(torch.float32).sub_(fill).mul_((rows & columns)[..., None])
    origin = draws.center_pixel[..., None, None]
    # `grid_sample` counts from -1 to 1 between the outer edges of the first and the last pixel (align_corners=False).
    grid = torch.stack([(2 * (x + origin[:, 0]) + 1) / width - 1, (2 * (y + origin[:, 1]) + 1) / height - 1], dim=-1)
    moved = F.grid_sample(values.permute(0, 3, 1, 2), grid, "bilinear", "zeros", align_corners=False)
    return moved.add_(fill[:, None, None]).round_()


def sample_nearest(labels: Tensor, draws: BatchedAugmentParams, x: Tensor, y: Tensor) -> Tensor:
    """Labels uint8 N x h x w. Halves go to the even pixel, as in cv2; no label is ever mixed of two.

    By index and not by `grid_sample`, which knows no uint8 and would count from -1 to 1 and back.
    """
    origin, size = draws.center_pixel[..., None, None], draws.size[..., None, None]
    column, row = x.round().to(torch.int64) + origin[:, 0], y.round().to(torch.int64) + origin[:, 1]
    inside = (column >= 0) & (column < size[:, 1]) & (row >= 0) & (row < size[:, 0])
    height, width = labels.shape[1:]
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    found = labels.reshape(len(labels), -1).gather(1, place.flatten(1)).view(place.shape)
    return torch.where(inside, found, IGNORE_INDEX).to(torch.uint8)
