"""From the values that a mask holds to labels, by the data set's meaning: the values that occur, not the pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import VOID
from training.data.mask_decoding import Meaning
from training.data.scan.scanner import Facts
from training.lint.findings import Measure

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """The labels of a mask's values."""

    labels: Ints  # K, by value; -1 where a value has no meaning
    wrong: tuple[int, ...]  # places of the values that are no class and not void
    kept: Ints  # the labels that can be counted, 0..255, each once, ascending
    group: Ints  # of each value its place in `kept`; len(kept) where it cannot be counted


class Labeller:
    """Labels values. Most masks of a data set hold one of a few sets of values, so that each set is looked up once."""

    def __init__(self, meaning: Meaning, classes: int) -> None:
        self._meaning, self._classes = meaning, classes
        self._known: dict[tuple[str, bytes, bytes], Labelled] = {}

    def __call__(self, facts: Facts) -> Labelled:
        """What a mask's values mean."""
        key = (facts.kind, facts.values.tobytes(), facts.colours.tobytes())
        known = self._known.get(key)
        if known is None:
            if len(self._known) > 10_000:  # noise has a set of values a mask
                self._known.clear()
            known = self._known[key] = self._look_up(facts)
        return known

    def _look_up(self, facts: Facts) -> Labelled:
        colours = facts.colours.tolist() if len(facts.colours) else [None] * len(facts.values)
        told = [
            self._meaning.label(value, facts.kind, colour)
            for value, colour in zip(facts.values.tolist(), colours, strict=True)
        ]
        labels = np.array([-1 if label is None else label for label in told], np.int64)
        wrong = np.flatnonzero((labels < 0) | ((labels >= self._classes) & (labels != VOID)))
        counted = (labels >= 0) & (labels <= VOID)
        kept = np.unique(labels[counted])
        group = np.where(counted, np.searchsorted(kept, labels), len(kept))
        return Labelled(labels, tuple(wrong.tolist()), kept, group)


def measure(facts: Facts, labelled: Labelled) -> Measure:
    """A mask's figures by label; what cannot be counted stays out."""
    quarters, edges = facts.quarters, facts.edges
    if len(labelled.kept) != len(facts.values) or np.any(labelled.group[1:] < labelled.group[:-1]):
        quarters = np.zeros((len(labelled.kept) + 1, 2, 2), np.int64)
        edges = np.zeros(len(labelled.kept) + 1, np.int64)
        np.add.at(quarters, labelled.group, facts.quarters)
        np.add.at(edges, labelled.group, facts.edges)
        quarters, edges = quarters[:-1], edges[:-1]
    return Measure(facts.mask_size or (0, 0), labelled.kept, quarters, edges)
