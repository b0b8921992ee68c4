"""Augmentation of samples that are no images: signals (T) and volumes (D, H, W)."""

from dataclasses import dataclass

import numpy as np

from models.imaging.decode import Labels
from models.readers.prepare import fill_values
from models.sample import Statistics, Values
from models.spec import IGNORE_INDEX, InputRule
from training.augment.signals import augment_signal
from training.augment.volumes import augment_volume
from training.config import TrainConfig


@dataclass(frozen=True)
class AxesPolicy:
    """Crops and augments one sample at a time; `crop` is one length per axis, in time steps or voxels."""

    config: TrainConfig
    crop: tuple[int, ...]

    def augment(
        self,
        values: Values,
        labels: Labels,
        random: np.random.Generator,
        rule: InputRule,
        statistics: Statistics | None,
    ) -> tuple[Values, Labels]:
        """Values [*axes, C] and labels uint8 [*axes] -> the same of the lengths of the crop."""
        if rule.axes == "T":
            return augment_signal(values, labels, random, self.crop[0], self.config, rule, statistics)
        if rule.axes == "DHW":
            depth, height, width = self.crop
            return augment_volume(values, labels, random, (depth, height, width), self.config, rule, statistics)
        return random_crop(
            values, labels, random, self.crop, self.config.class_balanced_crops, sample_fill(rule, statistics)
        )


def sample_fill(rule: InputRule, statistics: Statistics | None) -> Values:
    """What lies outside of a sample, by channel: 0 after the normalization, or the middle of the range."""
    return fill_values(rule) if statistics is None else statistics[0].astype(rule.dtype)


def random_crop(
    values: Values, labels: Labels, random: np.random.Generator, crop: tuple[int, ...], balanced: float, fill: Values
) -> tuple[Values, Labels]:
    """A random crop of values [*axes, C] and labels uint8 [*axes]; a shorter sample lies at a random place within it.

    With the probability `balanced` it contains a position of a class that is drawn uniformly from those of the sample. Outside of
    the sample values are `fill`, by channel, and labels are ignored.
    """
    starts = [
        int(random.integers(min(0, length - side), max(0, length - side) + 1))
        for length, side in zip(labels.shape, crop, strict=True)
    ]
    if random.random() < balanced:
        present = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256)[:IGNORE_INDEX])
        if present.size:
            positions = np.flatnonzero(labels == random.choice(present))
            position = np.unravel_index(int(random.choice(positions)), labels.shape)
            starts = [
                int(np.clip(place - random.integers(side), 0, length - side)) if length > side else start
                for place, side, length, start in zip(position, crop, labels.shape, starts, strict=True)
            ]
    inside = tuple(slice(max(0, start), start + side) for start, side in zip(starts, crop, strict=True))
    part, part_labels = values[inside], labels[inside]
    if part_labels.shape == crop:
        return np.array(part), np.array(part_labels)
    place = tuple(
        slice(max(0, -start), max(0, -start) + length) for start, length in zip(starts, part_labels.shape, strict=True)
    )
    result, result_labels = np.empty((*crop, values.shape[-1]), values.dtype), np.full(crop, IGNORE_INDEX, np.uint8)
    result[...] = fill
    result[place], result_labels[place] = part, part_labels
    return result, result_labels
