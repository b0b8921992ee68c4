"""Metrics that cannot lie: from one confusion matrix over all pixels of a split; what never occurs is NaN, not 0.

`iou`, `dice` and `accuracy` take counts of pixels by class, int64 or float64 ... x C, and work along the last axis: for
one split (C), and for all resamples of it at once (resamples x C).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX, ClassInfo

Counts = NDArray[Any]  # ... x C pixels, whole numbers >= 0, int64 or float64
Rates = NDArray[np.float64]  # ... x C, 0..1, NaN where there is nothing to count


def iou(hit: Counts, truth: Counts, answer: Counts) -> Rates:
    """Intersection over union; NaN for a class that is neither in the truth nor in the answers."""
    return _divide(hit, truth + answer - hit)


def dice(hit: Counts, truth: Counts, answer: Counts) -> Rates:
    """Dice, which is F1; NaN where `iou` is."""
    return _divide(2 * hit, truth + answer)


def accuracy(hit: Counts, truth: Counts) -> Rates:
    """The share of a class's pixels that are found (recall); NaN for a class that is not in the truth."""
    return _divide(hit, truth)


def nan_mean(rates: Rates) -> Rates:
    """The mean along the last axis over the classes that occur, ...; NaN where none does."""
    there = ~np.isnan(rates)
    return _divide(np.where(there, rates, 0.0).sum(axis=-1), there.sum(axis=-1))


def _divide(part: Any, whole: Any) -> Rates:
    """`part / whole` in float64, NaN where `whole` is 0."""
    share = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=share, where=np.asarray(whole) > 0)
    return share


class ConfusionMatrix:
    """A streaming confusion matrix: `counts[truth, answer]`, int64 C x C pixels.

    Pixels whose truth is void are left out. An answer that is no class (void) is a miss of its truth.
    """

    def __init__(self, classes: int) -> None:
        self.num_classes = classes
        self.ignored_pixels = 0  # pixels that were left out
        self.full_counts = np.zeros((classes, classes + 1), np.int64)  # the last column: answers that are no class

    def add(self, truth: Labels, answer: Labels) -> None:
        """Count one image: two uint8 masks H x W of the same size."""
        if truth.shape != answer.shape:
            raise ValueError(f"the truth is {truth.shape} and the answer {answer.shape}: (height, width) must be equal")
        # All pairs of bytes at once: picking the pixels that count out of the masks first takes five times as long.
        pairs = np.bincount((truth.astype(np.uint16) << 8 | answer).ravel(), minlength=1 << 16).reshape(256, 256)
        if pairs[self.num_classes : IGNORE_INDEX].any():
            raise ValueError(
                f"the truth holds labels from {self.num_classes} to {IGNORE_INDEX - 1}, which are no class"
            )
        self.full_counts[:, : self.num_classes] += pairs[: self.num_classes, : self.num_classes]
        self.full_counts[:, self.num_classes] += pairs[: self.num_classes, self.num_classes :].sum(axis=1)
        self.ignored_pixels += int(pairs[IGNORE_INDEX].sum())

    def __iadd__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Take in the counts of another matrix of the same classes."""
        self.full_counts += other.full_counts
        self.ignored_pixels += other.ignored_pixels
        return self

    @property
    def counts(self) -> NDArray[np.int64]:
        """C x C pixels: rows are the truth, columns the answers that are classes."""
        return self.full_counts[:, : self.num_classes]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """3 x C pixels: hits, truth (its void answers too), and answers of each class."""
        return np.stack([np.diag(self.counts), self.full_counts.sum(axis=1), self.counts.sum(axis=0)])

    def iou(self) -> Rates:
        """Intersection over union by class; NaN for a class that is neither in the truth nor in the answers."""
        return iou(*self.class_counts)

    def miou(self) -> float:
        """The mean IoU over the classes that occur; NaN where none does."""
        return float(nan_mean(self.iou()))

    def pixel_accuracy(self) -> float:
        """The share of counted pixels that are right; NaN where none was counted."""
        hit, truth, _ = self.class_counts.sum(axis=1)
        return float(_divide(hit, truth))

    def summary(self, classes: list[ClassInfo]) -> dict[str, Any]:
        """The metrics as plain JSON values, each 0..1; absent is None."""
        hit, truth, answer = self.class_counts
        rates = {"iou": self.iou(), "dice": dice(hit, truth, answer), "accuracy": accuracy(hit, truth)}
        return {
            "miou": round_or_none(self.miou()),
            "pixel_accuracy": round_or_none(self.pixel_accuracy()),
            "mean_dice": round_or_none(float(nan_mean(rates["dice"]))),
            "mean_accuracy": round_or_none(float(nan_mean(rates["accuracy"]))),
            **{f"per_class_{name}": by_class(values, classes) for name, values in rates.items()},
        }


def by_class(rates: Rates, classes: list[ClassInfo]) -> dict[str, float | None]:
    """Rates by the names of the classes, as plain JSON values; absent is None."""
    return {entry.name: round_or_none(value) for entry, value in zip(classes, rates.tolist(), strict=True)}


def round_or_none(value: float) -> float | None:
    """A rate as JSON can hold it: six digits, and None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)
