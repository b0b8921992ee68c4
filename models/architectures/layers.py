"""What heads and upsampling are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.base import upsample


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the map keeps its size.

    `separable`: a kernel for each channel by itself and then a 1x1 convolution that mixes them (Chollet 2017,
    arXiv 1610.02357), a ninth of the work for 3x3 kernels.
    """
    padding = kernel // 2 * dilation
    if separable and kernel > 1:
        spatial = nn.Conv2d(inputs, inputs, kernel, padding=padding, dilation=dilation, groups=inputs, bias=False)
        mixing = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
        return nn.Sequential(spatial, mixing, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
    layer = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class LearnedUpsampling(nn.Module):
    """A transposed convolution for each class that starts as bilinear interpolation (arXiv 1411.4038, section 4).

    Before training it equals `upsample` to the last digits, at the borders too: the scores' edge is repeated once,
    where a transposed convolution by itself would fade to zero.
    """

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.transposed_conv = nn.ConvTranspose2d(
            classes, classes, 2 * factor, stride=factor, padding=factor + factor // 2, groups=classes, bias=False
        )
        distance = (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        weights = torch.outer(1 - distance, 1 - distance)
        with torch.no_grad():
            self.transposed_conv.weight.copy_(weights.expand_as(self.transposed_conv.weight))

    def forward(self, scores: Tensor) -> Tensor:
        """Scores N x C x h x w -> N x C x fh x fw."""
        enlarged: Tensor = self.transposed_conv(F.pad(scores, (1, 1, 1, 1), mode="replicate"))
        return enlarged


class ExportableAdaptiveAvgPool2d(nn.Module):
    """The map averaged over a grid of `bins` x `bins` cells, those of torch's `adaptive_avg_pool2d`.

    By two matrix products: that operation cannot be exported at a size that is not fixed.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x C x bins x bins."""
        height, width = maps.shape[-2:]
        return adaptive_pool_matrix(height, self.bins, maps) @ maps @ adaptive_pool_matrix(width, self.bins, maps).T


class PoolingBranch(nn.Module):
    """The map averaged over a grid of `bins` x `bins` cells, mixed by a 1x1 convolution, and spread over the map again.

    One bin is the mean of the whole image, as in ASPP (arXiv 1706.05587); 1, 2, 3 and 6 are PSPNet's (arXiv
    1612.01105).
    """

    def __init__(self, inputs: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.pool = ExportableAdaptiveAvgPool2d(bins)
        # No batch norm: over the one value an image that a single bin gives, it fails where the last batch is of one.
        self.conv = nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1), nn.ReLU(inplace=True))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x outputs x h x w."""
        return upsample(self.conv(self.pool(maps)), maps.shape[-2:])


def adaptive_pool_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """The `bins` x `length` matrix that averages over cells floor(i*length/bins) .. ceil((i+1)*length/bins)."""
    place = torch.arange(length, device=like.device)
    cell = torch.arange(bins, device=like.device)[:, None]
    inside = (place >= cell * length // bins) & (place < ((cell + 1) * length + bins - 1) // bins)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)
