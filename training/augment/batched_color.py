"""Color and blur of a batch. For photographs each step is rounded to whole levels as albumentations and cv2 round uint8 images."""

from functools import cache

import torch
from torch import Tensor


@cache
def cached_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A float32 constant on a device, copied once: a copy per batch would make a GPU wait for the host."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def adjust_color(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation, in this order.

    Takes and returns whole levels, float32 N x 3 x h x w, RGB, 0..255; `factors` is float64 N x 3, and 1 changes nothing.
    """
    brightness, contrast, saturation = factors.to(torch.float32)[..., None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255).floor_()  # in place from here on: memory bandwidth is the bottleneck
    mean = to_grayscale(images).mean((1, 2, 3), dtype=torch.float64)
    offset = (mean * (1 - factors[:, 1])).to(torch.float32)[:, None, None, None]
    images.mul_(contrast).add_(offset).clamp_(0, 255).floor_()
    gray_weight = (1 - factors[:, 2]).to(torch.float32)[:, None, None, None]
    offset = to_grayscale(images) * gray_weight
    return images.mul_(saturation).add_(offset).clamp_(0, 255).round_()


def to_grayscale(images: Tensor) -> Tensor:
    """Whole levels N x 1 x h x w: cv2's RGB2GRAY, with 15-bit integer weights; all sums are exact in float32."""
    red, green, blue = images.unbind(1)
    return (red * 9798).add_(green, alpha=19235).add_(blue, alpha=3735).add_(16384).div_(32768).floor_()[:, None]


def shift_hue(images: Tensor, hue: Tensor) -> Tensor:
    """`rotate_hue` of whole levels, float32 N x 3 x h x w, RGB, 0..255, to whole levels."""
    return rotate_hue(images, hue).round_()


def rotate_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Shift hues by a fraction of the color circle, float32 N; value and saturation stay (HSV, Smith 1978).

    Takes and returns float32 N x 3 x h x w, RGB, of any range from 0.
    """
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = largest - smallest
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    safe = torch.where(span > 0, span, 1)
    sixths = torch.where(
        largest == red,
        (green - blue) / safe,
        torch.where(largest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    # Each channel goes from the largest to the smallest value and back as the hue goes around the circle.
    along = (
        sixths + 6 * hue[:, None, None, None] + cached_tensor((5.0, 3.0, 1.0), images.device).view(3, 1, 1)
    ).remainder(6)
    fraction = torch.minimum(along, 4 - along).clamp_(0, 1)
    return largest - fraction.mul_(span)


def adjust_color_of_floats(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation, in this order, of float32 N x 3 x h x w, RGB, 0..1; `factors` is float32 N x 3."""
    weights = cached_tensor((0.299, 0.587, 0.114), images.device).view(3, 1, 1)
    brightness, contrast, saturation = factors[..., None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 1)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (images * contrast + mean * (1 - contrast)).clamp_(0, 1)
    gray = (images * weights).sum(1, keepdim=True)
    return (images * saturation + gray * (1 - saturation)).clamp_(0, 1)


def gaussian_blur(images: Tensor, weights: Tensor) -> Tensor:
    """`blur_of_floats` of whole levels, float32 N x 3 x h x w, 0..255, to whole levels."""
    return blur_of_floats(images, weights).round_().clamp_(0, 255)


def blur_of_floats(images: Tensor, weights: Tensor) -> Tensor:
    """Blur each sample by its own Gaussian, mirrored at the edges: float32 N x C x h x w.

    `weights` is float32 N x R from the center outwards. They are added in this order, so that trailing zeros, from another
    sample of the batch with a larger kernel, do not change a sample's sum, to the last bit.
    """
    for axis in (2, 3):
        length, radius = images.shape[axis], weights.shape[1] - 1
        mirrored = images.index_select(axis, reflect_indices(length, radius, images.device))
        total = images * weights[:, 0, None, None, None]
        for distance in range(1, radius + 1):
            pair = mirrored.narrow(axis, radius - distance, length) + mirrored.narrow(axis, radius + distance, length)
            total += pair.mul_(weights[:, distance, None, None, None])
        images = total
    return images


def reflect_indices(length: int, radius: int, device: torch.device) -> Tensor:
    """int64, length + 2 * radius: indices mirrored at the first and the last pixel, repeatedly, without doubling them."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-radius, length + radius, device=device).remainder(period)
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)
