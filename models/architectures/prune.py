"""An encoder without the layers that its feature maps do not need; and one whose maps are not to be had, refused."""

import torch
from torch import nn

from models.architectures.meta_device import copy_to_meta
from models.errors import ConfigError, first_line

PROBE_SIZE = (64, 192)  # (height, width) in pixels: the smallest that the segmenter hands in, and no square


def prune_unused_layers(encoder: nn.Module, name: str, output_stride: int, finest_level: int = 0) -> None:
    """Take away, in place, what none of an encoder's feature maps from number `finest` on depends on.

    segmentation-models-pytorch keeps the stages beyond `depth` and EfficientNet's last convolution. They would be
    counted, written into every bundle, and stop training on several GPUs, where each parameter has to get a gradient.

    Raises: ConfigError for an encoder that does not take an image of any size, or has its maps at other strides.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            used, called = _trace_usage(copy_to_meta(encoder).requires_grad_(True), output_stride, finest_level)
    except Exception as error:  # each library raises its own kinds
        raise ConfigError(
            f"The encoder {name} gives no feature maps that a segmentation network needs: {first_line(error)}"
        ) from error
    removed: set[str] = set()
    for place, layer in list(encoder.named_modules()):
        inside = {f"{place}.{each}" for each, _ in layer.named_parameters()}
        if not place or not inside or inside & used or any(place.startswith(each) for each in removed):
            continue
        if any(each.startswith(f"{place}.") for each in called):
            layer.requires_grad_(False)  # computed and thrown away, as by timm's HRNet of less than full depth
        else:
            parent, _, child = place.rpartition(".")
            setattr(encoder.get_submodule(parent), child, nn.Identity())
            removed.add(f"{place}.")


def _trace_usage(shadow: nn.Module, output_stride: int, finest: int) -> tuple[set[str], set[str]]:
    """The names of the parameters that the maps depend on, and of the layers that are called, each with a dot after it."""
    called: set[str] = set()
    for name, layer in shadow.named_modules():
        layer.register_forward_pre_hook(lambda _, __, name=name: called.add(f"{name}."))
    maps = shadow(torch.empty(1, 3, *PROBE_SIZE, device="meta"))
    strides = [min(2**level, output_stride) for level in range(len(maps))]
    wanted = [tuple(side // stride for side in PROBE_SIZE) for stride in strides]
    found = [tuple(one.shape[2:]) for one in maps]
    if found != wanted:
        raise ValueError(f"its maps of an image of {PROBE_SIZE} pixels are {found}, wanted are {wanted}")
    torch.stack([one.sum() for one in maps[finest:]]).sum().backward()  # type: ignore[no-untyped-call]
    return {name for name, parameter in shadow.named_parameters() if parameter.grad is not None}, called
