"""How well the onsets and offsets of events are found, and how far they are off.

As ECG delineation is judged (ANSI/AAMI EC57; Moskalenko et al. 2019, arXiv 2001.04689; LUDB, Kalyakulina et al. 2020): an
onset or offset of a class is found if the prediction has one of the same class within a tolerance, 150 ms by default. Each is
matched with one at most, so that as many as possible are matched, with the least total error. Sensitivity is the fraction of
the annotated ones that are found, PPV the fraction of the predicted ones that are right, and F1 their harmonic mean; the
error is the predicted time minus the annotated one, of those that are matched.

What is not annotated is not judged. A predicted event that lies partly or wholly in an unlabeled stretch may match, but is
never wrong. Where a stretch of annotations begins or ends with an event, that is taken as its onset or offset: the annotations
of LUDB begin with the onset of the first wave that was annotated, and end with the offset of the last. An event that the
record itself cuts off has no onset (or offset) there.
"""

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.inference.events import ROUNDING, find_runs
from models.spec import IGNORE_INDEX, ClassInfo
from training.metrics.bootstrap import (
    MIN_IMAGES,
    PerImageCounts,
    count_all_groups,
)
from training.metrics.confusion import Rates, nan_mean, ratio, round_or_none
from training.metrics.resampling import percentile_interval, plain_interval, resample_weights
from training.metrics.results import EventMetrics, Interval, Point, PointMetrics

DEFAULT_TOLERANCE_MS = 150.0
POINTS: tuple[Point, Point] = ("onset", "offset")
# What is counted of each: matched, annotated but not found, predicted but not annotated; and the sums of the errors of the
# matched ones, ms, and of their squares.
MATCHED, MISSED, FALSE, ERROR, SQUARED = NUM_COUNTS = range(5)
EventCounts = NDArray[np.float64]  # (C - 1) x 2 x 5: by class without the background, by POINTS, by the above


def count_events(
    target: Labels, prediction: Labels, rate: float, classes: int, tolerance_ms: float = DEFAULT_TOLERANCE_MS
) -> EventCounts:
    """Match the events of a record. `target`, `prediction`: uint8 T at `rate` Hz; `classes` with the background, which is 0."""
    counts = np.zeros((classes - 1, len(POINTS), len(NUM_COUNTS)))
    tolerance, ms = tolerance_ms * rate / 1000 + ROUNDING, 1000 / rate
    annotated, predicted = find_runs(target), find_runs(prediction)
    unlabeled_before = np.concatenate([[0], np.cumsum(target == IGNORE_INDEX)])
    judged = unlabeled_before[predicted.ends] == unlabeled_before[predicted.starts]
    for label in range(1, classes):
        true, found = annotated.labels == label, predicted.labels == label
        for point, edge in enumerate((0, target.size)):
            true_times = (annotated.ends if point else annotated.starts)[true]
            found_times = (predicted.ends if point else predicted.starts)[found]
            true_counts, found_counts = true_times != edge, (found_times != edge) & judged[found]
            partner = match_points(true_times, found_times, tolerance)
            is_matched = true_counts & (partner >= 0)
            errors = (found_times[partner[is_matched]] - true_times[is_matched]) * ms
            found_counts[partner[partner >= 0]] = False
            counts[label - 1, point] = (
                is_matched.sum(), (true_counts & (partner < 0)).sum(), found_counts.sum(), errors.sum(), (errors**2).sum(),
            )  # fmt: skip
    return counts


