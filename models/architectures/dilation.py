"""Replaces strides by dilation in an encoder, keeping the receptive field.

Holschneider's algorithme à trous, as in Yu and Koltun 2016 (arXiv 1511.07122) and DeepLab (arXiv 1412.7062). A layer
without its stride computes twice as many positions per axis. Every later layer then finds the values that it was
trained on two positions apart, so its kernel is dilated by two. At the old positions the new maps hold exactly the old
values. (They differ a little if a layer reads the whole image, as squeeze-and-excitation and attention do.) The
dilation of a layer thus depends on one number, the stride of the map that it reads.

The layer that loses its stride keeps the dilation of its input, as in torchvision and timm. segmentation-models-pytorch
dilates that layer too, which changes the outputs of pretrained weights; its own networks are dilated as there
(`smp_models.py`).
"""

import math
from functools import partial
from typing import Any

import torch
from segmentation_models_pytorch.encoders._efficientnet import Conv2dStaticSamePadding
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.meta_device import copy_to_meta
from models.errors import ConfigError

# Convolutions with the padding of TensorFlow, computed in their `forward`; the convolution itself is torch's.
SAME_PADDING_CONVS = (Conv2dSame, Conv2dStaticSamePadding)

PROBE_SIDE = (
    1024  # pixels: side of the image that strides are measured on; large, so that padding does not distort them
)


def replace_strides_with_dilation(encoder: nn.Module, output_stride: int) -> None:
    """Change a convolutional encoder in place so that none of its maps has a stride above `output_stride`.

    Raises: ConfigError for an encoder that shrinks its maps by other means than convolutions and pools.
    """
    strides = _input_strides(encoder)
    for name, stride in strides.items():
        parent, _, child = name.rpartition(".")
        layer = encoder.get_submodule(name)
        dilated = _dilate_layer(layer, max(1, stride // output_stride), stride >= output_stride)
        if dilated is not layer:
            setattr(encoder.get_submodule(parent), child, dilated)
    maps = copy_to_meta(encoder)(torch.empty(1, 3, PROBE_SIDE, PROBE_SIDE, device="meta"))
    actual = [PROBE_SIDE // feature_map.shape[2] for feature_map in maps]
    expected = [min(2**level, output_stride) for level in range(len(maps))]
    if actual != expected:
        raise ConfigError(f"its maps would have the strides {actual} instead of {expected}")


def _input_strides(encoder: nn.Module) -> dict[str, int]:
    """The stride of the map that each convolution, pool or padding reads, by the layer's name."""
    meta_copy = copy_to_meta(encoder)
    strides: dict[str, int] = {}

    def record_stride(name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        strides[name] = 2 ** round(math.log2(PROBE_SIDE / inputs[0].shape[2]))

    for name, layer in meta_copy.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.ZeroPad2d):
            layer.register_forward_pre_hook(partial(record_stride, name))
    meta_copy(torch.empty(1, 3, PROBE_SIDE, PROBE_SIDE, device="meta"))
    return strides


def _dilate_layer(layer: Any, rate: int, drop_stride: bool) -> Any:
    """Multiply a layer's dilation by `rate` and, if `drop_stride`, set its stride to 1. Returns the layer or its replacement."""
    if isinstance(layer, nn.ZeroPad2d):
        left, right, top, bottom = layer.padding
        layer.padding = (left * rate, right * rate, top * rate, bottom * rate)
        return layer
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
    loses_stride = drop_stride and max(stride) > 1
    if rate == 1 and not loses_stride:
        return layer
    if isinstance(layer, SAME_PADDING_CONVS):
        # The padding that gives H / stride, the odd pixel below and right; smp's is that of the image size it was built for.
        layer.padding = tuple((size - step) // 2 for size, step in zip(kernel, stride, strict=True))
        if isinstance(layer, Conv2dStaticSamePadding) and isinstance(layer.static_padding, nn.ZeroPad2d):
            left, _, above, _ = layer.static_padding.padding
            layer.padding = (above, left)
        layer.__class__ = nn.Conv2d
    if isinstance(layer, nn.AvgPool2d):
        return DilatedAvgPool2d(layer, (1, 1) if drop_stride else stride, rate)
    # A 1x1 kernel is unchanged by dilation, but the engines run a dilated one on a slower path.
    layer.dilation = tuple(
        step * rate if size > 1 else 1 for step, size in zip(_pair(layer.dilation), kernel, strict=True)
    )
    if isinstance(layer.padding, str):
        return layer
    above, left = (width * rate for width in _pair(layer.padding))
    layer.padding = (above, left)
    below, right = above, left
    if loses_stride:
        layer.stride = (1, 1)
        if type(layer).forward in (nn.Conv2d.forward, nn.MaxPool2d.forward):  # other classes pad in their own way
            below, right = (max(pad, (size - 1) * rate - pad) for size, pad in zip(kernel, (above, left), strict=True))
    if (below, right) != (above, left) or (isinstance(layer, nn.MaxPool2d) and rate > 1):
        layer.padding = (0, 0)
        fill = float("-inf") if isinstance(layer, nn.MaxPool2d) else 0.0
        layer.register_forward_pre_hook(partial(pad_input, (left, right, above, below), fill))
    return layer


def pad_input(sides: tuple[int, ...], fill: float, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Pad a layer's input in ways that the layer cannot: unevenly, or a pool by more than half of its kernel."""
    return (F.pad(inputs[0], sides, value=fill),)


class DilatedAvgPool2d(nn.Module):
    """An average pool with dilation `rate`, which torch's own does not have."""

    def __init__(self, pool: nn.AvgPool2d, stride: tuple[int, int], rate: int) -> None:
        super().__init__()
        self.kernel_size: tuple[int, ...] = _pair(pool.kernel_size)
        self.stride: tuple[int, ...] = stride
        self.padding: tuple[int, ...] = _pair(pool.padding)
        self.dilation, self.count_include_pad = rate, pool.count_include_pad

    def forward(self, maps: Tensor) -> Tensor:
        """Maps N x C x H x W -> N x C x H/stride x W/stride."""
        if self.count_include_pad:
            return self._window_sum(maps) / math.prod(self.kernel_size)
        return self._window_sum(maps) / self._window_sum(torch.ones_like(maps))

    def _window_sum(self, maps: Tensor) -> Tensor:
        sides: list[int] = []  # the last axis first
        for size, pad in zip(self.kernel_size[::-1], self.padding[::-1], strict=True):
            sides += [pad * self.dilation, max(pad, size - 1 - pad) * self.dilation]
        weight = maps.new_ones((maps.shape[1], 1, *self.kernel_size))
        padded = F.pad(maps, sides)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        return convolve(padded, weight, None, self.stride, 0, self.dilation, groups=maps.shape[1])


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
