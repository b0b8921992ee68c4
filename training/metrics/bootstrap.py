"""Pixel counts of every image of an evaluation, and the bootstrap intervals of the metrics (`resampling.py`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import ClassInfo
from training.metrics.calibration import NUM_BINS, expected_calibration_error
from training.metrics.confusion import Counts, Rates, as_json, iou, metrics_from_counts, nan_mean, ratio, round_or_none
from training.metrics.object_size import SIZE_NAMES
from training.metrics.resampling import (
    CONFIDENCE_LEVEL,
    NUM_RESAMPLES,
    SEED,
    percentile_interval,
    plain_interval,
    resample_weights,
)
from training.metrics.results import ImageResult, Intervals, SplitMetrics, ThresholdPoint
from training.metrics.thresholds import NUM_SCORE_BINS, THRESHOLDS, average_precision, threshold_rates
from training.metrics.volumes import CaseMetrics

# Resamples of fewer images prove nothing: five that all lean one way do so by chance once in 16.
MIN_IMAGES = 6


@dataclass(frozen=True)
class ImageCounts:
    """What is kept of an image, or of a record."""

    name: str
    counts: NDArray[np.int32]  # 2 x 3 x C pixels: whole masks, boundaries; hits, ground truth, prediction
    digest: str  # of the pixels of image and ground truth; "" if unknown
    bins: NDArray[np.float64]  # 3 x NUM_BINS, as `reliability_bins`
    sizes: NDArray[np.int64]  # 2 x bins pixels, as `size_counts`
    events: NDArray[np.float64]  # of a signal: (C - 1) x 2 x 5, as `count_events`
    group: str  # images of one group (patient) are resampled together; "" for an image of its own
    case: CaseMetrics | None = None  # of a volume
    scores: NDArray[np.int64] | None = None  # of two classes: 2 x NUM_SCORE_BINS pixels, as `score_counts`

    @property
    def miou(self) -> float:
        """Over the classes that occur in it; NaN for an image that is ignored throughout."""
        hits, target, prediction = self.counts[0].astype(np.int64)
        return float(nan_mean(iou(hits, target, prediction)))

    def to_row(self) -> ImageResult:
        """The counts as they are in metrics.json, classes that do not occur left out."""
        flat = self.counts.reshape(6, -1)
        occurring = np.flatnonzero(flat.any(axis=0))
        return ImageResult(
            name=self.name,
            miou=round_or_none(self.miou),
            counts=np.column_stack([occurring, flat[:, occurring].T]).tolist(),
            digest=self.digest,
            reliability=_occupied_bins(self.bins.round(3)),
            sizes=_occupied_bins(self.sizes),
            group=self.group,
            events=[
                (label, *(_point_counts(point) for point in points))
                for label, points in enumerate(self.events, start=1)
                if points.any()
            ],
            volumes=self.case.to_rows() if self.case else [],
            scores=[] if self.scores is None else _occupied_bins(self.scores),
        )


class PerImageCounts:
    """The counts of each image of a split.

    32 bits hold any image that maskserve reads (10^8 pixels); sums are taken in 64.
    """

    def __init__(self, classes: int) -> None:
        self.num_classes = classes
        self.images: list[ImageCounts] = []

    def add(
        self,
        name: str,
        whole: NDArray[np.int64],
        edges: NDArray[np.int64],
        digest: str = "",
        bins: NDArray[np.float64] | None = None,
        sizes: NDArray[np.int64] | None = None,
        events: NDArray[np.float64] | None = None,
        group: str = "",
        case: CaseMetrics | None = None,
        scores: NDArray[np.int64] | None = None,
    ) -> None:
        """Add an image's counts, each 3 x C pixels: hits, ground truth and prediction of its masks and their boundaries.

        `bins`, `sizes`, `events`, `case` and `scores`: its `reliability_bins`, `size_counts`, `count_events`, `measure_case` and
        `score_counts`; None if they were not measured.
        """
        self.images.append(
            ImageCounts(
                name,
                np.stack([whole, edges]).astype(np.int32),
                digest,
                np.zeros((3, NUM_BINS)) if bins is None else bins,
                np.zeros((2, len(SIZE_NAMES)), np.int64) if sizes is None else sizes,
                np.zeros((self.num_classes - 1, 2, 5)) if events is None else events,
                group,
                case,
                scores,
            )
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """The images' names."""
        return [image.name for image in self.images]

    @property
    def digests(self) -> list[str]:
        """Of the pixels of image and ground truth, by image; "" if unknown."""
        return [image.digest for image in self.images]

    @property
    def counts(self) -> NDArray[np.int64]:
        """N x 2 x 3 x C pixels."""
        return np.array([image.counts for image in self.images], np.int64).reshape(len(self), 2, 3, self.num_classes)

    @property
    def bins(self) -> NDArray[np.float64]:
        """N x 3 x NUM_BINS, as `reliability_bins`."""
        return np.array([image.bins for image in self.images], np.float64).reshape(len(self), 3, NUM_BINS)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """N x 2 x bins pixels, as `size_counts`."""
        return np.array([image.sizes for image in self.images], np.int64).reshape(len(self), 2, len(SIZE_NAMES))

    @property
    def scores(self) -> NDArray[np.int64]:
        """N x 2 x NUM_SCORE_BINS pixels, as `score_counts`; zeros where they were not measured."""
        none = np.zeros((2, NUM_SCORE_BINS), np.int64)
        found = [none if image.scores is None else image.scores for image in self.images]
        return np.array(found, np.int64).reshape(len(self), 2, NUM_SCORE_BINS)

    @property
    def events(self) -> NDArray[np.float64]:
        """N x (C - 1) x 2 x 5, as `count_events`."""
        return np.array([image.events for image in self.images]).reshape(len(self), self.num_classes - 1, 2, 5)

    @property
    def groups(self) -> list[str]:
        """The group of each image, or the image itself."""
        return [image.group or image.name for image in self.images]

    @property
    def group_indices(self) -> NDArray[np.int64]:
        """The number of each image's group, from 0 in the order of the images; N."""
        numbers: dict[tuple[str, int], int] = {}
        keys = ((image.group, 0) if image.group else ("", index) for index, image in enumerate(self.images))
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

    def count_groups(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The number of groups with a chosen image. `chosen`: N x ...; returns ..."""
        groups = self.group_indices
        found = np.zeros((count_all_groups(self), *chosen.shape[1:]), bool)
        np.logical_or.at(found, groups, chosen)
        return np.asarray(found.sum(axis=0), np.int64)

    @property
    def false_positives(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """On which images each class is predicted though not in the ground truth, and on which it is not in the latter; N x C.

        An image that is ignored throughout says nothing about any class.
        """
        _, target, prediction = np.moveaxis(self.counts[:, 0], 1, 0)
        without = (target == 0) & (target.sum(axis=1, keepdims=True) > 0)
        return without & (prediction > 0), without

    def mious(self) -> Rates:
        """The mIoU of each image over the classes that occur in it, N; NaN for an image that is ignored throughout."""
        return np.array([image.miou for image in self.images])

    def to_rows(self) -> list[ImageResult]:
        """The counts as they are in metrics.json."""
        return [image.to_row() for image in self.images]

    @classmethod
    def from_rows(cls, rows: list[ImageResult], classes: int) -> "PerImageCounts":
        """The inverse of `to_rows`. Raises: IndexError for a label that is no class."""
        tally = cls(classes)
        for row in rows:
            counts = np.zeros((6, classes), np.int64)
            for label, *six in row.counts:
                counts[:, label] = six
            whole, edges = counts.reshape(2, 3, classes)
            bins, sizes = np.zeros((3, NUM_BINS)), np.zeros((2, len(SIZE_NAMES)), np.int64)
            for index, *values in row.reliability:
                bins[:, index] = values
            for index, *pixels in row.sizes:
                sizes[:, index] = pixels
            events = np.zeros((classes - 1, 2, 5))
            for label, *points in row.events:
                events[label - 1] = points
            case = CaseMetrics.from_rows(row.volumes, classes) if row.volumes else None
            scores = np.zeros((2, NUM_SCORE_BINS), np.int64)
            for index, *pixels in row.scores:
                scores[:, index] = pixels
            tally.add(row.name, whole, edges, row.digest, bins, sizes, events, row.group, case, scores)
        return tally

    def reorder(self, names: list[str]) -> "PerImageCounts":
        """The same images in the order of `names`, each once."""
        by_name = {image.name: image for image in self.images}
        tally = PerImageCounts(self.num_classes)
        tally.images = [by_name[name] for name in names]
        return tally


def _point_counts(counts: NDArray[np.float64]) -> tuple[int, int, int, float, float]:
    """The counts of onsets or offsets, 5, as plain values."""
    matched, missed, false, error, squared = counts.tolist()
    return int(matched), int(missed), int(false), round(error, 3), round(squared, 3)


def _occupied_bins(table: NDArray[Any]) -> list[Any]:
    """The columns of a table that hold pixels, each behind its index."""
    return [(int(index), *table[:, index].tolist()) for index in np.flatnonzero(table.any(axis=0))]


def metrics_with_boundaries(counts: Counts, names: list[str]) -> dict[str, Rates]:
    """The metrics of counts ... x 2 x 3 x C of the classes `names`: arrays ... of the whole, and ... x C by class."""
    boundary_ious = iou(*np.moveaxis(counts[..., 1, :, :], -2, 0))
    return {
        **metrics_from_counts(counts[..., 0, :, :], names),
        "boundary_iou": nan_mean(boundary_ious),
        "per_class_boundary_iou": boundary_ious,
    }


def bootstrap_metrics(tally: PerImageCounts, names: list[str]) -> dict[str, Rates]:
    """The metrics of every resample: arrays R, and R x C by class (`recall_by_size`: by size).

    Two tallies of the same images in the same order get the same resamples, so that their differences are paired.
    """
    blocks = weighted_metrics(tally, names, resample_weights(tally.group_indices))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def weighted_metrics(
    tally: PerImageCounts, names: list[str], weights_blocks: Iterable[NDArray[np.float64]]
) -> list[dict[str, Rates]]:
    """The metrics when each image counts as often as its weight; `weights_blocks` hold R x N.

    `mean_image_miou` is the mean of the images' mIoU.
    """
    counts, mious = tally.counts.astype(np.float64), tally.mious()  # float64 is exact up to 2^53 pixels, and has a BLAS
    flat, has_miou = counts.reshape(len(tally), -1), ~np.isnan(mious)
    bins, sizes = tally.bins.reshape(len(tally), -1), tally.sizes.reshape(len(tally), -1).astype(np.float64)
    scores = tally.scores.reshape(len(tally), -1).astype(np.float64)
    false_positives, without = tally.false_positives
    blocks = []
    for weights in weights_blocks:
        sums = (weights @ flat).reshape(-1, *counts.shape[1:])
        pixels, wrong = np.moveaxis((weights @ sizes).reshape(-1, 2, len(SIZE_NAMES)), 1, 0)
        blocks.append(
            {
                **metrics_with_boundaries(sums, names),
                "mean_image_miou": ratio(weights @ np.where(has_miou, mious, 0.0), weights @ has_miou),
                "per_class_false_positive_rate": ratio(weights @ false_positives, weights @ without),
                "recall_by_size": ratio(pixels - wrong, pixels),
                "ece": expected_calibration_error((weights @ bins).reshape(-1, 3, NUM_BINS))[0],
                "average_precision": average_precision((weights @ scores).reshape(-1, 2, NUM_SCORE_BINS)),
            }
        )
    return blocks


def confidence_intervals(tally: PerImageCounts, classes: list[ClassInfo]) -> Intervals:
    """95% intervals of all metrics; None for what is absent or on too few images."""
    by_metric: dict[str, Any] = {}
    enough = count_all_groups(tally) >= MIN_IMAGES
    for name, values in bootstrap_metrics(tally, [entry.name for entry in classes]).items():
        ends = percentile_interval(values)
        if values.ndim == 1:
            by_metric[name] = plain_interval(ends) if enough else None
        else:
            ends[:, images_per_value(tally, name) < MIN_IMAGES] = np.nan
            keys = value_names(name, [entry.name for entry in classes])
            by_metric[name] = {key: plain_interval(each) for key, each in zip(keys, ends.T, strict=True)}
    return Intervals(level=CONFIDENCE_LEVEL, resamples=NUM_RESAMPLES, seed=SEED, min_images=MIN_IMAGES, **by_metric)


def count_all_groups(tally: PerImageCounts) -> int:
    """The number of groups of images; without groups that of the images."""
    return len(set(tally.group_indices.tolist()))


def images_per_class(tally: PerImageCounts) -> NDArray[np.int64]:
    """The number of images (or groups of them) on which each class occurs, in the ground truth or the prediction; C."""
    occurs = np.asarray((tally.counts[:, 0, 1:] > 0).any(axis=1), bool)
    return tally.count_groups(occurs)


def images_per_value(tally: PerImageCounts, metric: str) -> NDArray[np.int64]:
    """The number of images (or groups of them) that each value of a metric by class (or by size) rests on."""
    if metric == "recall_by_size":
        return tally.count_groups(tally.sizes[:, 0] > 0)
    if metric == "per_class_false_positive_rate":
        return tally.count_groups(tally.false_positives[1])
    return images_per_class(tally)


def value_names(metric: str, classes: list[str]) -> list[str]:
    """The names of the values of a metric: the classes, or the sizes of `recall_by_size`."""
    return list(SIZE_NAMES) if metric == "recall_by_size" else classes


def compute_metrics(tally: PerImageCounts, classes: list[ClassInfo]) -> SplitMetrics:
    """All metrics of a split, 0..1 or None where absent, with their intervals."""
    names = [entry.name for entry in classes]
    figures = {
        name: values[0] for name, values in weighted_metrics(tally, names, [np.ones((1, len(tally)))])[0].items()
    }
    by_size = dict(zip(SIZE_NAMES, map(round_or_none, figures.pop("recall_by_size").tolist()), strict=True))
    target_pixels = tally.counts[:, 0, 1].sum(axis=0).tolist()
    return SplitMetrics(
        recall_by_size=by_size,
        threshold_curve=threshold_curve(tally),
        absent=[entry.name for entry, pixels in zip(classes, target_pixels, strict=True) if not pixels],
        intervals=confidence_intervals(tally, classes),
        **as_json(figures, classes),
    )


def threshold_curve(tally: PerImageCounts) -> list[ThresholdPoint]:
    """The whole split at each threshold; empty if there are not two classes with a confidence."""
    counts = tally.scores.sum(axis=0).astype(np.float64)
    if not counts.any():
        return []
    rates = ([round_or_none(value) for value in values.tolist()] for values in threshold_rates(counts))
    return [
        ThresholdPoint(threshold=threshold, precision=precision, recall=recall, f1=f1)
        for threshold, precision, recall, f1 in zip(THRESHOLDS, *rates, strict=True)
    ]
