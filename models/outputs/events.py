"""The format `events`: the events of a recording, lead by lead, as JSON.

    {"model": "ludb", "rate": 500.0, "length": 5000, "seconds": 10.0,     length: time steps of the recording
     "start": "2026-03-01T12:30:00",                                      if the file says when it began
     "leads": ["i", "ii"],                                                that were segmented
     "events": [{"lead": "ii", "class": "qrs", "label": 2, "onset": 331, "offset": 380,
                 "onset_seconds": 0.662, "offset_seconds": 0.76, "confidence": 0.98}],
     "unlabeled": 0}                                                      time steps that are in no class, summed over the leads

`onset` is the event's first time step and `offset` the one after its last, both on the time base of the file that was sent.
`lead` is null where the network takes all leads together. `confidence` is the mean softmax probability, 0..1. The class 0 is the
background and no event.
"""

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from typing import Any

import numpy as np

from models.inference.leads import RecordPrediction
from models.outputs.options import OutputOptions
from models.spec import IGNORE_INDEX, BundleSpec

MEDIA_TYPE = "application/json"
SUFFIX = ".json"
NEEDS_CONFIDENCE = False  # of each time step: an event has its mean
ROWS = 10_000  # events that are encoded at a time


def encode(prediction: RecordPrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above, in UTF-8."""
    sample, rate = prediction.sample, prediction.sample.rate
    assert rate is not None  # readers and `segment_record` make sure of it
    length = len(sample.values)
    content: dict[str, Any] = {"model": spec.name, "rate": rate, "length": length, "seconds": length / rate}
    if sample.frame is not None and sample.frame.start:
        content["start"] = sample.frame.start
    content["leads"] = list(sample.channels)
    unlabeled = sum(int(np.count_nonzero(track.labels == IGNORE_INDEX)) for track in prediction.tracks)
    # In parts: a day's recording has some 600,000 events, and a list of their dicts takes half a gigabyte.
    stream, rows, comma = io.BytesIO(), event_rows(prediction, spec, rate), b""
    stream.write(_dump(content)[:-1] + b',"events":[')
    while part := list(islice(rows, ROWS)):
        stream.write(comma + _dump(part)[1:-1])
        comma = b","
    stream.write(b'],"unlabeled":%d}' % unlabeled)
    return stream.getvalue()


def _dump(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def event_rows(prediction: RecordPrediction, spec: BundleSpec, rate: float) -> Iterator[dict[str, Any]]:
    """The events of all tracks, track by track, each in order of time."""
    names = [entry.name for entry in spec.classes]
    for track in prediction.tracks:
        columns = track.columns
        for first in range(0, len(columns.labels), ROWS):
            block = slice(first, first + ROWS)
            labels, starts, ends = columns.labels[block], columns.starts[block], columns.ends[block]
            sure: Iterable[float | None] = repeat(None)
            if columns.confidences is not None:
                sure = np.round(columns.confidences[block], 4).tolist()
            seconds = (np.round(steps / rate, 6).tolist() for steps in (starts, ends))
            rows = zip(labels.tolist(), starts.tolist(), ends.tolist(), *seconds, sure, strict=False)
            for label, onset, offset, onset_seconds, offset_seconds, confidence in rows:
                yield {
                    "lead": track.lead or None,
                    "class": names[label],
                    "label": label,
                    "onset": onset,
                    "offset": offset,
                    "onset_seconds": onset_seconds,
                    "offset_seconds": offset_seconds,
                    "confidence": confidence,
                }
