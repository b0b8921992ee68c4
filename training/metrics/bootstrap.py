"""What is kept of every image of an evaluation, and the intervals that follow from it.

A metric of one split is one number of many that other images of the same kind would have given. The bootstrap (Efron
1979) draws as many images from the split, with replacement, and computes the metric anew; 95% of 1000 such figures lie
in the interval that is reported. Images are drawn, not pixels: pixels of one image are alike, and their number would make any
difference look certain.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.metrics.confusion import Counts, Rates, accuracy, by_class, dice, iou, nan_mean, round_or_none

NUM_RESAMPLES, CONFIDENCE_LEVEL, SEED = 1000, 0.95, 0
# Of fewer images resamples say nothing: five that all lean one way do so by chance once in 16.
MIN_IMAGES = 6
RESAMPLES_PER_BLOCK = 50  # resamples at a time, so that memory is theirs times the images and no more


class PerImageCounts:
    """Pixel counts of each image, and no image: int32 2 x 3 x C each (whole masks, boundaries; hit, truth, answer).

    32 bits hold any image that the house reads (10^8 pixels); sums are taken in 64.
    """

    def __init__(self, classes: int) -> None:
        self.num_classes = classes
        self.names: list[str] = []
        self._counts: list[NDArray[np.int32]] = []

    def add(self, name: str, whole: NDArray[np.int64], edges: NDArray[np.int64]) -> None:
        """Keep an image's counts, each 3 x C pixels: hits, truth and answers of its masks and of their boundaries."""
        self.names.append(name)
        self._counts.append(np.stack([whole, edges]).astype(np.int32))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> NDArray[np.int64]:
        """N x 2 x 3 x C pixels."""
        shape = (len(self), 2, 3, self.num_classes)
        return np.array(self._counts, np.int64).reshape(shape)

    def mious(self) -> Rates:
        """The mIoU of each image over the classes that occur in it, N; NaN for one that is void throughout."""
        hit, truth, answer = np.moveaxis(self.counts[:, 0], 1, 0)
        return np.asarray(nan_mean(iou(hit, truth, answer)))

    def to_rows(self) -> list[dict[str, Any]]:
        """The same as plain JSON values; `counts` names the classes that occur: label, then the six counts."""
        rows = []
        for name, counts, miou in zip(self.names, self._counts, self.mious().tolist(), strict=True):
            flat = counts.reshape(6, self.num_classes)
            occurring = np.flatnonzero(flat.any(axis=0))
            kept = np.column_stack([occurring, flat[:, occurring].T]).tolist()
            rows.append({"name": name, "miou": round_or_none(miou), "counts": kept})
        return rows

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]], classes: int) -> "PerImageCounts":
        """What `rows` gave. Raises: KeyError, ValueError, TypeError, IndexError where it is something else."""
        tally = cls(classes)
        for row in rows:
            counts = np.zeros((6, classes), np.int64)
            for label, *six in row["counts"]:
                counts[:, label] = six
            tally.add(str(row["name"]), *counts.reshape(2, 3, classes))
        return tally

    def reorder(self, names: list[str]) -> "PerImageCounts":
        """The same images in another order, each of `names` once."""
        place = {name: index for index, name in enumerate(self.names)}
        tally = PerImageCounts(self.num_classes)
        for name in names:
            tally.add(name, *self._counts[place[name]])
        return tally


def metrics_from_counts(counts: Counts) -> dict[str, Any]:
    """The metrics of counts ... x 2 x 3 x C: arrays ... of the whole, and ... x C by class."""
    hit, truth, answer = np.moveaxis(counts[..., 0, :, :], -2, 0)
    by_iou, by_dice, found = iou(hit, truth, answer), dice(hit, truth, answer), accuracy(hit, truth)
    edges = iou(*np.moveaxis(counts[..., 1, :, :], -2, 0))
    return {
        "miou": nan_mean(by_iou),
        "pixel_accuracy": accuracy(hit.sum(axis=-1, keepdims=True), truth.sum(axis=-1, keepdims=True))[..., 0],
        "mean_dice": nan_mean(by_dice),
        "mean_accuracy": nan_mean(found),
        "boundary_iou": nan_mean(edges),
        "per_class_iou": by_iou,
        "per_class_dice": by_dice,
        "per_class_accuracy": found,
        "per_class_boundary_iou": edges,
    }


