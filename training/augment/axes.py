"""Augmentation of samples that are no images: signals (T) and volumes (D, H, W)."""

from dataclasses import dataclass

import numpy as np

from models.imaging.decode import Labels
from models.sample import Statistics, Values
from models.spec import InputRule
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
        depth, height, width = self.crop
        return augment_volume(values, labels, random, (depth, height, width), self.config, rule, statistics)
