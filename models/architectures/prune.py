"""Removes the layers of an encoder that its feature maps do not depend on, and checks the sizes of the maps."""

from typing import Any

import torch
from torch import nn

from models.architectures.meta_device import copy_to_meta
from models.errors import ConfigError, first_line

PROBE_SIZE = (64, 192)  # (height, width) in pixels, not square

# What `_trace_usage` found, by encoder: a training builds its network three times, and a trace takes half a second.
_traces: dict[tuple[Any, ...], tuple[set[str], set[str]]] = {}


def prune_unused_layers(encoder: nn.Module, name: str, output_stride: int, finest_level: int = 0) -> None:
    """Remove, in place, the layers that none of the feature maps from index `finest_level` on depends on.

    segmentation-models-pytorch keeps the stages beyond `depth` and EfficientNet's last convolution. They would be
    counted as parameters and written into every bundle, and they stop training on several GPUs, where every parameter
    needs a gradient.

    Raises: ConfigError for an encoder that does not accept images of any size, or whose maps have other strides.
    """
    try:
        channels: Any = encoder.out_channels  # of the maps: their number is the depth, which the layers do not show
        key = (name, repr(encoder), *channels, output_stride, finest_level)
        if key not in _traces:
            with torch.inference_mode(False), torch.enable_grad():
                meta_encoder = copy_to_meta(encoder).requires_grad_(True)
                _traces[key] = _trace_usage(meta_encoder, output_stride, finest_level)
        used, called = _traces[key]
    except Exception as error:  # smp and timm raise exceptions of many types
        raise ConfigError(
            f"The encoder {name} does not return the feature maps that a segmentation network needs: {first_line(error)}"
        ) from error
    removed: set[str] = set()
    for path, layer in list(encoder.named_modules()):
        parameters = {f"{path}.{name}" for name, _ in layer.named_parameters()}
        if not path or not parameters or parameters & used or any(path.startswith(prefix) for prefix in removed):
            continue
        if any(name.startswith(f"{path}.") for name in called):
            layer.requires_grad_(False)  # computed and discarded, as in timm's HRNet of less than full depth
        else:
            parent, _, child = path.rpartition(".")
            setattr(encoder.get_submodule(parent), child, nn.Identity())
            removed.add(f"{path}.")


def _trace_usage(meta_encoder: nn.Module, output_stride: int, finest_level: int) -> tuple[set[str], set[str]]:
    """The names of the parameters that the maps depend on, and of the called layers (these with a trailing dot).

    Raises: ValueError for maps of unexpected sizes.
    """
    called: set[str] = set()
    for name, layer in meta_encoder.named_modules():
        layer.register_forward_pre_hook(lambda _, __, name=name: called.add(f"{name}."))
    maps = meta_encoder(torch.empty(1, 3, *PROBE_SIZE, device="meta"))
    strides = [min(2**level, output_stride) for level in range(len(maps))]
    expected = [tuple(side // stride for side in PROBE_SIZE) for stride in strides]
    actual = [tuple(feature_map.shape[2:]) for feature_map in maps]
    if actual != expected:
        raise ValueError(f"its maps of a {PROBE_SIZE} image have the sizes {actual}, expected {expected}")
    torch.stack([feature_map.sum() for feature_map in maps[finest_level:]]).sum().backward()  # type: ignore[no-untyped-call]
    return {name for name, parameter in meta_encoder.named_parameters() if parameter.grad is not None}, called
