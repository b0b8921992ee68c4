"""Colours and blur of a batch, each step rounded to whole levels as albumentations and cv2 round it on uint8 images."""

from functools import cache

import torch
from torch import Tensor


@cache
def cached_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32, brought to a device once: a copy at each batch would make it wait for the host."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def adjust_color(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation, in this order.

    Takes and returns whole levels, float32 N x 3 x h x w, RGB, 0..255; `factors` is float64 N x 3, and 1 changes nothing.
    """
    brightness, contrast, saturation = factors.to(torch.float32)[..., None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255).floor_()  # in place from here on: memory is what this waits for
    mean = to_grayscale(images).mean((1, 2, 3), dtype=torch.float64)
    lift = (mean * (1 - factors[:, 1])).to(torch.float32)[:, None, None, None]
    images.mul_(contrast).add_(lift).clamp_(0, 255).floor_()
    rest = (1 - factors[:, 2]).to(torch.float32)[:, None, None, None]
    lift = to_grayscale(images) * rest
    return images.mul_(saturation).add_(lift).clamp_(0, 255).round_()


def to_grayscale(images: Tensor) -> Tensor:
    """Whole levels N x 1 x h x w: cv2's RGB2GRAY, whose weights are 15-bit integers; float32 holds all sums exactly."""
    red, green, blue = images.unbind(1)
    return (red * 9798).add_(green, alpha=19235).add_(blue, alpha=3735).add_(16384).div_(32768).floor_()[:, None]


def shift_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Hues turned by a share of the circle, float32 N; values and saturations stay (HSV, Smith 1978).

    Takes and returns whole levels, float32 N x 3 x h x w, RGB, 0..255.
    """
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = largest - smallest
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    safe = span.clamp(min=1)
    sixths = torch.where(
        largest == red,
        (green - blue) / safe,
        torch.where(largest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    # Each channel falls from the largest to the smallest value and back as the hue goes round.
    along = (
        sixths + 6 * hue[:, None, None, None] + cached_tensor((5.0, 3.0, 1.0), images.device).view(3, 1, 1)
    ).remainder(6)
    share = torch.minimum(along, 4 - along).clamp_(0, 1)
    return (largest - share.mul_(span)).round_()


def gaussian_blur(images: Tensor, weights: Tensor) -> Tensor:
    """A Gaussian a sample, images mirrored at their edges: whole levels, float32 N x 3 x h x w.

    `weights` is float32 N x R from the centre outwards. They are added in this order, so that the zeros at the end, where
    another sample of the batch is blurred more, leave a sample's sum as it is, to the last bit.
    """
    for axis in (2, 3):
        length, reach = images.shape[axis], weights.shape[1] - 1
        mirrored = images.index_select(axis, reflect_indices(length, reach, images.device))
        total = images * weights[:, 0, None, None, None]
        for away in range(1, reach + 1):
            pair = mirrored.narrow(axis, reach - away, length) + mirrored.narrow(axis, reach + away, length)
            total += pair.mul_(weights[:, away, None, None, None])
        images = total
    return images.round_().clamp_(0, 255)


def reflect_indices(length: int, reach: int, device: torch.device) -> Tensor:
    """int64 length + 2 reach: indices that mirror at the first and the last pixel, not doubling them, however often."""
    period = max(2 * (length - 1), 1)
    place = torch.arange(-reach, length + reach, device=device).remainder(period)
    return torch.minimum(place, period - place) if length > 1 else torch.zeros_like(place)