def bootstrap_metrics(tally: PerImageCounts) -> dict[str, Rates]:
    """The metrics of every resample: arrays R, and R x C by class; `mean_image_miou` is the mean of the images' mIoU.

    Two tallies of the same images in the same order are drawn from alike, so that their differences are paired.
    """
    counts, mious = tally.counts.astype(np.float64), tally.mious()  # float64 is exact up to 2^53 pixels, and has a BLAS
    flat, there = counts.reshape(len(tally), -1), ~np.isnan(mious)
    parts = []
    for weights in _resample_weights(len(tally)):
        sums = (weights @ flat).reshape(-1, *counts.shape[1:])
        by_image = np.stack([weights @ np.where(there, mious, 0.0), weights @ there])
        parts.append({**metrics_from_counts(sums), "mean_image_miou": accuracy(by_image[0], by_image[1])})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _resample_weights(images: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is in a resample, BLOCK x N at a time."""
    random = np.random.default_rng(SEED)
    for _ in range(NUM_RESAMPLES // RESAMPLES_PER_BLOCK):
        drawn = (
            random.integers(images, size=(RESAMPLES_PER_BLOCK, images))
            + images * np.arange(RESAMPLES_PER_BLOCK)[:, None]
        )
        yield (
            np.bincount(drawn.ravel(), minlength=RESAMPLES_PER_BLOCK * images)
            .reshape(RESAMPLES_PER_BLOCK, images)
            .astype(np.float64)
        )


def percentile_interval(values: Rates) -> Rates:
    """The middle 95% of R x ... values, 2 x ...: lower and upper end; resamples with NaN stay out, all NaN gives NaN."""
    ends = np.full((2, *values.shape[1:]), np.nan)
    for place in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *place)]
        column = column[~np.isnan(column)]
        if column.size:
            ends[(slice(None), *place)] = np.percentile(
                column, [50 * (1 - CONFIDENCE_LEVEL), 50 * (1 + CONFIDENCE_LEVEL)]
            )
    return ends


def confidence_intervals(tally: PerImageCounts, classes: list[ClassInfo]) -> dict[str, Any]:
    """95% intervals as plain JSON values, [low, high]; None for what is absent or on too few images."""
    told: dict[str, Any] = {
        "level": CONFIDENCE_LEVEL,
        "resamples": NUM_RESAMPLES,
        "seed": SEED,
        "min_images": MIN_IMAGES,
    }
    enough = images_per_class(tally) >= MIN_IMAGES
    for name, values in bootstrap_metrics(tally).items():
        ends = percentile_interval(values)
        if values.ndim == 1:
            told[name] = interval_to_list(ends) if len(tally) >= MIN_IMAGES else None
        else:
            ends[:, ~enough] = np.nan
            told[name] = {entry.name: interval_to_list(each) for entry, each in zip(classes, ends.T, strict=True)}
    return told


def images_per_class(tally: PerImageCounts) -> NDArray[np.int64]:
    """By class, the number of images that it occurs on, in the truth or the answer; C."""
    return np.asarray((tally.counts[:, 0, 1:] > 0).any(axis=1).sum(axis=0), np.int64)


def compute_metrics(tally: PerImageCounts, classes: list[ClassInfo]) -> dict[str, Any]:
    """All metrics of a split as plain JSON values, 0..1, absent is None; with their intervals, and what is absent."""
    figures = metrics_from_counts(tally.counts.sum(axis=0))
    mious = tally.mious()
    truth = tally.counts[:, 0, 1].sum(axis=0)
    return {
        **{name: round_or_none(value) for name, value in figures.items() if np.ndim(value) == 0},
        "mean_image_miou": round_or_none(float(nan_mean(mious))),
        **{name: by_class(value, classes) for name, value in figures.items() if np.ndim(value) == 1},
        "absent": [entry.name for entry, pixels in zip(classes, truth.tolist(), strict=True) if not pixels],
        "intervals": confidence_intervals(tally, classes),
    }


def interval_to_list(ends: Rates) -> list[float] | None:
    """An interval as plain JSON values; None where there is none."""
    return None if np.isnan(ends).any() else [round(end, 6) for end in ends.tolist()]
