"""Feature maps: the strongest channels of each stage, and those that are dead or repeat another one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.explain.colors import tile_images
from models.explain.facts import Facts, Finding
from models.explain.thresholds import THRESHOLDS
from training.explain.journey import map_image, strongest_channels
from training.explain.kernels import layer_maps
from training.explain.subject import NetworkSubject, stage_modules

TITLE = "Feature maps"
NUM_MAPS, COLUMNS, MAP_SIDE = 16, 8, 96  # shown per stage; pixels of a map's long side
CONSTANT = 1e-5  # of the largest deviation of the stage: a map that varies less is dead
SAME = 0.999  # correlation of two maps that repeat each other

NARROWER_OR_GENTLER = "Train again with a lower lr or less weight decay, or take a narrower encoder."
NARROWER = "A narrower encoder would do the same in less time."


def compute(subject: NetworkSubject) -> Facts:
    """A row per stage (or the layer of --layer) with its dead and duplicate channels, and a sheet of its strongest maps."""
    rows, images = [], {}
    names = [subject.inside.check_layer(subject.layer)] if subject.layer else list(subject.stage_maps)
    for index, name in enumerate(names):
        maps = layer_maps(subject, name)
        if maps is None:
            continue
        strongest = strongest_channels(maps, NUM_MAPS)
        images[f"{index:02d}"] = tile_images([map_image(maps[channel], MAP_SIDE) for channel in strongest], COLUMNS)
        dead = dead_channels(maps)
        rows.append(
            {
                "name": name,
                "channels": len(maps),
                "size": list(maps.shape[1:]),
                "receptive_field": subject.inside.module_fields.get(stage_modules(name)[-1]),
                "strongest": strongest,
                "dead": dead,
                "duplicates": duplicate_channels(maps, dead),
                "sparsity": round(float((maps == 0).float().mean()), 4),
            }
        )
    return Facts({"stages": rows}, images)


def dead_channels(maps: Tensor) -> list[int]:
    """The channels of maps C x h x w that have one value over the inside of the image; padding is felt at the border."""
    border = min(2, (min(maps.shape[1:]) - 1) // 2)
    inside = maps[:, border : maps.shape[1] - border, border : maps.shape[2] - border].flatten(1)
    if inside.shape[1] < 4:
        return []
    deviation = inside.std(dim=1)
    return [int(channel) for channel in torch.nonzero(deviation <= CONSTANT * deviation.max()).flatten()]


def duplicate_channels(maps: Tensor, dead: list[int]) -> list[list[int]]:
    """Pairs of channels (first, repetition) of maps C x h x w whose correlation is above SAME; dead ones are left out."""
    values = maps.flatten(1).to(torch.float32)
    if values.shape[1] < 16:  # too few positions to tell
        return []
    values = values - values.mean(dim=1, keepdim=True)
    values = values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)
    alike = (values @ values.T).abs().numpy()
    alike[dead] = alike[:, dead] = 0
    pairs = []
    for second in range(len(alike)):
        first = np.flatnonzero(alike[second, :second] > SAME)
        if first.size:
            pairs.append([int(first[0]), second])
    return pairs


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """Channels that are dead, and that repeat each other, in all images."""
    found = []
    for index, row in enumerate(images[0]["stages"]):
        rows = [numbers["stages"][index] for numbers in images]
        count = row["channels"]
        dead = set.intersection(*(set(each["dead"]) for each in rows))
        repeated = set.intersection(*({pair[1] for pair in each["duplicates"]} for each in rows))
        for name, channels, fact, advice in (
            ("dead channels", dead, "are constant over every image that was looked at", NARROWER_OR_GENTLER),
            ("duplicate channels", repeated, "repeat another one", NARROWER),
        ):
            fraction = len(channels) / count
            if count > 1 and THRESHOLDS[name].crossed_by(fraction):
                sentence = f"{len(channels)} of {count} channels of {row['name']} {fact}."
                found.append(Finding(name, "maps", round(fraction, 4), sentence, advice))
    return found
