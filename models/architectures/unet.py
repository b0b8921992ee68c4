"""A residual U-Net for 1, 2 or 3 axes: the residual encoder of nnU-Net (Isensee et al. 2024, arXiv 2404.09556).

A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) halves its maps stage by stage, and joins each map again on the way up.
In nnU-Net's variant the encoder has most of the layers, in residual blocks, and the decoder one convolution per stage.
Kernels and strides are given per stage and axis, so that an axis with coarse spacing can keep its length.

One number, `dims`, decides between convolutions for signals, images and volumes. Differences from nnU-Net:

- maps are enlarged by interpolation after a 1x1 convolution, not by transposed convolutions, which OpenVINO runs in float32;
- ReLU instead of leaky ReLU, and batch norm by default: an instance norm depends on padding and on the tile;
- by default the first stage has stride 2: a quarter of the FLOP, and logits at half of the resolution.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.architectures.base import upsample
from models.errors import ConfigError

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[str, dict[int, Any]] = {
    "batch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}
DEFAULT_STRIDES = (2, 2, 2, 2, 2)
MAX_WIDENING = 16  # a stage has at most this many times the channels of the first one
CANVAS = 32  # images are padded to multiples of this many pixels

Axes = tuple[int, ...]  # one number per axis


class ResidualUNet(nn.Module):
    """Normalised samples float N x C x axes -> logits float N x classes x grid, at the stride of the first stage.

    Samples have 1 axis (T), 2 (H, W) or 3 (D, H, W). Any length >= 1 of an axis is possible; it is ceil(length / stride) on
    the grid.
    """

    def __init__(
        self, channels: int, classes: int, width: int, strides: list[Axes], kernels: list[Axes], blocks: list[int],
        norm: str, aux: bool,
    ) -> None:  # fmt: skip
        """`strides`, `kernels` and `blocks` have an entry per stage, finest first; strides and kernels one number per axis."""
        super().__init__()
        dims = len(strides[0])
        widths = [width * min(2**stage, MAX_WIDENING) for stage in range(len(strides))]
        self.stem = conv_norm(channels, width, kernels[0], strides[0], norm)
        # The stem has the stride of the first stage.
        steps = [(1,) * dims, *strides[1:]]
        inputs = [width, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage(*stage, norm) for stage in zip(inputs, widths, kernels, steps, blocks, strict=True)
        )
        self.reduce = nn.ModuleList(
            CONVOLUTIONS[dims](deep, fine, kernel_size=1, bias=False) for fine, deep in pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            conv_norm(2 * count, count, kernel, (1,) * dims, norm)
            for count, kernel in zip(widths[:-1], kernels[:-1], strict=True)
        )
        self.score = CONVOLUTIONS[dims](widths[0], classes, kernel_size=1)
        # Deep supervision: logits of every coarser stage of the decoder, finest first.
        coarser = widths[1:-1] if aux else []
        self.aux_scores = nn.ModuleList(CONVOLUTIONS[dims](count, classes, kernel_size=1) for count in coarser)
        for layer in self.modules():
            if isinstance(layer, tuple(CONVOLUTIONS.values())) and layer.bias is None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, samples: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.score(self._decode(samples)[0])
        return logits

    def training_logits(self, samples: Tensor) -> tuple[Tensor, ...]:
        """The logits, followed by those of the coarser stages, finest first, if the network has them."""
        maps = self._decode(samples)
        coarser = [score(coarse) for score, coarse in zip(self.aux_scores, maps[1:], strict=False)]
        return (self.score(maps[0]), *coarser)

    def _decode(self, samples: Tensor) -> list[Tensor]:
        """The maps of the decoder, finest first."""
        maps = [self.stem(samples)]
        for stage in self.encoder:
            maps.append(stage(maps[-1]))
        decoded = [maps.pop()]
        for reduce, stage in zip(reversed(self.reduce), reversed(self.decoder), strict=True):
            finer = maps.pop()
            enlarged = upsample(reduce(decoded[0]), finer.shape[2:])
            decoded.insert(0, stage(torch.cat([finer, enlarged], dim=1)))
        return decoded


class ResidualBlock(nn.Module):
    """Two convolutions with norms whose result is added to the input (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, kernel: Axes, stride: Axes, norm: str) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, kernel, stride, norm)
        self.second = conv_norm(outputs, outputs, kernel, (1,) * len(kernel), norm, activation=False)
        changes = inputs != outputs or max(stride) > 1
        one = (1,) * len(kernel)
        self.shortcut = conv_norm(inputs, outputs, one, stride, norm, activation=False) if changes else nn.Identity()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x inputs x axes -> N x outputs x axes, divided by the stride."""
        result: Tensor = self.activation(self.second(self.first(maps)) + self.shortcut(maps))
        return result


def conv_norm(
    inputs: int, outputs: int, kernel: Axes, stride: Axes, norm: str, activation: bool = True
) -> nn.Sequential:
    """Convolution, norm and, with `activation`, ReLU, for as many axes as `kernel` has numbers."""
    dims, padding = len(kernel), tuple(length // 2 for length in kernel)
    layer = CONVOLUTIONS[dims](inputs, outputs, kernel, stride, padding, bias=False)
    layers = [layer, NORMS[norm][dims](outputs, affine=True)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activation else nn.Sequential(*layers)


def _stage(inputs: int, outputs: int, kernel: Axes, stride: Axes, blocks: int, norm: str) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, kernel, stride, norm)
    further = (ResidualBlock(outputs, outputs, kernel, (1,) * len(kernel), norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *further)


def build(
    classes: int,
    width: Annotated[int, Field(ge=4)] = 32,
    strides: list[int | list[int]] | None = None,
    kernel: int | list[int | list[int]] = 3,
    blocks: int | list[int] = 2,
    norm: Literal["batch", "instance"] = "batch",
    aux: bool = False,
    weights: str | None = None,
    dims: int = 2,
) -> ResidualUNet:
    """Build a residual U-Net for samples of `dims` axes. There are no pretrained `weights`. Raises: ConfigError.

    width: channels of the first stage; each further one has twice as many, up to 16 times
    strides: one per stage, for all axes or as [rows, columns]; default: 2,2,2,2,2; nnU-Net has 1,2,2,2,2,2
    kernel: odd size of the kernels, of all stages or one per stage, each for all axes or as [rows, columns]
    blocks: residual blocks, of every stage or one number per stage; nnU-Net has 1,3,4,6,6,6
    norm: batch, or instance, whose statistics are those of the padded image or tile (arXiv 1607.08022)
    aux: deep supervision: train logits of the coarser stages as well (arXiv 1409.5185)
    weights: none to start from scratch
    """
    return build_for_axes(dims, 3, classes, width, strides, kernel, blocks, norm, aux)


def build_for_axes(
    dims: int, channels: int, classes: int, width: int = 32, strides: list[int | list[int]] | None = None,
    kernel: int | list[int | list[int]] = 3, blocks: int | list[int] = 2, norm: str = "batch", aux: bool = False,
) -> ResidualUNet:  # fmt: skip
    """A residual U-Net for samples of `dims` axes and `channels`; the options are those of `build`. Raises: ConfigError."""
    steps = [_per_axis("strides", step, dims) for step in strides or DEFAULT_STRIDES]
    stages = len(steps)
    kernels = [_per_axis("kernel", size, dims) for size in _per_stage("kernel", kernel, stages)]
    counts = _per_stage("blocks", blocks, stages)
    if stages < 2 or (aux and stages < 3):
        raise ConfigError(
            f"The option strides has {stages} stage{'s' * (stages > 1)}; it needs {3 if aux else 2} or more."
        )
    for axis in range(dims):
        total = 1
        for step in steps:
            total *= step[axis]
        if CANVAS % total:
            raise ConfigError(
                f"The strides of an axis multiply to {total}; choose strides whose product divides {CANVAS}, such as 2,2,2,2,2."
            )
    if even := [size for size in kernels if any(length % 2 == 0 for length in size)]:
        raise ConfigError(f"A kernel of {'x'.join(map(str, even[0]))} is not possible; choose odd sizes, such as 3.")
    if min(counts) < 1:
        raise ConfigError(f"blocks={min(counts)} is not possible; a stage needs 1 residual block or more.")
    return ResidualUNet(channels, classes, width, steps, kernels, counts, norm, aux)


def _per_stage(option: str, value: Any, stages: int) -> list[Any]:
    """One entry per stage. Raises: ConfigError for a list of another length."""
    entries = value if isinstance(value, list) else [value] * stages
    if len(entries) != stages:
        raise ConfigError(
            f"The option {option} has {len(entries)} entries for {stages} stages; give one, or one per stage."
        )
    return entries


def _per_axis(option: str, value: int | list[int], dims: int) -> Axes:
    """One positive number per axis. Raises: ConfigError."""
    entries = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(entries) != dims or min(entries) < 1:
        raise ConfigError(
            f"The option {option} has the entry {value}; expected a number from 1, or {dims}, one per axis."
        )
    return entries
