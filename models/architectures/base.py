"""The contract of every network, in training and in the exported graph."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.spec import Architecture

# ImageNet's mean and standard deviation by channel (red, green, blue), in units of 0..255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Network(nn.Module):
    """A segmentation network: uint8 images in, one label per pixel out.

    Normalisation is part of the network, so it exists once and travels with the weights. `body` maps normalised images
    float N x 3 x H x W to logits N x C x h x w. It may also have:
    - `training_logits(images)`: returns a tuple of these logits and those of an auxiliary head;
    - `normalisation`: the mean and standard deviation per channel that its pretrained weights expect, in units of 0..255.
    """

    body: Any
    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, architecture: Architecture, classes: int) -> None:
        """`architecture` and `classes` are the arguments from which `build` makes the same network."""
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.num_classes = classes
        mean, std = getattr(body, "normalisation", (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 N x H x W x 3 RGB -> labels uint8 N x H x W, logits float N x C x h x w.

        `labels == argmax(bilinear(logits, H x W))`, with `align_corners=False` as everywhere in this package.
        """
        # Without `contiguous` the exporter fixes the strides of the permuted batch, and with them the batch size.
        logits = self.logits(images.permute(0, 3, 1, 2).contiguous())
        return upsample(logits, images.shape[1:3]).argmax(dim=1).to(torch.uint8), logits

    def logits(self, images: Tensor) -> Tensor:
        """Images uint8 N x 3 x H x W RGB, in any memory format -> logits float N x C x h x w."""
        return cast(Tensor, self.body(self.normalise(images)))

    def training_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The result of `logits`, followed by the auxiliary head's logits if the network has one."""
        if hasattr(self.body, "training_logits"):
            return cast(tuple[Tensor, ...], self.body.training_logits(self.normalise(images)))
        return (self.logits(images),)

    def normalise(self, images: Tensor) -> Tensor:
        """Images uint8 N x 3 x H x W -> float, (value - mean) / std per channel."""
        return (images.float() - self.mean) / self.std


def upsample(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Interpolate maps N x C x h x w bilinearly to `size` = (H, W) in pixels."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
