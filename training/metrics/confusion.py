"""Confusion matrix over all pixels of a split, and IoU, Dice and accuracy from it.

A class that never occurs has the metric NaN, not 0. `iou`, `dice` and `accuracy` take pixel counts by class, int64 or
float64 ... x C, and work along the last axis: for one split (C), or for all resamples of it at once (resamples x C).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX, ClassInfo

Counts = NDArray[Any]  # ... x C pixels, whole numbers >= 0, int64 or float64
Rates = NDArray[np.float64]  # ... x C, 0..1, NaN where there is nothing to count


def iou(hits: Counts, target: Counts, prediction: Counts) -> Rates:
    """Intersection over union; NaN for a class that is neither in the ground truth nor in the prediction."""
    return _divide(hits, target + prediction - hits)


def dice(hits: Counts, target: Counts, prediction: Counts) -> Rates:
    """Dice coefficient (F1); NaN where `iou` is."""
    return _divide(2 * hits, target + prediction)


def accuracy(hits: Counts, target: Counts) -> Rates:
    """Fraction of a class's pixels that are predicted as it (recall); NaN for a class that is not in the ground truth."""
    return _divide(hits, target)


def nan_mean(rates: Rates) -> Rates:
    """Mean along the last axis over the classes that occur, ...; NaN where none does."""
    occurs = ~np.isnan(rates)
    return _divide(np.where(occurs, rates, 0.0).sum(axis=-1), occurs.sum(axis=-1))


def _divide(numerator: Any, denominator: Any) -> Rates:
    """The quotient in float64, NaN where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) > 0)
    return quotient


class ConfusionMatrix:
    """A streaming confusion matrix: `counts[target, prediction]`, int64 C x C pixels.

    Pixels that the ground truth ignores (255) are left out. A prediction that is no class (255) is a miss of its target.
    """

    def __init__(self, classes: int) -> None:
        self.num_classes = classes
        self.ignored_pixels = 0  # pixels that were left out
        self.full_counts = np.zeros((classes, classes + 1), np.int64)  # last column: predictions that are no class

    def add(self, target: Labels, prediction: Labels) -> None:
        """Count one image: two uint8 masks H x W of the same size. Raises: ValueError for other sizes or labels."""
        if target.shape != prediction.shape:
            raise ValueError(
                f"the ground truth is {target.shape} and the prediction {prediction.shape}: (height, width) must be equal"
            )
        # All pairs of bytes at once: first selecting the pixels that count takes five times as long.
        pairs = np.bincount((target.astype(np.uint16) << 8 | prediction).ravel(), minlength=1 << 16).reshape(256, 256)
        if pairs[self.num_classes : IGNORE_INDEX].any():
            raise ValueError(
                f"the ground truth holds labels from {self.num_classes} to {IGNORE_INDEX - 1}, which are no class"
            )
        self.full_counts[:, : self.num_classes] += pairs[: self.num_classes, : self.num_classes]
        self.full_counts[:, self.num_classes] += pairs[: self.num_classes, self.num_classes :].sum(axis=1)
        self.ignored_pixels += int(pairs[IGNORE_INDEX].sum())

    def __iadd__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add the counts of another matrix of the same classes."""
        self.full_counts += other.full_counts
        self.ignored_pixels += other.ignored_pixels
        return self

    @property
    def counts(self) -> NDArray[np.int64]:
        """C x C pixels: rows are the ground truth, columns the predictions that are classes."""
        return self.full_counts[:, : self.num_classes]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """3 x C pixels: hits, ground truth (also where the prediction is no class), and predictions of each class."""
        return np.stack([np.diag(self.counts), self.full_counts.sum(axis=1), self.counts.sum(axis=0)])

    def iou(self) -> Rates:
        """Intersection over union by class; NaN for a class that is neither in the ground truth nor in the prediction."""
        return iou(*self.class_counts)

    def miou(self) -> float:
        """Mean IoU over the classes that occur; NaN where none does."""
        return float(nan_mean(self.iou()))

    def pixel_accuracy(self) -> float:
        """Fraction of the counted pixels that are right; NaN where none was counted."""
        hits, target, _ = self.class_counts.sum(axis=1)
        return float(_divide(hits, target))

    def summary(self, classes: list[ClassInfo]) -> dict[str, Any]:
        """The metrics as plain JSON values, each 0..1; None where absent."""
        hits, target, prediction = self.class_counts
        rates = {"iou": self.iou(), "dice": dice(hits, target, prediction), "accuracy": accuracy(hits, target)}
        return {
            "miou": round_or_none(self.miou()),
            "pixel_accuracy": round_or_none(self.pixel_accuracy()),
            "mean_dice": round_or_none(float(nan_mean(rates["dice"]))),
            "mean_accuracy": round_or_none(float(nan_mean(rates["accuracy"]))),
            **{f"per_class_{name}": by_class(values, classes) for name, values in rates.items()},
        }


def by_class(rates: Rates, classes: list[ClassInfo]) -> dict[str, float | None]:
    """Rates by class name, as plain JSON values; None where absent."""
    return {entry.name: round_or_none(value) for entry, value in zip(classes, rates.tolist(), strict=True)}


def round_or_none(value: float) -> float | None:
    """A rate as JSON can hold it: six digits, and None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)
