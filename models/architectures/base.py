"""The contract of every network, in training and in the exported graph."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.input_channels import adapt_normalisation, adapt_to_channels
from models.spec import Architecture, Calibration, ClassInfo, InputRule

Axes = Literal["HW", "T", "DHW"]

# ImageNet's mean and standard deviation by channel (red, green, blue), in units of 0..255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Network(nn.Module):
    """A segmentation network: images, signals or volumes in, one label per pixel, time step or voxel out.

    Where shapes say H x W here, a network for signals has T, and one for volumes D x H x W (`InputRule.axes`).

    It takes RGB uint8 images until `set_input` says otherwise. Normalisation is part of the network, so it exists once and
    travels with the weights. `body` maps normalised images float N x C x H x W to logits N x classes x h x w. It may also have:
    - `training_logits(images)`: returns a tuple of these logits and those of an auxiliary head;
    - `normalisation`: the mean and standard deviation per channel that its pretrained weights expect, in units of 0..255.
    """

    body: Any
    mean: Tensor  # 1 x channels x 1 x 1, in units of the samples
    std: Tensor
    low: Tensor | None  # 1 x channels x 1 x 1: samples are clipped to low..high; None for photographs and `zscore`
    high: Tensor | None
    logit_bias: Tensor | None  # 1 x classes x 1 x 1, of `Calibration`; None in training

    def __init__(self, body: nn.Module, architecture: Architecture, classes: int, axes: Axes = "HW") -> None:
        """`architecture`, `classes` and `axes` are the arguments from which `build` makes the same network."""
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.num_classes = classes
        mean, std = getattr(body, "normalisation", (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, *[1] * len(axes)))
        self.register_buffer("std", torch.tensor(std).view(1, 3, *[1] * len(axes)))
        self.input = InputRule(rule="native", axes=axes)
        # Not in the state dict: they follow from the spec.
        self.register_buffer("low", None, persistent=False)
        self.register_buffer("high", None, persistent=False)
        self.register_buffer("logit_bias", None, persistent=False)
        self.temperature = 1.0

    @property
    def num_channels(self) -> int:
        """Channels of the images: 3 for photographs."""
        return int(self.mean.shape[1])

    def set_input(self, rule: InputRule) -> None:
        """Take the rule's channels and scaling. Weights of 3 channels become those of another number, as in timm.

        Raises: ConfigError for a network without a convolution of three channels; ValueError for the axes of another network.
        """
        if rule.axes != self.input.axes:
            raise ValueError(f"the network was built for the axes {self.input.axes}, not for {rule.axes}")
        self.input = rule
        if rule.is_photograph:
            return
        channels = len(rule.channels)
        if channels != self.num_channels:
            adapt_to_channels(self.body, channels)
        self.mean, self.std = (each.to(self.mean) for each in adapt_normalisation(self.mean, self.std, rule))
        if rule.scaling.kind != "zscore":
            self.low, self.high = (
                torch.tensor(limits).view(1, channels, *[1] * len(rule.axes)).to(self.mean)
                for limits in (rule.scaling.low, rule.scaling.high)
            )

    def set_calibration(self, calibration: Calibration | None, classes: list[ClassInfo]) -> None:
        """Add the bias of each class to its logit from now on, and divide all by the temperature; None leaves them."""
        self.logit_bias, self.temperature = None, 1.0
        if calibration is not None:
            bias = torch.tensor([calibration.bias.get(entry.name, 0.0) for entry in classes])
            self.logit_bias = bias.view(1, -1, *[1] * len(self.input.axes)).to(self.mean)
            self.temperature = calibration.temperature

    def calibrate(self, logits: Tensor) -> Tensor:
        """The logits that the graph gives, from those of `body`."""
        return logits if self.logit_bias is None else (logits + self.logit_bias) / self.temperature

    def forward(
        self, images: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images N x H x W x C, in the input's dtype -> labels uint8 N x H x W, logits float N x classes x h x w.

        `shift` and `scale`, float32 N x C, are the statistics of the whole samples, for the scaling `zscore` only.
        `labels == argmax(bilinear(logits, H x W))`, with `align_corners=False` as everywhere in this package.
        """
        # Without `contiguous` the exporter fixes the strides of the permuted batch, and with them the batch size.
        statistics = None if shift is None or scale is None else torch.stack([shift, scale], dim=1)
        logits = self.logits(channels_first(images).contiguous(), statistics)
        return upsample(logits, images.shape[1:-1]).argmax(dim=1).to(torch.uint8), logits

    def logits(self, images: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Images N x C x H x W in the input's dtype, in any memory format -> logits float N x classes x h x w.

        `statistics`, float32 N x 2 x C, are shift and scale of each sample, for the scaling `zscore` only.
        """
        return self.calibrate(cast(Tensor, self.body(self.normalise(images, statistics))))

    def training_logits(self, images: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, ...]:
        """The result of `logits`, followed by the auxiliary head's logits if the network has one."""
        if hasattr(self.body, "training_logits"):
            return cast(tuple[Tensor, ...], self.body.training_logits(self.normalise(images, statistics)))
        return (self.logits(images, statistics),)

    def normalise(self, images: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Images N x C x H x W in the input's dtype -> float, (value - mean) / std per channel, after the scaling."""
        values = images.float()
        if statistics is not None:
            shift, scale = (part[(..., *[None] * (values.ndim - 2))] for part in statistics.unbind(1))
            return (values - shift) / scale
        if self.low is not None:
            values = torch.clamp(values, self.low, self.high)
        return (values - self.mean) / self.std


def channels_first(samples: Tensor) -> Tensor:
    """Samples N x axes x C as N x C x axes, as a view: for images and volumes in torch's memory format channels_last."""
    return samples.permute(0, samples.ndim - 1, *range(1, samples.ndim - 1))


def use_channels_last(network: nn.Module, axes: str) -> None:
    """Lay out the weights as convolutions read them fastest, in place. Signals have no such format."""
    if axes != "T":
        network.to(memory_format=torch.channels_last if axes == "HW" else torch.channels_last_3d)


def upsample(maps: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Interpolate maps N x C x h x w bilinearly to `size` = (H, W) in pixels; linearly for 1 axis, trilinearly for 3."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[maps.ndim]
    return F.interpolate(maps, size=tuple(size), mode=mode, align_corners=False)
