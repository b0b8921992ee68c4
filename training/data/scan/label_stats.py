"""Maps the values of a scanned mask to labels. It works on the distinct values, not on pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import IGNORE_INDEX
from training.data.mask_decoding import MaskEncoding
from training.data.scan.scanner import SampleStats

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class LabelStats:
    """The pixel counts of one training mask, by label."""

    size: tuple[int, int]  # (height, width), upright
    labels: NDArray[np.int64]  # K: the labels that occur, ascending; 255 is ignored
    quarters: NDArray[np.int64]  # K x 2 x 2: pixels in the (top, bottom) x (left, right) quarter
    edges: NDArray[np.int64]  # K: pixels with one of the 4 neighbors of another label


@dataclass(frozen=True)
class ValueLabels:
    """The labels of a mask's values."""

    labels: IntArray  # K, by value; -1 for a value without a label
    invalid: tuple[int, ...]  # indices of the values that are neither a class nor ignored
    present_labels: IntArray  # the countable labels, 0 to 255, unique, ascending
    group_index: IntArray  # K: index of each value in `present_labels`; len(present_labels) if it cannot be counted


class LabelLookup:
    """Maps values to labels. Most masks of a data set share a few sets of values, so each set is looked up once."""

    def __init__(self, encoding: MaskEncoding, num_classes: int) -> None:
        self._encoding, self._num_classes = encoding, num_classes
        self._cache: dict[tuple[str, bytes, bytes], ValueLabels] = {}

    def __call__(self, stats: SampleStats) -> ValueLabels:
        """The labels of a mask's values."""
        key = (stats.kind, stats.values.tobytes(), stats.palette_colors.tobytes())
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) > 10_000:  # in noisy masks every mask has its own set of values
                self._cache.clear()
            found = self._cache[key] = self._look_up(stats)
        return found

    def _look_up(self, stats: SampleStats) -> ValueLabels:
        colors = stats.palette_colors.tolist() if len(stats.palette_colors) else [None] * len(stats.values)
        decoded = [
            self._encoding.decode_value(value, stats.kind, color)
            for value, color in zip(stats.values.tolist(), colors, strict=True)
        ]
        labels = np.array([-1 if label is None else label for label in decoded], np.int64)
        invalid = np.flatnonzero((labels < 0) | ((labels >= self._num_classes) & (labels != IGNORE_INDEX)))
        countable = (labels >= 0) & (labels <= IGNORE_INDEX)
        present = np.unique(labels[countable])
        group = np.where(countable, np.searchsorted(present, labels), len(present))
        return ValueLabels(labels, tuple(invalid.tolist()), present, group)


def compute_label_stats(stats: SampleStats, value_labels: ValueLabels) -> LabelStats:
    """Sum a mask's counts by label; values that cannot be counted are left out."""
    quarters, edges = stats.quarters, stats.edges
    count = len(value_labels.present_labels)
    group = value_labels.group_index
    if count != len(stats.values) or np.any(group[1:] < group[:-1]):
        quarters = np.zeros((count + 1, 2, 2), np.int64)
        edges = np.zeros(count + 1, np.int64)
        np.add.at(quarters, group, stats.quarters)
        np.add.at(edges, group, stats.edges)
        quarters, edges = quarters[:-1], edges[:-1]
    return LabelStats(stats.mask_size or (0, 0), value_labels.present_labels, quarters, edges)
