"""The journey of an image: stage by stage kernel, stride, padding, dilation, size, receptive field, and the strongest maps."""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from models.explain.colors import heat_colors, shrink
from models.explain.facts import Facts, Finding
from models.imaging.decode import RGB
from training.explain.subject import NetworkSubject, stage_modules

TITLE = "The journey"
NUM_THUMBNAILS, THUMBNAIL_SIDE = 4, 112  # maps per stage, pixels of their long side


def compute(subject: NetworkSubject) -> Facts:
    """A row per stage, and thumbnails of its strongest maps."""
    rows, images = [], {"input": shrink(subject.rgb, 2 * THUMBNAIL_SIDE)}
    modules = dict(subject.inside.network.body.named_modules())
    for index, stage in enumerate(subject.stages):
        maps = subject.stage_maps.get(stage.name)
        for rank, image in enumerate(thumbnails(maps) if maps is not None else []):
            images[f"{index:02d}-{rank}"] = image
        rows.append(
            {
                "name": stage.name,
                "operations": stage.operations,
                "convolutions": convolutions([modules[name] for name in stage_modules(stage.name)]),
                "output": None if maps is None else list(maps.shape),
                "stride": stage.stride,
                "receptive_field": stage.receptive_field,
                "parameters": stage.parameters,
                "flops": stage.flops,
            }
        )
    return Facts({"stages": rows, "input": list(subject.input.shape[1:])}, images)


def convolutions(modules: list[nn.Module]) -> list[dict[str, Any]]:
    """The different convolutions of some modules: kernel, stride, padding and dilation, each (height, width), and their count."""
    found: dict[tuple[Any, ...], int] = {}
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.Conv2d):
            padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,)
            key = (layer.kernel_size, layer.stride, padding, layer.dilation)
            found[key] = found.get(key, 0) + 1
    names = ("kernel", "stride", "padding", "dilation")
    return [dict(zip(names, map(list, key), strict=True)) | {"count": count} for key, count in found.items()]


def strongest_channels(maps: Tensor, count: int) -> list[int]:
    """Channels of maps C x h x w with the largest mean absolute value, strongest first."""
    channels: list[int] = maps.abs().mean(dim=(1, 2)).topk(min(count, len(maps))).indices.tolist()
    return channels


def thumbnails(maps: Tensor) -> list[RGB]:
    """The strongest channels of maps C x h x w as colors, strongest first."""
    return [map_image(maps[channel], THUMBNAIL_SIDE) for channel in strongest_channels(maps, NUM_THUMBNAILS)]


def map_image(plane: Tensor, longest: int) -> RGB:
    """A map h x w as colors, from its minimum to its maximum; small maps are enlarged in whole pixels."""
    values = plane.detach().to(torch.float32).numpy()
    image = heat_colors(values - values.min())
    factor = longest // max(values.shape)
    if factor > 1:
        return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), np.uint8)
    return shrink(image, longest)


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """None: the stages of a network are no fault by themselves."""
    return []
