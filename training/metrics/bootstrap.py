"""What is kept of every picture of an evaluation, and the intervals that follow from it.

A metric of one split is one number of many that other pictures of the same kind would have given. The bootstrap (Efron
1979) draws as many pictures from the split, with replacement, and computes the metric anew; 95% of 1000 such figures lie
in the interval that is reported. Pictures are drawn, not pixels: pixels of one picture are alike, and their number would make any
difference look certain.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.metrics.confusion import Counts, Rates, accuracy, by_class, dice, iou, mean, plain

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
# Of fewer pictures resamples say nothing: five that all lean one way do so by chance once in 16.
FEWEST = 6
BLOCK = 50  # resamples at a time, so that memory is theirs times the pictures and no more


class Tally:
    """Pixel counts of each picture, and no picture: int32 2 x 3 x C each (whole masks, boundaries; hit, truth, answer).

    32 bits hold any picture that the house reads (10^8 pixels); sums are taken in 64.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.names: list[str] = []
        self._counts: list[NDArray[np.int32]] = []

    def add(self, name: str, whole: NDArray[np.int64], edges: NDArray[np.int64]) -> None:
        """Keep a picture's counts, each 3 x C pixels: hits, truth and answers of its masks and of their boundaries."""
        self.names.append(name)
        self._counts.append(np.stack([whole, edges]).astype(np.int32))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> NDArray[np.int64]:
        """N x 2 x 3 x C pixels."""
        shape = (len(self), 2, 3, self.classes)
        return np.array(self._counts, np.int64).reshape(shape)

    def mious(self) -> Rates:
        """The mIoU of each picture over the classes that occur in it, N; NaN for one that is void throughout."""
        hit, truth, answer = np.moveaxis(self.counts[:, 0], 1, 0)
        return np.asarray(mean(iou(hit, truth, answer)))

    def rows(self) -> list[dict[str, Any]]:
        """The same as plain JSON values; `counts` names the classes that occur: label, then the six counts."""
        rows = []
        for name, counts, miou in zip(self.names, self._counts, self.mious().tolist(), strict=True):
            flat = counts.reshape(6, self.classes)
            occurring = np.flatnonzero(flat.any(axis=0))
            kept = np.column_stack([occurring, flat[:, occurring].T]).tolist()
            rows.append({"name": name, "miou": plain(miou), "counts": kept})
        return rows

    @classmethod
    def of(cls, rows: list[dict[str, Any]], classes: int) -> "Tally":
        """What `rows` gave. Raises: KeyError, ValueError, TypeError, IndexError where it is something else."""
        tally = cls(classes)
        for row in rows:
            counts = np.zeros((6, classes), np.int64)
            for label, *six in row["counts"]:
                counts[:, label] = six
            tally.add(str(row["name"]), *counts.reshape(2, 3, classes))
        return tally

    def ordered(self, names: list[str]) -> "Tally":
        """The same pictures in another order, each of `names` once."""
        place = {name: index for index, name in enumerate(self.names)}
        tally = Tally(self.classes)
        for name in names:
            tally.add(name, *self._counts[place[name]])
        return tally


def rates(counts: Counts) -> dict[str, Any]:
    """The metrics of counts ... x 2 x 3 x C: arrays ... of the whole, and ... x C by class."""
    hit, truth, answer = np.moveaxis(counts[..., 0, :, :], -2, 0)
    by_iou, by_dice, found = iou(hit, truth, answer), dice(hit, truth, answer), accuracy(hit, truth)
    edges = iou(*np.moveaxis(counts[..., 1, :, :], -2, 0))
    return {
        "miou": mean(by_iou),
        "pixel_accuracy": accuracy(hit.sum(axis=-1, keepdims=True), truth.sum(axis=-1, keepdims=True))[..., 0],
        "mean_dice": mean(by_dice),
        "mean_accuracy": mean(found),
        "boundary_iou": mean(edges),
        "per_class_iou": by_iou,
        "per_class_dice": by_dice,
        "per_class_accuracy": found,
        "per_class_boundary_iou": edges,
    }


def resampled(tally: Tally) -> dict[str, Rates]:
    """The metrics of every resample: arrays R, and R x C by class; `picture_miou` is the mean of the pictures' mIoU.

    Two tallies of the same pictures in the same order are drawn from alike, so that their differences are paired.
    """
    counts, mious = tally.counts.astype(np.float64), tally.mious()  # float64 is exact up to 2^53 pixels, and has a BLAS
    flat, there = counts.reshape(len(tally), -1), ~np.isnan(mious)
    parts = []
    for weights in _draws(len(tally)):
        sums = (weights @ flat).reshape(-1, *counts.shape[1:])
        by_picture = np.stack([weights @ np.where(there, mious, 0.0), weights @ there])
        parts.append({**rates(sums), "picture_miou": accuracy(by_picture[0], by_picture[1])})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draws(pictures: int) -> Iterator[NDArray[np.float64]]:
    """How often each picture is in a resample, BLOCK x N at a time."""
    random = np.random.default_rng(SEED)
    for _ in range(RESAMPLES // BLOCK):
        drawn = random.integers(pictures, size=(BLOCK, pictures)) + pictures * np.arange(BLOCK)[:, None]
        yield np.bincount(drawn.ravel(), minlength=BLOCK * pictures).reshape(BLOCK, pictures).astype(np.float64)


def interval(values: Rates) -> Rates:
    """The middle 95% of R x ... values, 2 x ...: lower and upper end; resamples with NaN stay out, all NaN gives NaN."""
    ends = np.full((2, *values.shape[1:]), np.nan)
    for place in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *place)]
        column = column[~np.isnan(column)]
        if column.size:
            ends[(slice(None), *place)] = np.percentile(column, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return ends


def intervals(tally: Tally, classes: list[ClassInfo]) -> dict[str, Any]:
    """95% intervals as plain JSON values, [low, high]; None for what is absent or on too few pictures."""
    told: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "least_pictures": FEWEST}
    enough = seen_on(tally) >= FEWEST
    for name, values in resampled(tally).items():
        ends = interval(values)
        if values.ndim == 1:
            told[name] = pair(ends) if len(tally) >= FEWEST else None
        else:
            ends[:, ~enough] = np.nan
            told[name] = {entry.name: pair(each) for entry, each in zip(classes, ends.T, strict=True)}
    return told


def seen_on(tally: Tally) -> NDArray[np.int64]:
    """By class, the number of pictures that it occurs on, in the truth or the answer; C."""
    return np.asarray((tally.counts[:, 0, 1:] > 0).any(axis=1).sum(axis=0), np.int64)


def summary(tally: Tally, classes: list[ClassInfo]) -> dict[str, Any]:
    """All metrics of a split as plain JSON values, 0..1, absent is None; with their intervals, and what is absent."""
    figures = rates(tally.counts.sum(axis=0))
    mious = tally.mious()
    truth = tally.counts[:, 0, 1].sum(axis=0)
    return {
        **{name: plain(value) for name, value in figures.items() if np.ndim(value) == 0},
        "picture_miou": plain(float(mean(mious))),
        **{name: by_class(value, classes) for name, value in figures.items() if np.ndim(value) == 1},
        "absent": [entry.name for entry, pixels in zip(classes, truth.tolist(), strict=True) if not pixels],
        "intervals": intervals(tally, classes),
    }


def pair(ends: Rates) -> list[float] | None:
    """An interval as plain JSON values; None where there is none."""
    return None if np.isnan(ends).any() else [round(end, 6) for end in ends.tolist()]
