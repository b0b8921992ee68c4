"""Metrics of volumes, by case and class: Dice, surface Dice at a tolerance, HD95 and the error of the volume.

Distances are in mm between surface voxels: those of a class with one of their six neighbors outside of it. As in MONAI, the
surface Dice (Nikolov et al. 2018, arXiv 1809.04430) counts surface voxels that are within the tolerance of the other surface,
and HD95 is the larger one of the 95% quantiles of both directions. A figure that cannot be computed is NaN: of a class that is
in neither mask all, and HD95 also of a class that is in one of them only. Ignored voxels belong to no mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.sample import MM3_PER_ML
from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.confusion import Rates, is_background, nan_mean, ratio, round_or_none
from training.metrics.resampling import percentile_interval, plain_interval, resample_weights
from training.metrics.results import CaseMetric, Rate, VolumeMetrics

DEFAULT_TOLERANCE = 2.0  # mm, of the surface Dice
METRICS: tuple[Literal["dice", "surface_dice", "hd95", "volume_error"], ...] = (
    "dice",
    "surface_dice",
    "hd95",
    "volume_error",
)


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one case; each array has a value for each class, NaN where there is nothing to measure."""

    dice: Rates  # 0..1
    surface_dice: Rates  # 0..1
    hd95: Rates  # mm
    volume_error: Rates  # ml, predicted less true
    volume: Rates  # ml, true

    def to_rows(self) -> list[tuple[int, Rate, Rate, Rate, Rate, float]]:
        """Label, the metrics and the true volume, of each class that occurs."""
        table = np.stack([self.dice, self.surface_dice, self.hd95, self.volume_error, self.volume], axis=1)
        rows = []
        for label, (*rates, volume) in enumerate(table.tolist()):
            if not np.isnan(rates[0]):
                dice, surface, hd95, error = map(round_or_none, rates)
                rows.append((label, dice, surface, hd95, error, round(volume, 6)))
        return rows

    @classmethod
    def from_rows(cls, rows: list[tuple[int, Rate, Rate, Rate, Rate, float]], classes: int) -> "CaseMetrics":
        """The inverse of `to_rows`."""
        table = np.full((5, classes), np.nan)
        table[4] = 0
        for label, *values in rows:
            table[:, label] = [np.nan if value is None else value for value in values]
        return cls(*table)


def measure_case(
    target: Labels,
    prediction: Labels,
    classes: int,
    spacing: Sequence[float],
    tolerance: float = DEFAULT_TOLERANCE,
) -> CaseMetrics:
    """The metrics of one case. Masks are uint8 D x H x W, 255 is ignored in the target; `spacing`: mm along D, H, W."""
    known = target != IGNORE_INDEX
    voxels = np.zeros((3, classes), np.int64)  # hits, ground truth, prediction
    surface_dice, hd95 = np.full(classes, np.nan), np.full(classes, np.nan)
    for label in range(classes):
        in_target, in_prediction = target == label, (prediction == label) & known
        voxels[:, label] = [np.count_nonzero(each) for each in (in_target & in_prediction, in_target, in_prediction)]
        if voxels[1, label] and voxels[2, label]:
            surface_dice[label], hd95[label] = compare_surfaces(in_target, in_prediction, spacing, tolerance)
        elif voxels[1, label] or voxels[2, label]:
            surface_dice[label] = 0.0
    hits, true, predicted = voxels.astype(np.float64)
    occurs = true + predicted > 0
    ml = float(np.prod(spacing)) / MM3_PER_ML
    error = np.where(occurs, (predicted - true) * ml, np.nan)
    return CaseMetrics(ratio(2 * hits, true + predicted), surface_dice, hd95, error, true * ml)


