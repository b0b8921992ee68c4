"""Metrics that cannot lie: from one confusion matrix over all pixels of a split; what never occurs is NaN, not 0."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.image import Labels
from models.spec import VOID, ClassInfo


class Confusion:
    """A streaming confusion matrix: `counts[truth, answer]`, int64 C x C pixels.

    Pixels whose truth is void are left out. An answer that is no class (void) is a miss of its truth.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._counts = np.zeros((classes, classes + 1), np.int64)  # the last column: answers that are no class

    def add(self, truth: Labels, answer: Labels) -> None:
        """Count one picture: two uint8 masks H x W of the same size."""
        if truth.shape != answer.shape:
            raise ValueError(f"the truth is {truth.shape} and the answer {answer.shape}: (height, width) must be equal")
        counted = truth != VOID
        rows = truth[counted].astype(np.int64)
        columns = np.minimum(answer[counted], self.classes).astype(np.int64)
        width = self.classes + 1
        self._counts += np.bincount(rows * width + columns, minlength=self.classes * width).reshape(self.classes, width)

    def __iadd__(self, other: "Confusion") -> "Confusion":
        """Take in the counts of another matrix of the same classes."""
        self._counts += other._counts
        return self

    @property
    def counts(self) -> NDArray[np.int64]:
        """C x C pixels: rows are the truth, columns the answers that are classes."""
        return self._counts[:, : self.classes]

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union by class; NaN for a class that is neither in the truth nor in the answers."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self._counts.sum(axis=1) + self.counts.sum(axis=0) - hit
        iou = np.full(self.classes, np.nan)
        np.divide(hit, union, out=iou, where=union > 0)
        return iou

    def miou(self) -> float:
        """The mean IoU over the classes that occur; NaN where none does."""
        iou = self.iou()
        return float(np.mean(iou[~np.isnan(iou)])) if not np.isnan(iou).all() else float("nan")

    def pixel_accuracy(self) -> float:
        """The share of counted pixels that are right; NaN where none was counted."""
        total = int(self._counts.sum())
        return float(np.trace(self.counts)) / total if total else float("nan")

    def summary(self, classes: list[ClassInfo]) -> dict[str, Any]:
        """The metrics as plain JSON values, each 0..1; absent is None."""
        iou = {entry.name: _plain(value) for entry, value in zip(classes, self.iou().tolist(), strict=True)}
        return {"miou": _plain(self.miou()), "per_class_iou": iou, "pixel_accuracy": _plain(self.pixel_accuracy())}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
