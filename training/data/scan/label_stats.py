"""From the values that a mask holds to labels, by the data set's meaning: the values that occur, not the pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import IGNORE_INDEX
from training.data.mask_decoding import MaskEncoding
from training.data.scan.scanner import SampleStats

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class LabelStats:
    """What one training image holds, by label."""

    size: tuple[int, int]  # (height, width), upright
    labels: NDArray[np.int64]  # K: those that occur, ascending; 255 is void
    quarters: NDArray[np.int64]  # K x 2 x 2: pixels in the (top, bottom) x (left, right) quarter
    edges: NDArray[np.int64]  # K: pixels with one of the 4 neighbours of another label or void


@dataclass(frozen=True)
class ValueLabels:
    """The labels of a mask's values."""

    labels: IntArray  # K, by value; -1 where a value has no meaning
    invalid: tuple[int, ...]  # places of the values that are no class and not void
    present_labels: IntArray  # the labels that can be counted, 0..255, each once, ascending
    group_index: IntArray  # of each value its place in `kept`; len(kept) where it cannot be counted


class LabelLookup:
    """Labels values. Most masks of a data set hold one of a few sets of values, so that each set is looked up once."""

    def __init__(self, meaning: MaskEncoding, classes: int) -> None:
        self._mask_encoding, self._classes = meaning, classes
        self._cache: dict[tuple[str, bytes, bytes], ValueLabels] = {}

    def __call__(self, facts: SampleStats) -> ValueLabels:
        """What a mask's values mean."""
        key = (facts.kind, facts.values.tobytes(), facts.palette_colors.tobytes())
        known = self._cache.get(key)
        if known is None:
            if len(self._cache) > 10_000:  # noise has a set of values a mask
                self._cache.clear()
            known = self._cache[key] = self._look_up(facts)
        return known

    def _look_up(self, facts: SampleStats) -> ValueLabels:
        colours = facts.palette_colors.tolist() if len(facts.palette_colors) else [None] * len(facts.values)
        told = [
            self._mask_encoding.decode_value(value, facts.kind, colour)
            for value, colour in zip(facts.values.tolist(), colours, strict=True)
        ]
        labels = np.array([-1 if label is None else label for label in told], np.int64)
        wrong = np.flatnonzero((labels < 0) | ((labels >= self._classes) & (labels != IGNORE_INDEX)))
        counted = (labels >= 0) & (labels <= IGNORE_INDEX)
        kept = np.unique(labels[counted])
        group = np.where(counted, np.searchsorted(kept, labels), len(kept))
        return ValueLabels(labels, tuple(wrong.tolist()), kept, group)


def compute_label_stats(facts: SampleStats, labelled: ValueLabels) -> LabelStats:
    """A mask's figures by label; what cannot be counted stays out."""
    quarters, edges = facts.quarters, facts.edges
    if len(labelled.present_labels) != len(facts.values) or np.any(
        labelled.group_index[1:] < labelled.group_index[:-1]
    ):
        quarters = np.zeros((len(labelled.present_labels) + 1, 2, 2), np.int64)
        edges = np.zeros(len(labelled.present_labels) + 1, np.int64)
        np.add.at(quarters, labelled.group_index, facts.quarters)
        np.add.at(edges, labelled.group_index, facts.edges)
        quarters, edges = quarters[:-1], edges[:-1]
    return LabelStats(facts.mask_size or (0, 0), labelled.present_labels, quarters, edges)
