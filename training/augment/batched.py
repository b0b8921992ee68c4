"""Draws laid on a whole batch, on the device where it lies: the same results as `cpu.py`, in a few kernels.

Nothing here asks a GPU for a value, so that nothing waits. Coordinates are products of single numbers in float32, never a
matrix product, which TF32 would round to 10 bits, and never under autocast: bfloat16 knows no odd number above 256.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.spec import VOID
from training.augment.batched_color import blurred, coloured, constant, turned
from training.augment.noise import noise
from training.augment.params import FILL, Draws


@torch.no_grad()
def apply(pictures: Tensor, labels: Tensor, draws: Draws, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Augment pictures uint8 N x H x W x 3 RGB and labels uint8 N x H x W to `crop`, (height, width).

    Each picture lies in the upper left of its H x W; beyond its `draws.size` all is outside, whatever stands there.
    Returns: pictures uint8 N x h x w x 3 and labels uint8 N x h x w, contiguous.
    """
    with torch.autocast(pictures.device.type, enabled=False):
        x, y = positions(draws, crop)
        moved = sampled(pictures, draws, x, y)
        if draws.colour.shape[1]:
            moved = coloured(moved, draws.colour)
        if draws.hue.shape[0]:
            moved = turned(moved, draws.hue)
        if draws.blur.shape[1]:
            moved = blurred(moved, draws.blur)
        moved = moved.permute(0, 2, 3, 1)
        if draws.noise.shape[0]:
            moved = (moved + noise(draws.seed, draws.noise, crop)).clamp_(0, 255)
        return moved.to(torch.uint8).contiguous(), nearest(labels, draws, x, y)


def positions(draws: Draws, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the crop's pixels are read: x and y, float32 N x h x w each, in pixels from `draws.origin`."""
    height, width = crop
    device = draws.linear.device
    x = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None] - (height - 1) / 2
    if draws.elastic.shape[2]:
        moved = F.interpolate(draws.elastic, crop, mode="bicubic", align_corners=False)
        x, y = x + moved[:, 0], y + moved[:, 1]
    linear, centre = draws.linear[..., None, None], draws.centre[..., None, None]
    return (
        linear[:, 0, 0] * x + linear[:, 0, 1] * y + centre[:, 0],
        linear[:, 1, 0] * x + linear[:, 1, 1] * y + centre[:, 1],
    )


def sampled(pictures: Tensor, draws: Draws, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear, float32 N x 3 x h x w of whole levels 0..255; at its edges a picture blends into FILL, as cv2 does it."""
    height, width = pictures.shape[1:3]
    fill = constant(FILL, pictures.device)
    rows = torch.arange(height, device=pictures.device)[:, None] < draws.size[:, 0, None, None]
    columns = torch.arange(width, device=pictures.device) < draws.size[:, 1, None, None]
    # `grid_sample` takes 0 for what lies outside; so must FILL be, for the time.
    values = pictures.to(torch.float32).sub_(fill).mul_((rows & columns)[..., None])
    origin = draws.origin[..., None, None]
    # `grid_sample` counts from -1 to 1 between the outer edges of the first and the last pixel (align_corners=False).
    grid = torch.stack([(2 * (x + origin[:, 0]) + 1) / width - 1, (2 * (y + origin[:, 1]) + 1) / height - 1], dim=-1)
    moved = F.grid_sample(values.permute(0, 3, 1, 2), grid, "bilinear", "zeros", align_corners=False)
    return moved.add_(fill[:, None, None]).round_()


def nearest(labels: Tensor, draws: Draws, x: Tensor, y: Tensor) -> Tensor:
    """Labels uint8 N x h x w. Halves go to the even pixel, as in cv2; no label is ever mixed of two.

    By index and not by `grid_sample`, which knows no uint8 and would count from -1 to 1 and back.
    """
    origin, size = draws.origin[..., None, None], draws.size[..., None, None]
    column, row = x.round().to(torch.int64) + origin[:, 0], y.round().to(torch.int64) + origin[:, 1]
    inside = (column >= 0) & (column < size[:, 1]) & (row >= 0) & (row < size[:, 0])
    height, width = labels.shape[1:]
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    found = labels.reshape(len(labels), -1).gather(1, place.flatten(1)).view(place.shape)
    return torch.where(inside, found, VOID).to(torch.uint8)
