"""Whether each lead of a recording is a sample of its own, or all leads together are one: the setting `leads`."""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.errors import MaskserveError
from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX, InputRule
from training.data.dataset import Pair, SegmentationDataset
from training.data.signals import read_signal
from training.data.tracks import Track, TrackReader


@dataclass(frozen=True, eq=False)
class MergedTrackReader(TrackReader):
    """The labels of a recording from those of its leads: of each time step the most frequent one, without unlabelled leads."""

    leads: dict[Path, tuple[Pair, ...]] | None = None  # by recording

    def track(self, pair: Pair) -> Track:
        """The events of all leads. Raises: DataError."""
        tracks = [super(MergedTrackReader, self).track(each) for each in self._pairs(pair)]
        return replace(tracks[0], events=tuple(event for track in tracks for event in track.events))

    def labels(self, pair: Pair, length: int, rate: float | None) -> Labels:
        """uint8 T. Raises: DataError, which names the file."""
        found = np.stack([super(MergedTrackReader, self).labels(each, length, rate) for each in self._pairs(pair)])
        values = [value for value in np.unique(found).tolist() if value != IGNORE_INDEX]
        votes = np.stack([(found == value).sum(axis=0) for value in values]) if values else np.zeros((1, length), int)
        chosen = np.array(values or [IGNORE_INDEX], np.uint8)[votes.argmax(axis=0)]
        return np.where(votes.max(axis=0) > 0, chosen, np.uint8(IGNORE_INDEX))

    def _pairs(self, pair: Pair) -> tuple[Pair, ...]:
        return (self.leads or {}).get(pair.image, (pair,))


def arrange_leads(dataset: SegmentationDataset, leads: str) -> SegmentationDataset:
    """The data set with a pair for each lead (`each`), or one for each recording (`together`); `auto` leaves it as it is.

    A recording whose leads have labels each gets one track when they are put together: the most frequent label.
    """
    if dataset.axes != "T" or leads == "auto":
        return dataset
    return _separate(dataset) if leads == "each" else _join(dataset)


def leads_for(rule: InputRule) -> str:
    """The arrangement that a network takes: `each` if it has the one channel `lead`."""
    return "each" if rule.channels == ("lead",) else "together"


def _separate(dataset: SegmentationDataset) -> SegmentationDataset:
    pairs = []
    for pair in dataset.pairs:
        names: tuple[str, ...] = ()
        if not pair.lead:
            try:
                names = read_signal(pair).channels
            except MaskserveError:  # the lint reports it
                names = ()
        group = pair.group or pair.name
        pairs += [replace(pair, name=f"{pair.name}/{name}", lead=name, group=group) for name in names] or [pair]
    return replace(dataset, pairs=pairs)


def _join(dataset: SegmentationDataset) -> SegmentationDataset:
    by_file: dict[Path, list[Pair]] = defaultdict(list)
    for pair in dataset.pairs:
        by_file[pair.image].append(pair)
    if not any(pair.lead for pair in dataset.pairs) or not isinstance(dataset.mask_reader, TrackReader):
        return dataset
    joined = [
        replace(each[0], name=each[0].name.removesuffix(f"/{each[0].lead}") if each[0].lead else each[0].name, lead="")
        for each in by_file.values()
    ]
    reader = MergedTrackReader(
        dataset.mask_reader.label_by_name,
        dataset.mask_reader.cache_key,
        {path: tuple(each) for path, each in by_file.items()},
    )
    return replace(dataset, pairs=joined, mask_reader=reader)
