"""Reads the recordings of a data set as a network takes them: one lead or all, at the rate of its rule, with labels."""

import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ConfigError, DataError, quoted
from models.imaging.decode import Labels, decode_file
from models.readers import read_file, read_input_file, read_sample
from models.readers.resample import nearest_steps, rate_ratio, to_rate
from models.readers.signal import HERTZ, LEAD
from models.sample import Sample
from models.spec import InputRule, Spacing
from training.data.dataset import Pair

MAX_RECENT_BYTES = 256 << 20  # of values and labels, in each process


def read_signal(pair: Pair, rule: InputRule | None = None, default_rate: float | None = None) -> Sample:
    """A recording at its own rate, or the one lead of the pair; as the rule takes it, if there is one.

    A file that states no rate has the `default_rate`, or that of the rule. Raises: ImageError, DataError, which name the file.
    """
    sample = (
        decode_file(pair.image, read_sample, read=read_file, axes="T")
        if rule is None
        else read_input_file(pair.image, rule)
    )
    rate = default_rate or (rule.rate if rule else None)
    if sample.spacing is None and rate:
        sample = replace(sample, spacing=Spacing(values=(rate,), unit=HERTZ))
    if not pair.lead:
        return sample
    sample = select_lead(sample, pair)
    return replace(sample, channels=rule.channels) if rule else sample


def select_lead(sample: Sample, pair: Pair) -> Sample:
    """The one channel of a pair, as `lead`. Raises: DataError if the recording has no such channel."""
    names = [name.lower() for name in sample.channels]
    if pair.lead.lower() not in names:
        raise DataError(
            f"{pair.image} has no lead {quoted(pair.lead)}, which {pair.mask} labels; it has {', '.join(sample.channels)}. "
            "Delete the label file, or correct its name."
        )
    index = names.index(pair.lead.lower())
    values = np.ascontiguousarray(sample.values[:, index : index + 1])
    statistics = None if sample.statistics is None else sample.statistics[:, index : index + 1]
    return replace(
        sample, values=values, channels=(LEAD,), statistics=statistics, units=sample.units[index : index + 1]
    )


def read_recording(
    pair: Pair, reader: object, rule: InputRule | None, at_own_rate: bool = False, default_rate: float | None = None
) -> tuple[Sample, Labels]:
    """A recording and its labels, at the rate of the rule if it states one; without a `reader`, labels of 0.

    Recent ones are kept in memory: epochs read them again, and a file once for each lead. Callers must not write into them.
    Raises: ImageError, DataError, which name the file.
    """
    key = (pair, reader, rule, at_own_rate, default_rate, _stamp(pair.image), _stamp(pair.mask))
    if (kept := _RECENT.get(key)) is not None:
        return kept
    sample = read_signal(pair, rule, default_rate)
    labels = np.zeros(len(sample.values), np.uint8)
    if reader is not None:
        labels = reader.labels(pair, len(sample.values), sample.rate)  # type: ignore[attr-defined]
    found = resample_both(sample, labels, rule.rate if rule and not at_own_rate else None)
    _RECENT.put(key, found)
    return found


class RecentRecordings:
    """The recordings that were read last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._found: OrderedDict[Any, tuple[Sample, Labels]] = OrderedDict()
        self._free, self._lock = max_bytes, threading.Lock()

    def get(self, key: Any) -> tuple[Sample, Labels] | None:
        """The recording, if it is kept."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: Any, found: tuple[Sample, Labels]) -> None:
        """Keep a recording, and drop the oldest ones if there is no room."""
        with self._lock:
            if key in self._found:
                return
            self._found[key] = found
            self._free -= _num_bytes(found)
            while self._free < 0:
                self._free += _num_bytes(self._found.popitem(last=False)[1])


def _num_bytes(found: tuple[Sample, Labels]) -> int:
    return int(found[0].values.nbytes + found[1].nbytes)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file; zeros if it cannot be found, which reading it then says."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


_RECENT = RecentRecordings(MAX_RECENT_BYTES)


def resample_both(sample: Sample, labels: Labels, rate: float | None) -> tuple[Sample, Labels]:
    """A recording and its labels, T, at another rate; labels by nearest time step. Unchanged where either rate is unknown."""
    if rate is None or sample.rate is None or sample.rate == rate:
        return sample, labels
    try:
        ratio = rate_ratio(sample.rate, rate)
    except ConfigError as error:
        raise DataError(str(error)) from error
    resampled = to_rate(sample, rate)
    return resampled, labels[nearest_steps(len(resampled.values), len(labels), float(ratio))]
