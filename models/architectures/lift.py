"""Lifts a finished 2D network to 1 or 3 axes: to signals (T) or volumes (D, H, W).

Encoders, dilation and pruning exist once, for images. `lift` replaces the layers of the network that they give:
convolutions, transposed convolutions, norms, pools, paddings and upsampling become their 1D or 3D forms.

- 1D: the columns stay, and the weights are summed over the rows. On an image whose rows are all equal, padded in a circle
  along its columns' axis, each layer then gives what it gave in 2D. (Zeros above and below the image are no equal rows.)
- 3D: the depth is a copy of the rows: the same kernel size, stride and dilation. The 2D weights lie in the central slice of
  a kernel and the others are zero, so that a volume of equal slices gets the scores of its slice. This is a start for
  training, as in I3D (Carreira and Zisserman 2017, arXiv 1705.07750), which spreads the weights over all slices instead.

Only layers that this file names are lifted. Every other one, and every module whose code may work on rows and columns, such
as squeeze-and-excitation and attention, is refused by name.
"""

import copy
from functools import partial
from typing import Any

from segmentation_models_pytorch.encoders.mobilenet import MobileNetV2Encoder
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import Conv2dNormActivation

from models.architectures.dilation import DilatedAvgPool2d, pad_input
from models.architectures.fcn import FCN
from models.architectures.heads import DilatedHead, PyramidPooling
from models.architectures.layers import (
    BilinearUpsampling,
    ExportableAdaptiveAvgPool2d,
    IdentityUpsampling,
    LearnedUpsampling,
    PoolingBranch,
)
from models.errors import ConfigError

# Layers that have a counterpart of their own for each number of axes.
COUNTERPARTS: dict[Any, dict[int, Any]] = {
    nn.Conv2d: {1: nn.Conv1d, 3: nn.Conv3d},
    nn.ConvTranspose2d: {1: nn.ConvTranspose1d, 3: nn.ConvTranspose3d},
    nn.BatchNorm2d: {1: nn.BatchNorm1d, 3: nn.BatchNorm3d},
    nn.InstanceNorm2d: {1: nn.InstanceNorm1d, 3: nn.InstanceNorm3d},
    nn.MaxPool2d: {1: nn.MaxPool1d, 3: nn.MaxPool3d},
    nn.AvgPool2d: {1: nn.AvgPool1d, 3: nn.AvgPool3d},
    nn.AdaptiveAvgPool2d: {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d},
    nn.AdaptiveMaxPool2d: {1: nn.AdaptiveMaxPool1d, 3: nn.AdaptiveMaxPool3d},
    nn.ZeroPad2d: {1: nn.ZeroPad1d, 3: nn.ZeroPad3d},
    nn.Dropout2d: {1: nn.Dropout1d, 3: nn.Dropout3d},
    nn.Upsample: {1: nn.Upsample, 3: nn.Upsample},
    DilatedAvgPool2d: {1: DilatedAvgPool2d, 3: DilatedAvgPool2d},
}
INTERPOLATION = {"nearest": {}, "bilinear": {1: "linear", 3: "trilinear"}}

# Modules whose code is the same for any number of axes.
ANY_AXES = (
    nn.Sequential, nn.ModuleList, nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish,
    nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GroupNorm, ResNetEncoder, MobileNetV2Encoder, VGGEncoder, BasicBlock, Bottleneck,
    InvertedResidual, Conv2dNormActivation, FCN, DilatedHead, PyramidPooling, PoolingBranch, LearnedUpsampling,
    BilinearUpsampling, IdentityUpsampling, ExportableAdaptiveAvgPool2d,
)  # fmt: skip


def lift(network: nn.Module, dims: int) -> nn.Module:
    """A copy of a 2D network for samples of `dims` = 1 or 3 axes, with its weights.

    `network` maps N x C x H x W. The copy maps N x C x T or N x C x D x H x W; names of parameters stay.
    Raises: ConfigError that names a layer without a counterpart.
    """
    if dims not in (1, 3):
        raise ConfigError(f"A 2D network cannot be lifted to {dims} axes; choose 1 (signals) or 3 (volumes).")
    lifted = copy.deepcopy(network)
    for name, layer in list(lifted.named_modules()):
        if type(layer) in ANY_AXES and not layer._forward_pre_hooks and not layer._forward_hooks:
            continue
        new = _lift_layer(name, layer, dims)
        parent, _, child = name.rpartition(".")
        if not name:
            return new
        setattr(lifted.get_submodule(parent), child, new)
    return lifted


def _lift_layer(name: str, layer: Any, dims: int) -> nn.Module:
    hooks = list(layer._forward_pre_hooks.values())
    known_hooks = all(isinstance(hook, partial) and hook.func is pad_input for hook in hooks)
    if type(layer) not in COUNTERPARTS or not known_hooks or layer._forward_hooks:
        raise ConfigError(
            f"The layer {name or 'itself'} ({type(layer).__name__}) has no form for {'signals' if dims == 1 else 'volumes'}; "
            "choose a network of convolutions, norms and pools, such as encoder=resnet18."
        )
    new = _MAKERS[type(layer)](layer, dims, COUNTERPARTS[type(layer)][dims])
    for hook in hooks:
        new.register_forward_pre_hook(partial(pad_input, _lift_sides(hook.args[0], dims), hook.args[1]))
    return new.train(layer.training)  # type: ignore[no-any-return]


