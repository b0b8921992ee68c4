"""Samples to batches: fitted, augmented, in an order that depends on the seed and the epoch alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.geometry import fitted_size, resize_labels, resize_picture
from models.spec import VOID, InputRule
from training.augment import Augment
from training.config import TrainConfig
from training.data.samples import Samples

STRIDE = 32  # the deepest feature map's; a validation batch is padded to its multiple


class Batch(NamedTuple):
    """Pictures uint8 N x H x W x 3 RGB and labels uint8 N x H x W, 255 is void."""

    pictures: Tensor
    labels: Tensor


class Fitted(Dataset[Batch]):
    """One split, each picture at the scale that the network sees; augmented where `augment` is given."""

    def __init__(self, samples: Samples, rule: InputRule, augment: Augment | None = None) -> None:
        self.samples = samples
        self.rule = rule
        self.augment = augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | tuple[int, int]) -> Batch:
        """One picture H x W x 3 and its labels H x W, by its place, or by its place and a seed for the augmentation."""
        place, seed = index if isinstance(index, tuple) else (index, 0)
        picture, labels = self.samples.picture(place), self.samples.labels(place)
        size = fitted_size(labels.shape, self.rule)
        picture, labels = resize_picture(picture, size), resize_labels(labels, size)
        if self.augment:
            picture, labels = self.augment(picture, labels, seed)
        return Batch(torch.from_numpy(np.array(picture)), torch.from_numpy(labels))


class Shuffled(Sampler[tuple[int, int]]):
    """A new order each epoch, and a seed for each picture; both are functions of (seed, epoch) alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order, seeds = random.permutation(self.length), random.integers(2**31, size=self.length)
        return iter(list(zip(order.tolist(), seeds.tolist(), strict=True)))


def training_batches(
    samples: Samples, rule: InputRule, crop: tuple[int, int], config: TrainConfig
) -> DataLoader[Batch]:
    """Augmented batches of equal size; a last smaller one is dropped, since batch normalisation fails on one picture."""
    return DataLoader(
        Fitted(samples, rule, Augment(config, crop)),
        batch_size=min(config.batch, len(samples)),
        sampler=Shuffled(len(samples), config.seed),
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


def validation_batches(samples: Samples, rule: InputRule, config: TrainConfig) -> DataLoader[Batch]:
    """Pictures as they are, in order, padded with void to a common size."""
    return DataLoader(
        Fitted(samples, rule),
        batch_size=config.batch,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        collate_fn=pad_together,
    )


def pad_together(items: list[Batch]) -> Batch:
    """Repeat each picture's last row and column up to the largest height and width, rounded up to the stride."""
    height, width = (max(item.labels.shape[axis] for item in items) for axis in (0, 1))
    height, width = height + -height % STRIDE, width + -width % STRIDE
    pictures, labels = [], []
    for picture, mask in items:
        margins = ((0, height - mask.shape[0]), (0, width - mask.shape[1]))
        pictures.append(np.pad(picture.numpy(), (*margins, (0, 0)), mode="edge"))
        labels.append(np.pad(mask.numpy(), margins, constant_values=VOID))
    return Batch(torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(labels)))
