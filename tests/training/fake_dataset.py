"""Small evaluations: images made on demand, a network that is a line of numpy, and its metrics."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.sample import Sample
from models.spec import ClassInfo, default_rgb
from training.data.dataset import Pair, SegmentationDataset
from training.metrics.bootstrap import PerImageCounts, compute_metrics
from training.metrics.confusion import ConfusionMatrix
from training.metrics.results import EvaluatedBundle, EvaluationMetrics

SampleFactory = Callable[[int], tuple[np.ndarray, np.ndarray]]  # index -> RGB uint8 H x W x 3, labels uint8 H x W


@dataclass(frozen=True)
class FakeDataset(SegmentationDataset):
    """A split whose images and masks are made on demand."""

    make_sample: SampleFactory = field(
        default=lambda index: (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))
    )

    def sample(self, index: int) -> Sample:
        return Sample(self.make_sample(index)[0])

    def rgb(self, index: int) -> np.ndarray:
        return self.make_sample(index)[0]

    def labels(self, index: int) -> np.ndarray:
        return self.make_sample(index)[1]


def make_fake_dataset(number: int, make_sample: SampleFactory, classes: int = 2) -> FakeDataset:
    pairs = [Pair(f"p{index}", Path(f"p{index}.png"), Path(f"m{index}.png")) for index in range(number)]
    return FakeDataset(
        pairs,
        [ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(classes)],
        make_sample=make_sample,
    )


def predict_red(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, Any]:
    """An inference function: class 1 for pixels whose red value is above 127."""
    return (images[..., 0] > 127).astype(np.uint8), None


def make_metrics(
    matrix: ConfusionMatrix, tally: PerImageCounts, classes: list[ClassInfo], **changes: Any
) -> EvaluationMetrics:
    """The metrics.json of an evaluation of a bundle whose SHA256SUMS is empty; `changes` replaces fields."""
    bundle = EvaluatedBundle(
        name="fake",
        hash=hashlib.sha256(b"").hexdigest(),
        engine="openvino",
        device="cpu",
        precision="f32",
        reason="test",
    )
    metrics = EvaluationMetrics(
        **dict(compute_metrics(tally, classes)),
        split="test",
        images=len(tally),
        images_without_mask=0,
        ignored_pixels=matrix.ignored_pixels,
        data="fake",
        tta=None,
        bundle=bundle,
        per_image=tally.to_rows(),
    )
    return metrics.model_copy(update=changes)
