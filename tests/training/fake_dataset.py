"""Evaluations in small: images made on demand, and a network that is a line of numpy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import ClassInfo, default_rgb
from training.data.dataset import Pair, SegmentationDataset

SampleFactory = Callable[[int], tuple[np.ndarray, np.ndarray]]  # index -> RGB uint8 H x W x 3, labels uint8 H x W


@dataclass(frozen=True)
class FakeDataset(SegmentationDataset):
    """A split whose images and masks are made as they are asked for."""

    make_sample: SampleFactory = field(
        default=lambda index: (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))
    )

    def image(self, index: int) -> np.ndarray:
        return self.make_sample(index)[0]

    def labels(self, index: int) -> np.ndarray:
        return self.make_sample(index)[1]


def make_fake_dataset(number: int, draw: SampleFactory, classes: int = 2) -> FakeDataset:
    pairs = [Pair(f"p{index}", Path(f"p{index}.png"), Path(f"m{index}.png")) for index in range(number)]
    return FakeDataset(
        pairs, [ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(classes)], make_sample=draw
    )


def predict_red(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, Any]:
    """A network: class 1 where a pixel is more red than not."""
    return (images[..., 0] > 127).astype(np.uint8), None
