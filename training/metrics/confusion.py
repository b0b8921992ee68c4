"""Confusion matrix over all pixels of a split, and IoU, Dice, precision and recall from it.

A class that never occurs has the metric NaN, not 0. The functions take pixel counts by class, int64 or float64 ... x C,
and work along the last axis: for one split (C), or for all resamples of it at once (resamples x C).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX, ClassInfo

BACKGROUND_NAMES = ("background", "bg")

Counts = NDArray[Any]  # ... x C pixels, whole numbers >= 0, int64 or float64
Rates = NDArray[np.float64]  # ... x C, 0..1, NaN where there is nothing to count


def iou(hits: Counts, target: Counts, prediction: Counts) -> Rates:
    """Intersection over union; NaN for a class that is neither in the ground truth nor in the prediction."""
    return ratio(hits, target + prediction - hits)


def dice(hits: Counts, target: Counts, prediction: Counts) -> Rates:
    """Dice coefficient (F1); NaN where `iou` is."""
    return ratio(2 * hits, target + prediction)


def precision(hits: Counts, prediction: Counts) -> Rates:
    """Fraction of the pixels predicted as a class that are of it; NaN for a class that is never predicted."""
    return ratio(hits, prediction)


def recall(hits: Counts, target: Counts) -> Rates:
    """Fraction of a class's pixels that are predicted as it; NaN for a class that is not in the ground truth."""
    return ratio(hits, target)


def specificity(hits: Counts, target: Counts, prediction: Counts) -> Rates:
    """Fraction of the labeled pixels of other classes that are not predicted as the class; NaN where there are none."""
    others = target.sum(axis=-1, keepdims=True) - target
    return ratio(others - (prediction - hits), others)


def is_background(names: list[str]) -> NDArray[np.bool_]:
    """Which classes are the background, by their names: background or bg, as in `_background_` too; bool C."""
    return np.array([name.strip("_ ").casefold() in BACKGROUND_NAMES for name in names], bool)


def metrics_from_counts(counts: Counts, names: list[str]) -> dict[str, Rates]:
    """The metrics of counts ... x 3 x C (hits, ground truth, prediction) by name: arrays ..., and ... x C by class.

    `foreground_miou` and `foreground_dice` are means without the background; NaN if no class is the background.
    """
    hits, target, predicted = np.moveaxis(counts, -2, 0)
    rates = {
        "iou": iou(hits, target, predicted),
        "dice": dice(hits, target, predicted),
        "precision": precision(hits, predicted),
        "recall": recall(hits, target),
        "specificity": specificity(hits, target, predicted),
    }
    background = is_background(names)
    foreground = ~background if background.any() else np.zeros_like(background)
    return {
        "miou": nan_mean(rates["iou"]),
        "foreground_miou": nan_mean(rates["iou"][..., foreground]),
        "pixel_accuracy": ratio(hits.sum(axis=-1), target.sum(axis=-1)),
        "mean_dice": nan_mean(rates["dice"]),
        "foreground_dice": nan_mean(rates["dice"][..., foreground]),
        "mean_precision": nan_mean(rates["precision"]),
        "mean_recall": nan_mean(rates["recall"]),
        **{f"per_class_{name}": values for name, values in rates.items()},
    }


def nan_mean(rates: Rates) -> Rates:
    """Mean along the last axis over the classes that occur, ...; NaN where none does."""
    occurs = ~np.isnan(rates)
    return ratio(np.where(occurs, rates, 0.0).sum(axis=-1), occurs.sum(axis=-1))


def ratio(numerator: Any, denominator: Any) -> Rates:
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

    def largest_class_miou(self) -> float:
        """Mean IoU of predicting the largest class of the ground truth everywhere; NaN for fewer than two classes."""
        target = self.class_counts[1]
        occurring = int((target > 0).sum())
        return float(target.max() / target.sum() / occurring) if occurring > 1 else float("nan")

    def never_predicted(self) -> NDArray[np.int64]:
        """The labels that occur in the ground truth, and that no pixel is predicted as."""
        _, target, prediction = self.class_counts
        return np.flatnonzero((target > 0) & (prediction == 0))

    def pixel_accuracy(self) -> float:
        """Fraction of the counted pixels that are right; NaN where none was counted."""
        hits, target, _ = self.class_counts.sum(axis=1)
        return float(ratio(hits, target))

    def summary(self, classes: list[ClassInfo]) -> dict[str, Any]:
        """The metrics as plain JSON values, each 0..1; None where absent."""
        return as_json(metrics_from_counts(self.class_counts, [entry.name for entry in classes]), classes)


def as_json(metrics: dict[str, Rates], classes: list[ClassInfo]) -> dict[str, Any]:
    """The metrics of one split as plain JSON values; those of C values by class name."""
    return {
        name: by_class(value, classes) if np.ndim(value) else round_or_none(float(value))
        for name, value in metrics.items()
    }


def by_class(rates: Rates, classes: list[ClassInfo]) -> dict[str, float | None]:
    """Rates by class name, as plain JSON values; None where absent."""
    return {entry.name: round_or_none(value) for entry, value in zip(classes, rates.tolist(), strict=True)}


def round_or_none(value: float) -> float | None:
    """A rate as JSON can hold it: six digits, and None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)