def match_points(true: NDArray[np.int64], found: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Match points in time one to one: as many pairs as possible that are at most `tolerance` apart, with the least total error.

    `true`, `found`: ascending, N and M. Returns: for each true point the index of the found one, or -1; N.
    """
    partner = np.full(len(true), -1)
    times = np.sort(np.concatenate([true, found]))
    # Points on both sides of a wide gap have nothing to do with each other.
    borders = times[1:][np.diff(times) > tolerance]
    first_true, first_found = (np.concatenate([[0], np.searchsorted(side, borders)]) for side in (true, found))
    num_true, num_found = np.diff(first_true, append=len(true)), np.diff(first_found, append=len(found))
    single = (num_true == 1) & (num_found == 1)
    partner[first_true[single]] = first_found[single]
    for index in np.flatnonzero(~single & (num_true > 0) & (num_found > 0)):
        own = slice(first_true[index], first_true[index] + num_true[index])
        candidates = found[first_found[index] : first_found[index] + num_found[index]]
        matched = _match_cluster(true[own], candidates, tolerance)
        partner[own] = np.where(matched >= 0, matched + first_found[index], -1)
    return partner


def _match_cluster(true: NDArray[np.int64], found: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """As `match_points`, by dynamic programming: among the best matchings is one whose pairs do not cross.

    `scores[i][k]` is the best score of the true points up to i with the found ones before `lows[i] + k`.
    """
    lows, highs = np.searchsorted(found, true - tolerance), np.searchsorted(found, true + tolerance, side="right")
    reward = len(true) * int(np.ceil(tolerance)) + 1.0  # of a pair: more than all errors together
    scores: list[Rates] = []
    before, before_low = np.zeros(1), 0
    for point, low, high in zip(true, lows, highs, strict=True):
        skipped = before[np.minimum(np.arange(low, high + 1) - before_low, len(before) - 1)]
        score = skipped.copy()
        score[1:] = np.maximum(skipped[1:], skipped[:-1] + reward - np.abs(found[low:high] - point))
        before, before_low = np.maximum.accumulate(score), low
        scores.append(before)

    partner = np.full(len(true), -1)
    used = len(found)
    for index in range(len(true) - 1, -1, -1):
        low, score = lows[index], scores[index]
        place = min(used, highs[index]) - low
        while place > 0 and score[place] == score[place - 1]:
            place -= 1
        used = low + place
        without = scores[index - 1][min(used, highs[index - 1]) - lows[index - 1]] if index else 0.0
        if score[place] > without:
            used -= 1
            partner[index] = used
    return partner


def event_rates(counts: NDArray[np.float64]) -> dict[str, Rates]:
    """The metrics of sums of counts, ... x (C - 1) x 2 x 5: by class and point ... x (C - 1) x 2, `event_f1` ...; NaN if absent."""
    matched, missed, false, error, squared = np.moveaxis(counts, -1, 0)
    f1 = ratio(2 * matched, 2 * matched + missed + false)
    mean = ratio(error, matched)
    variance = ratio(squared, matched) - mean**2
    return {
        "sensitivity": ratio(matched, matched + missed),
        "ppv": ratio(matched, matched + false),
        "f1": f1,
        "mean_ms": mean,
        "sd_ms": np.sqrt(np.maximum(variance, 0.0)),
        "event_f1": nan_mean(f1.reshape(*f1.shape[:-2], -1)),
    }


def bootstrap_events(tally: PerImageCounts) -> dict[str, Rates]:
    """The metrics of every resample of the records, or of their groups (patients): as `event_rates`, R x ..."""
    events = tally.events
    flat = events.reshape(len(tally), -1)
    blocks = [
        event_rates((weights @ flat).reshape(-1, *events.shape[1:]))
        for weights in resample_weights(tally.group_indices)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def compute_event_metrics(tally: PerImageCounts, classes: list[ClassInfo], tolerance_ms: float) -> EventMetrics:
    """The metrics of the records' events with their intervals. `classes`: all; the first is the background."""
    sums = tally.events.sum(axis=0)
    rates = event_rates(sums)
    ends = {name: percentile_interval(values) for name, values in bootstrap_events(tally).items()}
    occurs = np.asarray(tally.events[..., : FALSE + 1].any(axis=-1), bool)  # N x (C - 1) x 2
    by_class: dict[str, dict[Point, PointMetrics]] = {}
    for label, entry in enumerate(classes[1:]):
        by_class[entry.name] = {}
        for point, point_name in enumerate(POINTS):
            enough = tally.count_groups(occurs[:, label, point]) >= MIN_IMAGES
            matched, missed, false = sums[label, point, : FALSE + 1].astype(int).tolist()
            figures = {name: round_or_none(float(rates[name][label, point])) for name in PointMetrics.RATES}
            intervals: dict[str, Interval] = {
                f"{name}_interval": plain_interval(ends[name][:, label, point]) if enough else None
                for name in PointMetrics.RATES
            }
            by_class[entry.name][point_name] = PointMetrics(
                matched=matched, missed=missed, false=false, **figures, **intervals
            )
    enough_groups = count_all_groups(tally) >= MIN_IMAGES
    return EventMetrics(
        tolerance_ms=tolerance_ms,
        event_f1=round_or_none(float(rates["event_f1"])),
        event_f1_interval=plain_interval(ends["event_f1"]) if enough_groups else None,
        per_class=by_class,
    )
