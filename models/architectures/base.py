"""The contract that every network of the house keeps, in training and in the frozen graph."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.spec import Architecture

# ImageNet's mean and standard deviation by channel (red, green, blue), in units of 0..255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Network(nn.Module):
    """A segmentation network from the bytes of images to a label a pixel.

    Normalisation stands inside, so it exists once and travels with the weights. `body` maps normalised images
    float N x 3 x H x W to logits N x C x h x w. Two things it may have: `training_logits(images)`, which returns a tuple
    of these logits and an auxiliary head's; and `normalisation`, the mean and standard deviation by channel that
    its pretrained weights expect, in units of 0..255.
    """

    body: Any
    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, architecture: Architecture, classes: int) -> None:
        """`architecture`, `classes`: what `build` makes the same network from."""
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.num_classes = classes
        mean, std = getattr(body, "normalisation", (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 N x H x W x 3 RGB -> labels uint8 N x H x W, logits float N x C x h x w.

        `labels == argmax(bilinear(logits, H x W))`, with `align_corners=False` as everywhere in the house.
        """
        # Without `contiguous` the exporter pins the strides of a permuted batch, and with them the batch size.
        logits = self.logits(images.permute(0, 3, 1, 2).contiguous())
        return upsample(logits, images.shape[1:3]).argmax(dim=1).to(torch.uint8), logits

    def logits(self, images: Tensor) -> Tensor:
        """Images uint8 N x 3 x H x W RGB (channels_last is welcome) -> logits N x C x h x w."""
        return cast(Tensor, self.body(self.normalise(images)))

    def training_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `logits`, followed by the auxiliary head's where the network has one."""
        if hasattr(self.body, "training_logits"):
            return cast(tuple[Tensor, ...], self.body.training_logits(self.normalise(images)))
        return (self.logits(images),)

    def normalise(self, images: Tensor) -> Tensor:
        """Images uint8 N x 3 x H x W -> float, of mean 0 and deviation 1 by channel over ImageNet."""
        return (images.float() - self.mean) / self.std


def upsample(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear interpolation of maps N x C x h x w to `size` = (H, W)."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
