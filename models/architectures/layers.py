"""Building blocks of heads and upsampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.base import upsample

VECTOR_WIDTH = 16  # float32 values in the widest vector register, that of AVX-512


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    """Convolution, batch norm and ReLU: maps N x `inputs` x h x w -> N x `outputs` x h x w.

    `separable`: one kernel per channel, followed by a 1x1 convolution that mixes the channels (Chollet 2017,
    arXiv 1610.02357): a ninth of the operations for 3x3 kernels.
    """
    padding = kernel // 2 * dilation
    if separable and kernel > 1:
        spatial = nn.Conv2d(inputs, inputs, kernel, padding=padding, dilation=dilation, groups=inputs, bias=False)
        mixing = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
        return nn.Sequential(spatial, mixing, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
    layer = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class StridedPointwise:
    """A 1x1 convolution with a stride: drops the skipped pixels, then convolves with stride 1. The result is equal.

    oneDNN's gradient of strided 1x1 convolutions in channels_last writes past a buffer if there are fewer channels than a
    vector register holds: wrong gradients or a crash (uxlfoundation/oneDNN#6035). MobileOne and RepVGG have such a
    convolution on the three channels of the image.
    """

    stride: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x H x W -> N x K x ceil(H / stride) x ceil(W / stride); the same for other axes."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        kept = maps[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]
        return convolve(kept, self.weight, self.bias)


class StridedPointwiseConv1d(StridedPointwise, nn.Conv1d):
    """For signals."""


class StridedPointwiseConv2d(StridedPointwise, nn.Conv2d):
    """For images."""


class StridedPointwiseConv3d(StridedPointwise, nn.Conv3d):
    """For volumes."""


STRIDED_POINTWISE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: StridedPointwiseConv1d,
    nn.Conv2d: StridedPointwiseConv2d,
    nn.Conv3d: StridedPointwiseConv3d,
}


def replace_strided_pointwise(network: nn.Module) -> None:
    """Replace the convolutions in `network` whose gradient oneDNN computes wrongly. Weights and names stay."""
    for module in network.modules():
        if (
            isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and type(module) in STRIDED_POINTWISE
            and max(module.kernel_size) == 1
            and max(module.stride) > 1
            and module.padding in ((0,) * len(module.stride), "valid")
            and module.groups == 1
            and module.in_channels < VECTOR_WIDTH
        ):
            module.__class__ = STRIDED_POINTWISE[type(module)]  # type: ignore[assignment]


def upsampling_layer(classes: int, factor: int, learned: bool) -> nn.Module:
    """A module `(scores, size)` that enlarges scores N x C x h x w by `factor` to N x C x H x W; `size` is (H, W)."""
    if factor == 1:  # a dilated map is as fine as the one before it
        return IdentityUpsampling()
    return LearnedUpsampling(classes, factor) if learned else BilinearUpsampling()


class IdentityUpsampling(nn.Module):
    """Returns the scores unchanged."""

    def forward(self, scores: Tensor, size: torch.Size) -> Tensor:
        """Scores N x C x H x W -> the same."""
        return scores


class BilinearUpsampling(nn.Module):
    """Bilinear interpolation to a given size: torch.export cannot always prove that a factor leads to this size."""

    def forward(self, scores: Tensor, size: torch.Size) -> Tensor:
        """Scores N x C x h x w -> N x C x H x W; `size` is (H, W)."""
        return upsample(scores, size)


class LearnedUpsampling(nn.Module):
    """A transposed convolution per class that starts as bilinear interpolation (arXiv 1411.4038, section 4).

    Before training it equals `upsample` up to rounding, also at the borders: the edge of the scores is repeated once,
    because a transposed convolution alone would fade to zero there.
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

    def forward(self, scores: Tensor, size: torch.Size | None = None) -> Tensor:
        """Scores N x C x h x w -> N x C x fh x fw with the factor f; `size` is unused, it is that of `BilinearUpsampling`."""
        enlarged: Tensor = self.transposed_conv(F.pad(scores, (1, 1) * (scores.ndim - 2), mode="replicate"))
        return enlarged


class ExportableAdaptiveAvgPool2d(nn.Module):
    """The average of each cell of a `bins` x `bins` grid, as torch's `adaptive_avg_pool2d` computes it.

    It consists of two matrix products, because that operation cannot be exported with dynamic sizes.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x C x bins x bins; one or three axes after C are pooled likewise."""
        *outer, width = maps.shape[2:]
        pooled = maps @ adaptive_pool_matrix(width, self.bins, maps).T
        for axis, length in enumerate(outer, start=2):
            matrix = adaptive_pool_matrix(length, self.bins, maps)
            # A product with a matrix on the left is over the last axis but one.
            pooled = (
                matrix @ pooled if axis == maps.ndim - 2 else (matrix @ pooled.transpose(axis, -2)).transpose(axis, -2)
            )
        return pooled


class PoolingBranch(nn.Module):
    """Average a map over a grid of `bins` x `bins` cells, apply a 1x1 convolution, and upsample to the map's size.

    One bin is the mean of the whole image, as in ASPP (arXiv 1706.05587); PSPNet uses 1, 2, 3 and 6 bins (arXiv
    1612.01105).
    """

    def __init__(self, inputs: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.pool = ExportableAdaptiveAvgPool2d(bins)
        # No batch norm: a single bin gives one value per image, on which it fails for a batch of one image.
        self.conv = nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1), nn.ReLU(inplace=True))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x h x w -> N x outputs x h x w."""
        return upsample(self.conv(self.pool(maps)), maps.shape[2:])


def adaptive_pool_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """The `bins` x `length` matrix whose row i averages positions floor(i*length/bins) to ceil((i+1)*length/bins) - 1.

    It has the dtype and device of `like`.
    """
    position = torch.arange(length, device=like.device)
    cell = torch.arange(bins, device=like.device)[:, None]
    inside = (position >= cell * length // bins) & (position < ((cell + 1) * length + bins - 1) // bins)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)
