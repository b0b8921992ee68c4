"""Networks for other channels than RGB: the first convolution, and the normalization before it.

Pretrained weights of three channels are adapted as timm does (`adapt_input_conv` in timm/models/_manipulate.py): for one channel
they are summed, so that a gray image gives what it gave as RGB; for C others they are repeated in turn and multiplied by 3 / C,
which keeps the scale of the sum.
"""

import torch
from torch import Tensor, nn

from models.errors import ConfigError
from models.spec import RGB_CHANNELS, InputRule

RGB_COUNT = 3


def adapt_to_channels(body: nn.Module, channels: int) -> None:
    """Replace the convolutions that take RGB by ones that take `channels`, with adapted weights. Raises: ConfigError."""
    found = [
        (parent, name, child)
        for parent in body.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d) and child.in_channels == RGB_COUNT and child.groups == 1
    ]
    if not found:
        raise ConfigError(
            f"This network has no convolution that takes {RGB_COUNT} channels, so it cannot take {channels}; choose another "
            "encoder or architecture."
        )
    for _, _, layer in found:
        layer.in_channels = channels
        layer.weight = nn.Parameter(adapt_weight(layer.weight.detach(), channels), layer.weight.requires_grad)


def adapt_weight(weight: Tensor, channels: int) -> Tensor:
    """A kernel O x 3 x axes as O x channels x axes, such as O x channels x h x w."""
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // RGB_COUNT), *[1] * (weight.ndim - 2))[:, :channels]
    return repeated * (RGB_COUNT / channels)


def adapt_normalisation(mean: Tensor, std: Tensor, rule: InputRule) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, 1 x C x 1 x 1 for images, in units of the samples, from those of 0..255 of RGB.

    Red, green and blue keep their own; other channels get the mean of the three. For `zscore` they are not used.
    """
    means: list[float] = mean.flatten().tolist()
    deviations: list[float] = std.flatten().tolist()
    if len(means) == RGB_COUNT:
        known = [RGB_CHANNELS.index(name) if name in RGB_CHANNELS else -1 for name in map(str.lower, rule.channels)]
        means, deviations = (
            [values[index] if index >= 0 else sum(values) / RGB_COUNT for index in known]
            for values in (means, deviations)
        )
    if rule.scaling.kind == "zscore":
        pairs = [(0.0, 1.0)] * len(rule.channels)
    else:
        ranges = zip(rule.scaling.low, rule.scaling.high, means, deviations, strict=True)
        pairs = [(low + one * (high - low) / 255, other * (high - low) / 255) for low, high, one, other in ranges]
    shape = (1, -1, *[1] * (mean.ndim - 2))
    return (
        torch.tensor([pair[0] for pair in pairs]).view(shape),
        torch.tensor([pair[1] for pair in pairs]).view(shape),
    )
