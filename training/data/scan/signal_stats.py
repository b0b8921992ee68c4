"""Reads a recording and its labels once and computes statistics that replace them."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.cgroup_limits import usable_cores
from models.imaging.decode import Labels
from models.readers.prepare import MAX_MAGNITUDE
from models.sample import Sample
from models.spec import IGNORE_INDEX
from training.data.dataset import Pair, SegmentationDataset
from training.data.scan.pixel_stats import pixel_digest
from training.data.scan.sample_stats import error_message
from training.data.signals import read_signal, select_lead
from training.data.tracks import Track, TrackReader

FLAT_SECONDS, FLAT_STEPS = (
    1.0,
    200,
)  # of equal values, in a lead that is not flat by nature; steps where the rate is unknown
CLIPPED_RUN, CLIPPED_FRACTION = 3, 0.005  # equal values at an extreme; fraction of the recording in such runs


@dataclass(frozen=True)
class LeadStats:
    """What is wrong with one channel; fractions of its time steps, 0 to 1."""

    name: str
    unit: str
    deviation: float  # standard deviation of what was measured
    missing: float = 0.0  # NaN, infinite or beyond 1e20
    flat: float = 0.0  # in runs of equal values of a second or more; 1 for a constant lead
    clipped: float = 0.0  # in runs of three or more at the highest or lowest value


@dataclass(frozen=True)
class SignalStats:
    """Statistics of one pair. `size`, `digest`, `mask_digest` and `errors` are as in `SampleStats`."""

    size: tuple[int] | None  # time steps; None if it cannot be read
    rate: float | None
    leads: tuple[LeadStats, ...]
    label_counts: NDArray[np.int64]  # 256: time steps of each label; zeros if the labels cannot be read
    durations: NDArray[
        np.float64
    ]  # K x 2: label, and seconds of an event (time steps without a rate), none that is cut off
    outside: tuple[str, ...] = ()  # events that end after the recording, or begin before it
    overlaps: tuple[str, ...] = ()  # events that overlap the one before
    reversed: tuple[str, ...] = ()  # events that end before they begin
    digest: str = ""
    mask_digest: str = ""
    errors: tuple[str, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether recording and labels could be read."""
        return not self.errors

    @property
    def seconds(self) -> float | None:
        """The length of the recording; None if its rate or length is unknown."""
        return self.size[0] / self.rate if self.size and self.rate else None


def scan_signals(dataset: SegmentationDataset, progress: Callable[[int, int], None] | None = None) -> list[SignalStats]:
    """The statistics of each pair, in order; a recording is read once for all its leads."""
    by_file: dict[Path, list[int]] = defaultdict(list)
    for index, pair in enumerate(dataset.pairs):
        by_file[pair.image].append(index)
    found: dict[int, SignalStats] = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        for stats in pool.map(lambda indices: list(_scan_file(dataset, indices)), by_file.values()):
            found.update(stats)
            if progress:
                progress(len(found), len(dataset))
    return [found[index] for index in range(len(dataset))]


def _scan_file(dataset: SegmentationDataset, indices: list[int]) -> Iterator[tuple[int, SignalStats]]:
    """Read the pairs of one recording. Raises nothing: problems are in `errors`."""
    first = dataset.pairs[indices[0]]
    whole: Sample | str
    try:
        whole = read_signal(Pair(first.name, first.image, first.mask), default_rate=dataset.default_rate)
    except Exception as error:  # one broken file must not stop the scan
        whole = error_message(first.image, error)
    for index in indices:
        pair = dataset.pairs[index]
        if isinstance(whole, str):
            yield index, _unread(whole)
            continue
        try:
            sample = select_lead(whole, pair) if pair.lead else whole
        except Exception as error:
            yield index, _unread(error_message(pair.mask, error))
            continue
        yield index, compute_signal_stats(pair, sample, dataset.mask_reader)


def _unread(message: str) -> SignalStats:
    return SignalStats(None, None, (), np.zeros(256, np.int64), np.zeros((0, 2)), errors=(message,))


def compute_signal_stats(pair: Pair, sample: Sample, reader: object) -> SignalStats:
    """The statistics of a recording, or one lead of it, with its labels. Raises nothing: problems are in `errors`."""
    leads = tuple(
        lead_stats(sample.values[:, index], pair.lead or name, sample.units[index] if sample.units else "", sample.rate)
        for index, name in enumerate(sample.channels)
    )
    length, digest = len(sample.values), pixel_digest(sample.values)
    try:
        if not isinstance(reader, TrackReader):
            raise TypeError(f"{reader} reads no tracks")
        track = reader.track(pair).to_steps(sample.rate)
        labels = reader.labels(pair, length, sample.rate)
    except Exception as error:
        message = error_message(pair.mask, error)
        return SignalStats(
            (length,), sample.rate, leads, np.zeros(256, np.int64), np.zeros((0, 2)), digest=digest, errors=(message,)
        )
    outside, overlaps, backwards = check_events(track, length)
    return SignalStats(
        size=(length,),
        rate=sample.rate,
        leads=leads,
        label_counts=np.bincount(labels, minlength=256),
        durations=event_durations(labels, sample.rate),
        outside=outside,
        overlaps=overlaps,
        reversed=backwards,
        digest=digest,
        mask_digest=pixel_digest(labels),
    )


def lead_stats(values: NDArray[np.float32], name: str, unit: str, rate: float | None) -> LeadStats:
    """The statistics of one channel, float32 T."""
    measured = np.abs(values) < MAX_MAGNITUDE
    if not measured.any():
        return LeadStats(name, unit, 0.0, missing=1.0)
    present = values[measured]
    low, high = float(present.min()), float(present.max())
    missing = 1 - len(present) / len(values)
    if low == high:
        return LeadStats(name, unit, 0.0, missing, flat=1.0)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths, heights = np.diff(starts, append=len(values)), values[starts]
    long = round(FLAT_SECONDS * rate) if rate else FLAT_STEPS
    at_extreme = (lengths >= CLIPPED_RUN) & ((heights == low) | (heights == high))
    return LeadStats(
        name, unit, float(present.std(dtype=np.float64)), missing, float(lengths[lengths >= max(long, 2)].sum() / len(values)),
        float(lengths[at_extreme].sum() / len(values)),
    )  # fmt: skip


def event_durations(labels: Labels, rate: float | None) -> NDArray[np.float64]:
    """Label and duration of every run of one label that lies between two others, K x 2, without background; in seconds."""
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
    values, lengths = labels[starts].astype(np.int64), np.diff(starts, append=len(labels))
    whole = np.zeros(len(starts), bool)
    whole[1:-1] = (values[:-2] != IGNORE_INDEX) & (values[2:] != IGNORE_INDEX) if len(starts) > 2 else False
    kept = whole & (values != 0) & (values != IGNORE_INDEX)
    return np.stack([values[kept], lengths[kept] / (rate or 1.0)], axis=1).astype(np.float64)


def check_events(track: Track, length: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The events of a track, in time steps, that lie outside of the recording, overlap the one before, or end before they begin."""
    outside, overlaps, backwards = [], [], []
    last = ("", float("-inf"))
    for start, end, name, _ in sorted(track.events):
        text = f"{name} at {start:g} to {end:g}"
        if end < start:
            backwards.append(text)
        if start < 0 or end > length:
            outside.append(text)
        if start < last[1] - 1:  # two waves may share the step where they touch
            overlaps.append(f"{text} and {last[0]}")
        if end > last[1]:
            last = (text, end)
    return tuple(outside), tuple(overlaps), tuple(backwards)
