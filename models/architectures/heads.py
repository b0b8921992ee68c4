"""Heads: the layers between the encoder's deepest map and the 1x1 classifier. One function per head, one line in `HEADS`.

A head is a function `(channels, stride, separable) -> (module, features)`: the channels and the stride of the map,
whether the 3x3 kernels are depthwise separable, and the module's number of output channels. The module maps
float N x channels x h x w to N x features x h x w.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.architectures.layers import PoolingBranch, conv_bn_relu

ASPP_CHANNELS = 256


def linear_head(channels: int, stride: int, separable: bool) -> tuple[nn.Module, int]:
    """No layer: the 1x1 classifier alone, as in the FCN paper, whose encoder ends in fc7 (arXiv 1411.4038)."""
    return nn.Identity(), channels


def fcn_head(channels: int, stride: int, separable: bool) -> tuple[nn.Module, int]:
    """A 3x3 convolution to a quarter of the channels: torchvision's FCNHead, mmsegmentation's FCN-D8."""
    return conv_bn_relu(channels, channels // 4, separable=separable), channels // 4


def d6_head(channels: int, stride: int, separable: bool) -> tuple[nn.Module, int]:
    """Two 3x3 convolutions of dilation 6, then one over their output and their input: mmsegmentation's FCN-D6."""
    return DilatedHead(channels, channels // 4, separable), channels // 4


def aspp_head(channels: int, stride: int, separable: bool) -> tuple[nn.Module, int]:
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and the image's mean (DeepLabV3, arXiv 1706.05587)."""
    rates = [96 * step // stride for step in (1, 2, 3)]  # the paper's 6, 12, 18 at stride 16; 12, 24, 36 at 8
    branches = [conv_bn_relu(channels, ASPP_CHANNELS, kernel=1)]
    branches += [conv_bn_relu(channels, ASPP_CHANNELS, dilation=rate, separable=separable) for rate in rates]
    pyramid = PyramidPooling([*branches, PoolingBranch(channels, ASPP_CHANNELS, bins=1)], include_input=False)
    project = conv_bn_relu(5 * ASPP_CHANNELS, ASPP_CHANNELS, kernel=1)
    final = conv_bn_relu(ASPP_CHANNELS, ASPP_CHANNELS, separable=separable)
    return nn.Sequential(pyramid, project, final), ASPP_CHANNELS


def psp_head(channels: int, stride: int, separable: bool) -> tuple[nn.Module, int]:
    """Pyramid pooling: the map itself and the means of 1, 4, 9 and 36 cells (PSPNet, arXiv 1612.01105)."""
    part = channels // 4
    pyramid = PyramidPooling([PoolingBranch(channels, part, bins) for bins in (1, 2, 3, 6)], include_input=True)
    return nn.Sequential(pyramid, conv_bn_relu(channels + 4 * part, part, separable=separable)), part


@dataclass(frozen=True)
class HeadSpec:
    """A head and the options of its paper, which are the defaults."""

    build: Callable[[int, int, bool], tuple[nn.Module, int]]
    output_stride: int  # of the encoder, in pixels
    skips: str  # the finer maps that are added, see `fcn.py`


HEADS = {
    "linear": HeadSpec(linear_head, output_stride=32, skips="8s"),
    "fcn": HeadSpec(fcn_head, output_stride=32, skips="8s"),
    "d6": HeadSpec(d6_head, output_stride=16, skips="32s"),
    "aspp": HeadSpec(aspp_head, output_stride=16, skips="32s"),
    "psp": HeadSpec(psp_head, output_stride=8, skips="32s"),
}


class DilatedHead(nn.Module):
    """Two dilated convolutions in a row, joined with their input (FCN-D6)."""

    def __init__(self, channels: int, features: int, separable: bool) -> None:
        super().__init__()
        self.dilated_convs = nn.Sequential(
            conv_bn_relu(channels, features, dilation=6, separable=separable),
            conv_bn_relu(features, features, dilation=6, separable=separable),
        )
        self.fuse = conv_bn_relu(channels + features, features, separable=separable)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x channels x h x w -> N x features x h x w."""
        fused: Tensor = self.fuse(torch.cat([maps, self.dilated_convs(maps)], dim=1))
        return fused


class PyramidPooling(nn.Module):
    """Parallel branches whose maps are concatenated, after the input itself if `include_input`."""

    def __init__(self, branches: list[nn.Module], include_input: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.include_input = include_input

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x (sum of the channels of all parts) x h x w."""
        parts = [branch(maps) for branch in self.branches]
        return torch.cat([maps, *parts] if self.include_input else parts, dim=1)