def _lift_sizes(value: Any, dims: int) -> Any:
    """A number per axis: (rows, columns) -> (columns,) or (rows, rows, columns). Text, such as "same", stays."""
    if isinstance(value, str):
        return value
    rows, columns = value if isinstance(value, tuple | list) else (value, value)
    return (columns,) if dims == 1 else (rows, rows, columns)


def _lift_sides(sides: tuple[int, int, int, int], dims: int) -> tuple[int, ...]:
    """Padding (left, right, above, below), in the order of `F.pad`: the last axis first."""
    return tuple(sides[:2]) if dims == 1 else (*sides, *sides[2:])


def _lift_convolution(layer: Any, dims: int, counterpart: Any) -> nn.Module:
    options = {"output_padding": _lift_sizes(layer.output_padding, dims)} if layer.transposed else {}
    new = counterpart(
        layer.in_channels, layer.out_channels, _lift_sizes(layer.kernel_size, dims), _lift_sizes(layer.stride, dims),
        _lift_sizes(layer.padding, dims), dilation=_lift_sizes(layer.dilation, dims), groups=layer.groups,
        bias=layer.bias is not None, padding_mode=layer.padding_mode, **options,
    )  # fmt: skip
    taps = layer.stride[0] if layer.transposed else 1
    new.weight = nn.Parameter(lift_weight(layer.weight.detach(), dims, taps), layer.weight.requires_grad)
    new.bias = layer.bias
    return new  # type: ignore[no-any-return]


def lift_weight(weight: Tensor, dims: int, taps: int) -> Tensor:
    """A kernel of rows x columns in its last axes -> columns, summed over the rows, or rows x rows x columns.

    A transposed convolution writes `taps` = stride slices per slice that it reads. Each of them gets the kernel, as the
    nearest slice; in 1D the sum over all rows would count each row that often.
    """
    if dims == 1:
        return weight.sum(dim=-2) / taps
    rows = weight.shape[-2]
    lifted = weight.new_zeros(*weight.shape[:-2], rows, *weight.shape[-2:])
    first = max(0, (rows - taps + (taps > 1)) // 2)  # of an even kernel the slice before the middle
    lifted[..., first : first + taps, :, :] = weight.unsqueeze(-3)
    return lifted


def lift_tensors(tensors: dict[str, Tensor], dims: int) -> dict[str, Tensor]:
    """The tensors of a 2D network's file for its lifted form, by the same names; those of a lifted network stay as they are."""
    # Of four axes are only kernels; those of `LearnedUpsampling` are twice as long as their stride.
    return {
        name: lift_weight(value, dims, value.shape[-1] // 2 if name.endswith("transposed_conv.weight") else 1)
        if value.ndim == 4
        else value
        for name, value in tensors.items()
    }


def _lift_norm(layer: Any, dims: int, counterpart: Any) -> nn.Module:
    new = counterpart(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
    )
    new._parameters, new._buffers = layer._parameters, layer._buffers
    return new  # type: ignore[no-any-return]


def _lift_max_pool(layer: nn.MaxPool2d, dims: int, counterpart: Any) -> nn.Module:
    sizes = [_lift_sizes(value, dims) for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    return counterpart(*sizes, ceil_mode=layer.ceil_mode)  # type: ignore[no-any-return]


def _lift_average_pool(layer: Any, dims: int, counterpart: Any) -> nn.Module:
    kernel, stride, padding = (_lift_sizes(value, dims) for value in (layer.kernel_size, layer.stride, layer.padding))
    if dims == 3 and padding[0]:  # slices of zeros would lower the mean of the outermost ones
        kernel, padding = (1, *kernel[1:]), (0, *padding[1:])
    if isinstance(layer, DilatedAvgPool2d):
        new = copy.deepcopy(layer)
        new.kernel_size, new.stride, new.padding = kernel, stride, padding
        return new
    return counterpart(  # type: ignore[no-any-return]
        kernel, stride, padding, ceil_mode=layer.ceil_mode, count_include_pad=layer.count_include_pad
    )


def _lift_adaptive_pool(layer: Any, dims: int, counterpart: Any) -> nn.Module:
    return counterpart(_lift_sizes(layer.output_size, dims))  # type: ignore[no-any-return]


def _lift_upsample(layer: nn.Upsample, dims: int, counterpart: Any) -> nn.Module:
    mode = INTERPOLATION.get(layer.mode, {}).get(dims, layer.mode)
    size, factor = (None if value is None else _lift_sizes(value, dims) for value in (layer.size, layer.scale_factor))
    return counterpart(size, factor, mode, layer.align_corners)  # type: ignore[no-any-return]


_MAKERS: dict[Any, Any] = {
    nn.Conv2d: _lift_convolution,
    nn.ConvTranspose2d: _lift_convolution,
    nn.BatchNorm2d: _lift_norm,
    nn.InstanceNorm2d: _lift_norm,
    nn.MaxPool2d: _lift_max_pool,
    nn.AvgPool2d: _lift_average_pool,
    DilatedAvgPool2d: _lift_average_pool,
    nn.AdaptiveAvgPool2d: _lift_adaptive_pool,
    nn.AdaptiveMaxPool2d: _lift_adaptive_pool,
    nn.ZeroPad2d: lambda layer, dims, counterpart: counterpart(_lift_sides(layer.padding, dims)),
    nn.Dropout2d: lambda layer, dims, counterpart: counterpart(layer.p, layer.inplace),
    nn.Upsample: _lift_upsample,
}
