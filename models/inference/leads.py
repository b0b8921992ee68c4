"""Segments a recording: lead by lead where the network takes one lead, else all leads together.

A network of one channel whose name says nothing, such as `lead`, segments every lead of a recording on its own. One that was
trained on a lead with a name, such as `ii`, takes that lead, if the recording has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.errors import ChannelsError, ConfigError, closest_names, quoted
from models.imaging.decode import Labels
from models.inference.events import Event, EventColumns, find_event_columns, list_events
from models.inference.segmenter import Segmenter, never_stop
from models.inference.signals import segment_signals
from models.readers.prepare import prepare_sample
from models.readers.signal import is_lead_of_any_name
from models.sample import Sample
from models.spec import BundleSpec, InputRule

MAX_LISTED_LEADS = 16  # leads that an error names


@dataclass(frozen=True)
class Track:
    """The labels of one lead, or of all leads together, on the recording's own time base."""

    lead: str  # its name; empty: of all leads together
    labels: Labels  # uint8 T; 255 is unlabeled
    columns: EventColumns  # the events, with their mean confidence
    confidence: NDArray[np.float32] | None = None  # T, softmax probability of each label, if it is kept

    @property
    def events(self) -> list[Event]:
        """The events, in order of time."""
        return list_events(self.columns)


@dataclass(frozen=True)
class RecordPrediction:
    """A recording, with the leads that were segmented as the file has them, and its labels."""

    sample: Sample
    tracks: tuple[Track, ...]

    @cached_property
    def labels(self) -> Labels:
        """Uint8 T; T x leads where several leads were segmented on their own."""
        if len(self.tracks) == 1:
            return self.tracks[0].labels
        return np.stack([track.labels for track in self.tracks], axis=1)


Filter = Callable[[Labels, NDArray[np.float32]], Labels]


def segment_record(
    segmenter: Segmenter,
    spec: BundleSpec,
    sample: Sample,
    leads: Sequence[str] = (),
    keep_confidence: bool = False,
    should_stop: Callable[[], bool] = never_stop,
    keep: Filter = lambda labels, confidence: labels,
) -> RecordPrediction:
    """Segment a recording as it was read, with values T x C at its own rate.

    Args:
        segmenter, spec: of a network of signals.
        sample: all leads of the file.
        leads: names of those to segment; empty for all that the network takes.
        keep_confidence: whether the tracks hold the confidence of each time step; the events always have their mean.
        should_stop: as in `Segmenter.segment`.
        keep: gives labels and confidence of a track the labels that are kept; the others are 255.

    Raises: ChannelsError for leads or a rate that the network cannot take, ConfigError for a lead that the recording does not
    have, InsufficientMemoryError, InferenceCancelledError.
    """
    sample = select_leads(sample, spec.input, leads)
    parts = split_leads(sample, spec.input)
    prepared = (prepare_sample(part, spec.input) for _, part in parts)
    tracks: list[Track] = []
    try:
        for found in segment_signals(segmenter, prepared, True, should_stop):
            assert found.confidence is not None  # it was requested
            labels = keep(found.labels, found.confidence)
            columns = find_event_columns(labels, found.confidence)
            name = parts[len(tracks)][0]
            tracks.append(Track(name, labels, columns, found.confidence if keep_confidence else None))
            del found  # before the next lead: of a day, a confidence has 86 MB
    except ConfigError as error:  # for training and evaluation, whose user chooses the rate
        raise ChannelsError(str(error)) from error
    return RecordPrediction(sample, tuple(tracks))


def select_leads(sample: Sample, rule: InputRule, leads: Sequence[str] = ()) -> Sample:
    """The recording with the leads that are to be segmented. Raises: ConfigError, ChannelsError."""
    known = [name.lower() for name in sample.channels]
    for name in leads:
        if name.lower() not in known:
            close = closest_names(name, sample.channels)
            more = f" and {len(known) - MAX_LISTED_LEADS} more" if len(known) > MAX_LISTED_LEADS else ""
            raise ConfigError(
                f"The recording has no lead {quoted(name[:80])}{f'; did you mean {quoted(close)}?' if close else '.'} "
                f"It has {', '.join(map(quoted, sample.channels[:MAX_LISTED_LEADS]))}{more}."
            )
    if leads:
        return _take(sample, [known.index(name.lower()) for name in dict.fromkeys(leads)])
    if takes_one_lead(rule) and not is_lead_of_any_name(rule.channels) and len(known) > 1:
        if rule.channels[0].lower() not in known:
            raise ChannelsError(
                f"The recording has {sample.describe()}; this model takes the lead {quoted(rule.channels[0])}. Choose one with "
                "the parameter `lead`."
            )
        return _take(sample, [known.index(rule.channels[0].lower())])
    return sample


def split_leads(sample: Sample, rule: InputRule) -> list[tuple[str, Sample]]:
    """The name and the sample of each track: of each lead for a network of one lead, else of the whole recording."""
    if not takes_one_lead(rule):
        return [("", sample)]
    # Under the network's name for its lead, because `prepare_sample` finds channels by name. A view: a day is not copied.
    return [
        (name, replace(sample, values=sample.values[:, index : index + 1], channels=rule.channels, statistics=None))
        for index, name in enumerate(sample.channels)
    ]


def takes_one_lead(rule: InputRule) -> bool:
    """Whether each lead of a recording is segmented on its own."""
    return len(rule.channels) == 1


def _take(sample: Sample, indices: list[int]) -> Sample:
    if indices == list(range(len(sample.channels))):
        return sample
    return replace(
        sample,
        values=sample.values[:, indices],
        channels=tuple(sample.channels[index] for index in indices),
        statistics=None,
    )
