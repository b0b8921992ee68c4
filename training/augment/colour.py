"""Colours and blur of a batch, each step rounded to whole levels as albumentations and cv2 round it on uint8 pictures."""

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32, brought to a device once: a copy at each batch would make it wait for the host."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def coloured(pictures: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order.

    Takes and returns whole levels, float32 N x 3 x h x w, RGB, 0..255; `factors` is float64 N x 4, and (1, 1, 1, 0)
    changes nothing.
    """
    brightness, contrast, saturation, hue = factors.to(torch.float32)[..., None, None, None].unbind(1)
    pictures = (pictures * brightness).clamp(0, 255).floor()
    mean = grey(pictures).mean((1, 2, 3), dtype=torch.float64)
    lift = (mean * (1 - factors[:, 1])).to(torch.float32)[:, None, None, None]
    pictures = (pictures * contrast + lift).clamp(0, 255).floor()
    rest = (1 - factors[:, 2]).to(torch.float32)[:, None, None, None]
    pictures = (pictures * saturation + grey(pictures) * rest).clamp(0, 255).round()
    return turned(pictures, hue)


def grey(pictures: Tensor) -> Tensor:
    """Whole levels N x 1 x h x w: cv2's RGB2GRAY, whose weights are 15-bit integers; float32 holds all sums exactly."""
    red, green, blue = pictures.unbind(1)
    return ((red * 9798 + green * 19235 + blue * 3735 + 16384) / 32768).floor()[:, None]


def turned(pictures: Tensor, hue: Tensor) -> Tensor:
    """Hues turned by a share of the circle, N x 1 x 1 x 1; values and saturations stay (Smith 1978's HSV)."""
    largest, smallest = pictures.amax(1, keepdim=True), pictures.amin(1, keepdim=True)
    span = largest - smallest
    red, green, blue = pictures[:, :1], pictures[:, 1:2], pictures[:, 2:]
    safe = span.clamp(min=1)
    sixths = torch.where(
        largest == red,
        (green - blue) / safe,
        torch.where(largest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    # Each channel falls from the largest to the smallest value and back as the hue goes round.
    along = (sixths + 6 * hue + constant((5.0, 3.0, 1.0), pictures.device).view(3, 1, 1)).remainder(6)
    share = torch.minimum(along, 4 - along).clamp(0, 1)
    return (largest - span * share).round()


def blurred(pictures: Tensor, weights: Tensor) -> Tensor:
    """A Gaussian a sample, pictures mirrored at their edges: whole levels, float32 N x 3 x h x w.

    `weights` is float32 N x R from the centre outwards. They are added in this order, so that the zeros at the end, where
    another sample of the batch is blurred more, leave a sample's sum as it is, to the last bit.
    """
    for axis in (2, 3):
        length, reach = pictures.shape[axis], weights.shape[1] - 1
        mirrored = pictures.index_select(axis, mirror(length, reach, pictures.device))
        total = pictures * weights[:, 0, None, None, None]
        for away in range(1, reach + 1):
            pair = mirrored.narrow(axis, reach - away, length) + mirrored.narrow(axis, reach + away, length)
            total = total + pair * weights[:, away, None, None, None]
        pictures = total
    return pictures.round().clamp(0, 255)


def mirror(length: int, reach: int, device: torch.device) -> Tensor:
    """int64 length + 2 reach: indices that mirror at the first and the last pixel, not doubling them, however often."""
    period = max(2 * (length - 1), 1)
    place = torch.arange(-reach, length + reach, device=device).remainder(period)
    return torch.minimum(place, period - place) if length > 1 else torch.zeros_like(place)
