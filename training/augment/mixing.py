"""Augmentation across the samples of a batch, on its device, after that of each image; and smaller batches.

What is drawn depends on the seed, the step, the batch of the step and the process alone. Nothing reads a value back from a GPU.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ConfigError
from models.spec import IGNORE_INDEX, InputRule
from training.config import TrainConfig

MIX_STREAM = 3  # beside those of `training/data/loader.py`
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)  # as in the paper; fractions, height / width
SHRUNK_DIVISOR = 32  # of the sides of a smaller batch, pixels


class BatchMixer:
    """Draws and applies `classmix`, `cutmix` and `erasing`.

    classmix: half of the classes are copied from another sample of the batch, image and labels (arXiv 2007.07936). cutmix: so is a
    box (arXiv 1905.04899). erasing: a box gets the image's mean, and its labels are ignored (arXiv 1708.04896).
    """

    def __init__(self, config: TrainConfig, rule: InputRule, classes: int) -> None:
        """Raises: ConfigError for copies between samples that are normalised by their own statistics."""
        self.config, self.classes = config, classes
        if rule.scaling.kind == "zscore" and (config.classmix or config.cutmix):
            raise ConfigError(
                "classmix and cutmix are not possible with scaling=zscore, by which each image has a scale of its own: "
                "leave them out, or set scaling=fixed or window."
            )

    def __call__(self, images: Tensor, labels: Tensor, *seed: int) -> tuple[Tensor, Tensor]:
        """Images N x H x W x C in the input's dtype, and labels uint8 N x H x W, mixed. `seed`: of this batch."""
        config, device = self.config, labels.device
        number, height, width = labels.shape
        random = np.random.default_rng((config.seed, MIX_STREAM, *seed))
        shift = int(random.integers(1, number)) if number > 1 else 0
        copied = torch.zeros(labels.shape, dtype=torch.bool, device=device)
        if config.classmix and shift:
            # Which labels each sample takes from its partner; drawn from all classes, because counting would wait for a GPU.
            taken = np.zeros((number, 256), bool)
            for row in taken:
                if random.random() < config.classmix:
                    row[random.permutation(self.classes)[: max(1, self.classes // 2)]] = True
            table = torch.from_numpy(taken).to(device)
            copied = table.gather(1, labels.roll(shift, 0).flatten(1).long()).view(labels.shape)
        if config.cutmix and shift:
            areas = [float(random.random()) if random.random() < config.cutmix else 0.0 for _ in range(number)]
            copied |= self._boxes(random, areas, [height / width] * number, labels)
        if (config.classmix or config.cutmix) and shift:
            images = _where(copied[..., None], images.roll(shift, 0), images)
            labels = torch.where(copied, labels.roll(shift, 0), labels)
        if config.erasing:
            areas = [random.uniform(*ERASED_AREA) if random.random() < config.erasing else 0.0 for _ in range(number)]
            flattest, steepest = map(math.log, ERASED_ASPECT)
            aspects = np.exp(random.uniform(flattest, steepest, number)).tolist()
            erased = self._boxes(random, areas, aspects, labels)
            mean = images.to(torch.float32).mean(dim=(1, 2), keepdim=True)
            images = _where(erased[..., None], _to_dtype(mean, images.dtype).expand(images.shape), images)
            labels = labels.masked_fill(erased, IGNORE_INDEX)
        return images, labels

    @staticmethod
    def _boxes(random: np.random.Generator, areas: list[float], aspects: list[float], labels: Tensor) -> Tensor:
        """Boxes of these fractions of the area and these height / width, somewhere in each sample; bool N x H x W."""
        height, width = labels.shape[1:]
        edges = np.zeros((len(areas), 4, 1, 1), np.int64)  # top, bottom, left, right
        for edge, area, aspect in zip(edges[:, :, 0, 0], areas, aspects, strict=True):
            pixels = area * height * width
            sides = min(height, round((pixels * aspect) ** 0.5)), min(width, round((pixels / aspect) ** 0.5))
            first_row, first_column = (
                int(random.integers(length - side + 1)) for length, side in zip((height, width), sides, strict=True)
            )
            edge[:] = first_row, first_row + sides[0], first_column, first_column + sides[1]
        top, bottom, left, right = torch.from_numpy(edges).to(labels.device).unbind(1)
        rows = torch.arange(height, device=labels.device)[:, None]
        columns = torch.arange(width, device=labels.device)
        return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def shrink_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch at half the resolution, in multiples of 32 pixels: images by the mean of an area, labels by nearest neighbor."""
    half = [max(SHRUNK_DIVISOR, round(side / 2 / SHRUNK_DIVISOR) * SHRUNK_DIVISOR) for side in labels.shape[1:]]
    moved = F.interpolate(images.to(torch.float32).permute(0, 3, 1, 2), half, mode="area").permute(0, 2, 3, 1)
    nearest = F.interpolate(labels[:, None].to(torch.float32), half, mode="nearest-exact")[:, 0]
    return _to_dtype(moved, images.dtype).contiguous(), nearest.to(torch.uint8)


def _to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values if dtype.is_floating_point else values.round().to(dtype)


def _where(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """`torch.where`, which has no uint16."""
    if other.dtype != torch.uint16:
        return torch.where(mask, chosen, other)
    return torch.where(mask, chosen.view(torch.int16), other.view(torch.int16)).view(torch.uint16)
