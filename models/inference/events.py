"""Events of a signal: stretches of one label. Finding them, and their post-processing; numpy only.

Evaluation, the service and the outputs call these functions, so that the events that are measured are those that are served.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX, EventRule

BACKGROUND = 0  # the label of time steps without an event
BLOCK_STEPS = 1 << 18  # time steps that are added at a time
ROUNDING = 1e-6  # time steps: 0.02 s at 50 Hz is one step, also where the product is a little more


class Event(NamedTuple):
    """A stretch of one label, from `start` up to but without `end`, in time steps."""

    label: int
    start: int
    end: int
    confidence: float | None = None  # mean of its time steps, 0..1


class Runs(NamedTuple):
    """All stretches of equal labels of a signal, in order of time; neighbors differ."""

    labels: Labels  # uint8 R
    starts: NDArray[np.int64]  # R, the first time step of each
    lengths: NDArray[np.int64]  # R, in time steps

    @property
    def ends(self) -> NDArray[np.int64]:
        """The time step behind each stretch, R."""
        return self.starts + self.lengths


def find_runs(labels: Labels) -> Runs:
    """The stretches of equal labels. `labels`: uint8 T."""
    if not labels.size:
        return Runs(labels, np.zeros(0, np.int64), np.zeros(0, np.int64))
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1]).astype(np.int64)
    return Runs(labels[starts], starts, np.diff(starts, append=labels.size))


class EventColumns(NamedTuple):
    """The events of a signal in order of time, an array for each field of `Event`: a list of a day's takes a second."""

    labels: Labels  # uint8 E
    starts: NDArray[np.int64]  # E
    ends: NDArray[np.int64]  # E
    confidences: NDArray[np.float64] | None  # E


def find_event_columns(
    labels: Labels, confidence: NDArray[np.float32] | None = None, background: int = BACKGROUND
) -> EventColumns:
    """The events of a signal: stretches of one class that is not `background`.

    `labels`: uint8 T; unlabeled time steps (255) are no event. `confidence`: float32 T, of which each event gets the mean.
    """
    runs = find_runs(labels)
    kept = (runs.labels != background) & (runs.labels != IGNORE_INDEX)
    means = None
    if confidence is not None and labels.size:
        means = (_sum_runs(confidence, runs.starts) / runs.lengths)[kept]
    return EventColumns(runs.labels[kept], runs.starts[kept], runs.ends[kept], means)


def _sum_runs(values: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of the values, T, of each stretch. In blocks: NumPy copies what it adds as float64."""
    sums = np.zeros(len(starts))
    for begin in range(0, len(values), BLOCK_STEPS):
        block = values[begin : begin + BLOCK_STEPS]
        runs = slice(np.searchsorted(starts, begin, "right") - 1, np.searchsorted(starts, begin + len(block)))
        sums[runs] += np.add.reduceat(block, np.maximum(starts[runs] - begin, 0), dtype=np.float64)
    return sums


def find_events(
    labels: Labels, confidence: NDArray[np.float32] | None = None, background: int = BACKGROUND
) -> list[Event]:
    """The events of a signal as a list; see `find_event_columns`."""
    return list_events(find_event_columns(labels, confidence, background))


def list_events(columns: EventColumns) -> list[Event]:
    """The events of the columns, one object each."""
    means = [None] * len(columns.labels) if columns.confidences is None else columns.confidences.tolist()
    return list(map(Event, columns.labels.tolist(), columns.starts.tolist(), columns.ends.tolist(), means))


def apply_postprocess(labels: Labels, rules: Mapping[int, EventRule], rate: float) -> Labels:
    """Fill short gaps within events, then remove short events. `labels`: uint8 T at `rate` Hz; `rules` by label.

    1. A stretch of background between two events of one class, no longer than its `max_gap`, becomes this class.
    2. An event shorter than its class's `min_duration` between two touching events of another class becomes this class.
    3. Every event that is still shorter than its `min_duration` becomes background, also one that a record's end cuts.

    Time steps without data (255) stay as they are. Returns: uint8 T, `labels` itself without rules.
    """
    if not any(rule.min_duration or rule.max_gap for rule in rules.values()) or not labels.size:
        return labels
    max_gap, min_duration = np.zeros(256), np.zeros(256)  # time steps, by label
    for label, rule in rules.items():
        max_gap[label], min_duration[label] = rule.max_gap * rate + ROUNDING, rule.min_duration * rate - ROUNDING

    runs = find_runs(labels)
    enclosing = _enclosing_labels(runs)
    filled = (runs.labels == BACKGROUND) & (enclosing != BACKGROUND) & (runs.lengths <= max_gap[enclosing])
    runs = _relabel(runs, filled, enclosing)

    # By class: of two short classes that alternate, only one can take the place of the other.
    for label in sorted(rules):
        enclosing = _enclosing_labels(runs)
        short = (runs.labels == label) & (runs.lengths < min_duration[label])
        runs = _relabel(runs, short & (enclosing != BACKGROUND), enclosing)

    short = runs.lengths < min_duration[runs.labels]
    runs = _relabel(runs, short, np.full_like(runs.labels, BACKGROUND))
    return np.repeat(runs.labels, runs.lengths)


def apply_postprocess_rows(labels: Labels, rules: Mapping[int, EventRule], rate: float) -> Labels:
    """As `apply_postprocess`, for the labels of N signals, uint8 N x T: one after the other in one, with a gap of missing data."""
    if len(labels) == 1:
        return apply_postprocess(labels[0], rules, rate)[None]
    joined = np.full((len(labels), labels.shape[1] + 1), IGNORE_INDEX, np.uint8)
    joined[:, :-1] = labels
    return apply_postprocess(joined.ravel(), rules, rate).reshape(joined.shape)[:, :-1]


def _enclosing_labels(runs: Runs) -> Labels:
    """The label on both sides of each stretch; background where the sides differ, at the ends, and beside missing data."""
    enclosing = np.full_like(runs.labels, BACKGROUND)
    before, after = runs.labels[:-2], runs.labels[2:]
    enclosing[1:-1] = np.where((before == after) & (before != IGNORE_INDEX), before, BACKGROUND)
    return enclosing


def _relabel(runs: Runs, chosen: NDArray[np.bool_], new: Labels) -> Runs:
    """The stretches with the `chosen` ones as `new` labels, and neighbors that are then equal as one."""
    labels = np.where(chosen, new, runs.labels)
    first = np.concatenate([[True], labels[1:] != labels[:-1]])
    starts = runs.starts[first]
    return Runs(labels[first], starts, np.diff(starts, append=runs.ends[-1]))