def compare_surfaces(
    one: NDArray[np.bool_], two: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Surface Dice and HD95 in mm of two masks, neither empty; bool D x H x W."""
    from scipy import ndimage  # takes a second to import, and images do not need it

    window = _bounding_box(one | two)  # distances between the surfaces are the same within it
    one, two = one[window], two[window]
    surfaces = [surface_voxels(each) for each in (one, two)]
    distances = [
        ndimage.distance_transform_edt(~other, sampling=spacing)[surface]
        for surface, other in ((surfaces[0], surfaces[1]), (surfaces[1], surfaces[0]))
    ]
    within = sum(int((each <= tolerance).sum()) for each in distances)
    return within / sum(map(len, distances)), float(max(np.percentile(each, 95) for each in distances))


def surface_voxels(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask with one of their six neighbors outside of it; the volume's border counts as outside."""
    from scipy import ndimage

    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    found = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        found.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(found)


@dataclass(frozen=True)
class MetricSummary:
    """One metric over all cases; arrays have a value for each class, NaN where no case has one."""

    mean: Rates
    median: Rates
    interval: Rates  # 2 x C: 95% bootstrap interval of the mean
    foreground: float  # mean over the foreground classes of `mean`, as nnU-Net reports it
    foreground_interval: Rates  # 2
    cases: NDArray[np.int64]  # C: cases that have a value


def summarize(
    cases: Sequence[CaseMetrics], groups: Sequence[str], metric: str, foreground: NDArray[np.bool_]
) -> MetricSummary:
    """Mean, median and bootstrap interval of one of METRICS over the cases. `foreground`: which classes are no background, C.

    `groups`: the patient of each case; patients are resampled, not voxels: those of one case are alike.
    """
    table = np.array([getattr(case, metric) for case in cases], np.float64)
    has_value = ~np.isnan(table)
    means = resampled_means(table, groups)
    overall = nan_mean(np.where(foreground, means, np.nan)) if foreground.any() else np.full(len(means), np.nan)
    mean = ratio(np.where(has_value, table, 0).sum(axis=0), has_value.sum(axis=0))
    median = np.array(
        [np.median(column[~np.isnan(column)]) if (~np.isnan(column)).any() else np.nan for column in table.T]
    )
    return MetricSummary(
        mean,
        median,
        percentile_interval(means),
        float(nan_mean(mean[foreground])) if foreground.any() else float("nan"),
        percentile_interval(overall),
        has_value.sum(axis=0),
    )


def compute_volume_metrics(
    cases: Sequence[CaseMetrics], groups: Sequence[str], classes: list[ClassInfo], tolerance: float
) -> VolumeMetrics:
    """The metrics of all cases as they are in metrics.json. `groups`: the patient of each case."""
    names = [entry.name for entry in classes]
    foreground = ~is_background(names)
    found = {metric: summarize(cases, groups, metric, foreground) for metric in METRICS}
    return VolumeMetrics(
        tolerance_mm=tolerance,
        dice=round_or_none(found["dice"].foreground),
        dice_interval=plain_interval(found["dice"].foreground_interval),
        surface_dice=round_or_none(found["surface_dice"].foreground),
        hd95=round_or_none(found["hd95"].foreground),
        per_class={
            name: {
                metric: CaseMetric(
                    mean=round_or_none(summary.mean[label]),
                    median=round_or_none(summary.median[label]),
                    interval=plain_interval(summary.interval[:, label]),
                    cases=int(summary.cases[label]),
                )
                for metric, summary in found.items()
            }
            for label, name in enumerate(names)
            if foreground[label]
        },
    )


def resampled_means(table: Rates, groups: Sequence[str]) -> Rates:
    """R x C: the means of N x C values, NaN where there are none, when groups of them are sampled with replacement.

    Two tables of the same groups get the same resamples, so that their differences are paired.
    """
    values, has_value = np.nan_to_num(table), ~np.isnan(table)
    _, group_indices = np.unique(list(groups), return_inverse=True)
    return np.concatenate([ratio(weights @ values, weights @ has_value) for weights in resample_weights(group_indices)])
