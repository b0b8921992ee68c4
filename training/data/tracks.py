"""Labels of a recording: events with a class each, or a label for every time step; read from their files and painted."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, first_line, quoted
from models.imaging.decode import Labels
from models.readers.annotations import NOTE, RHYTHM, read_annotations, to_intervals
from models.spec import IGNORE_INDEX
from training.data.class_file import IGNORED_NAMES
from training.data.dataset import Pair
from training.data.mask_decoding import RawMask
from training.data.text_file import text_encoding

START_COLUMNS = ("onset", "start", "begin", "from", "start_time", "onset_time")
END_COLUMNS = ("offset", "end", "stop", "to", "end_time", "offset_time")
DURATION_COLUMNS = ("duration", "length")
CLASS_COLUMNS = (
    "class",
    "label",
    "event",
    "name",
    "stage",
    "type",
    "annotation",
    "description",
    "trial_type",
    "category",
)
LEAD_COLUMNS = ("lead", "channel")
SECONDS, STEPS = ("s", "sec", "secs", "seconds"), ("sample", "samples", "step", "steps", "index")
ECG_CLASSES = ("P", "QRS", "T", "U")


class Event(NamedTuple):
    """A class from `start` to `end`, half-open, in time steps or seconds; `lead` is empty for all leads."""

    start: float
    end: float
    name: str
    lead: str = ""


@dataclass(frozen=True)
class Track:
    """The content of a label file."""

    events: tuple[Event, ...] = ()
    in_seconds: bool = False
    labelled: tuple[int, int] | None = None  # the time steps that were annotated, half-open; None for all
    steps: NDArray[np.int64] | None = None  # T: a value for every time step, in place of events
    names: tuple[str, ...] = ()  # of the values, if they have names
    notes: tuple[str, ...] = ()

    def to_steps(self, rate: float | None) -> "Track":
        """The same, with events in time steps of a recording at `rate`. Raises: DataError for seconds without a rate."""
        if not self.in_seconds:
            return self
        if rate is None:
            raise DataError(
                "the events are in seconds, but the recording states no sampling rate; give it with `rate=`."
            )
        events = tuple(event._replace(start=event.start * rate, end=event.end * rate) for event in self.events)
        return Track(events, False, self.labelled, self.steps, self.names, self.notes)

    def of_lead(self, lead: str) -> "Track":
        """The same, without the events of other leads."""
        events = tuple(
            event for event in self.events if not event.lead or not lead or event.lead.lower() == lead.lower()
        )
        return Track(events, self.in_seconds, self.labelled, self.steps, self.names, self.notes)


@dataclass(frozen=True, eq=False)
class TrackReader:
    """Reads the labels of the recordings of a data set."""

    label_by_name: dict[str, int]  # empty if the values of `Track.steps` are labels
    cache_key: str = ""

    def track(self, pair: Pair) -> Track:
        """The content of a pair's label file. Raises: DataError, which names the file."""
        return read_track(pair.mask).of_lead(pair.lead)

    def labels(self, pair: Pair, length: int, rate: float | None) -> Labels:
        """uint8 T for a recording of `length` time steps at `rate` Hz; 255 is ignored. Raises: DataError, which names the file."""
        try:
            return paint(self.track(pair), length, rate, self.label_by_name)
        except DataError as error:
            raise DataError(str(error) if str(pair.mask) in str(error) else f"{pair.mask}: {error}") from error

    def __call__(self, pair: Pair) -> RawMask:
        """The labels, uint8 T; reads the recording, for its length. Raises: DataError, ImageError."""
        from training.data.signals import read_signal

        sample = read_signal(pair)
        return RawMask(self.labels(pair, len(sample.values), sample.rate))


def paint(track: Track, length: int, rate: float | None, label_by_name: dict[str, int]) -> Labels:
    """The labels of every time step, uint8 T: 0 where no event is; of events that overlap, the later one.

    Raises: DataError for another number of labels than `length`, or a class without a label.
    """
    if track.steps is not None:
        return _decode_steps(track, length, label_by_name)
    labels = np.zeros(length, np.uint8)
    if track.labelled is not None:
        labels[: max(0, track.labelled[0])] = labels[max(0, track.labelled[1]) :] = IGNORE_INDEX
    for start, end, name, _ in track.to_steps(rate).events:
        first = min(max(round(start), 0), length)
        labels[first : min(max(round(end), first + (start < length <= end or start == end)), length)] = _label_of(
            name, label_by_name
        )
    return labels


def _label_of(name: str, label_by_name: dict[str, int]) -> int:
    if name.lower() in IGNORED_NAMES:
        return IGNORE_INDEX
    if name not in label_by_name:
        raise DataError(
            f"the class {quoted(name)} is unknown; expected {', '.join(label_by_name)}. Correct it, or add it."
        )
    return label_by_name[name]


def _decode_steps(track: Track, length: int, label_by_name: dict[str, int]) -> Labels:
    values = track.steps if track.steps is not None else np.zeros(0, np.int64)
    if len(values) != length:
        raise DataError(
            f"the file has {len(values):,} labels, the recording {length:,} time steps; expected one label each. Export it again."
        )
    if track.names:
        lookup = np.array([_label_of(name, label_by_name) for name in track.names], np.uint8)
        return lookup[values]
    if values.min() < 0 or values.max() > IGNORE_INDEX:
        wrong = values.min() if values.min() < 0 else values.max()
        raise DataError(f"the file has the label {wrong}; expected 0 to 254, and 255 for unlabelled time steps.")
    return values.astype(np.uint8)


def read_track(file: Path) -> Track:
    """Read a label file: by its suffix an array, a table of events or labels, Audacity's label track, or a WFDB annotation file.

    Raises: DataError, which names the file.
    """
    readers: dict[str, Callable[[Path], Track]] = {
        ".npy": _read_array, ".csv": _read_table, ".tsv": _read_table, ".txt": _read_audacity
    }  # fmt: skip
    try:
        return readers.get(file.suffix.lower(), _read_annotation_file)(file)
    except (DataError, OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(text if str(file) in text else f"{file}: {text}") from error


def _read_annotation_file(file: Path) -> Track:
    """Intervals of an annotation file. In an ECG the first and last beats are often left out: what lies outside is unlabelled."""
    annotations = read_annotations(file.read_bytes())
    intervals = to_intervals(annotations)
    notes = []
    rhythms = sum(each.symbol == RHYTHM for each in annotations)
    if rhythms:
        notes.append(f"{file} has {rhythms:,} rhythms (+), which are not read as classes.")
    bare = {each.symbol for each in annotations} - {"(", ")", RHYTHM, NOTE}
    if not intervals and bare:
        notes.append(f"{file} has points ({' '.join(sorted(bare))}) and no intervals from ( to ); it has no events.")
    stretch = None
    if intervals and all(each.name in ECG_CLASSES for each in intervals):
        stretch = intervals[0].start, max(each.end for each in intervals)
    return Track(tuple(Event(*each) for each in intervals), labelled=stretch, notes=tuple(notes))


def _read_array(file: Path) -> Track:
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"not a NumPy array ({first_line(error)}); expected one label for each time step.") from error
    if values.ndim != 1 or values.dtype.kind not in "uib":
        raise DataError(
            f"the array is {values.dtype} of {values.shape}; expected whole numbers, one for each time step."
        )
    return Track(steps=values.astype(np.int64))


def _read_audacity(file: Path) -> Track:
    """Audacity's label track: start, end and label, separated by tabs; lines that begin with a backslash hold frequencies."""
    events = []
    for number, line in enumerate(file.read_text(encoding=text_encoding(file)).splitlines(), 1):
        if not line.strip() or line.startswith("\\"):
            continue
        cells = line.split("\t")
        events.append(
            _to_event(cells[0], cells[1] if len(cells) > 1 else "", cells[2] if len(cells) > 2 else "", number)
        )
    return Track(tuple(events), in_seconds=True)


def _read_table(file: Path) -> Track:
    """A table of events, or a label a line. Raises: DataError."""
    text = file.read_text(encoding=text_encoding(file))
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    rows = [
        (number, [cell.strip() for cell in row])
        for number, row in _numbered(text, delimiter)
        if any(map(str.strip, row))
    ]
    if not rows:
        raise DataError("the table is empty; expected a header `onset,offset,class`.")
    header = [cell.lower() for cell in rows[0][1]]
    words = [re.split(r"[^a-z]+", cell) for cell in header]
    start, end, duration, name, lead = (_column(header, words, known) for known in (
        START_COLUMNS, END_COLUMNS, DURATION_COLUMNS, CLASS_COLUMNS, LEAD_COLUMNS
    ))  # fmt: skip
    if start is None or (end is None and duration is None):
        return _read_labels(rows, header)
    if name is None:
        raise DataError(f"the table has the columns {', '.join(header)} and no class; expected `onset,offset,class`.")
    events = []
    for number, row in rows[1:]:
        cells = row + [""] * len(header)
        event = _to_event(cells[start], cells[end if end is not None else duration or 0], cells[name], number)
        if end is None:
            event = event._replace(end=event.start + event.end)
        events.append(event._replace(lead=cells[lead]) if lead is not None else event)
    return Track(tuple(events), _is_in_seconds(words[start], events))


def _numbered(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: invalid CSV ({error}).") from error


def _column(header: Sequence[str], words: Sequence[Sequence[str]], known: Sequence[str]) -> int | None:
    exact = next((header.index(name) for name in known if name in header), None)
    return exact if exact is not None else next((index for index, found in enumerate(words) if found[0] in known), None)


def _to_event(start: str, end: str, name: str, number: int) -> Event:
    try:
        first, last = float(start), float(end)
    except ValueError as error:
        raise DataError(
            f"line {number}: {quoted(start)} and {quoted(end)} are no times; expected two numbers."
        ) from error
    if not name.strip():
        raise DataError(f"line {number}: the event has no class; write its name.")
    if not (np.isfinite(first) and np.isfinite(last)):
        raise DataError(f"line {number}: {quoted(start)} and {quoted(end)} are no times; expected two numbers.")
    return Event(first, last, name.strip())


def _is_in_seconds(words: Sequence[str], events: Sequence[Event]) -> bool:
    """By the unit in the column's name, such as `onset_s` and `onset_samples`; else numbers with a fraction are seconds."""
    if any(word in STEPS for word in words):
        return False
    if any(word in SECONDS for word in words[1:]):
        return True
    return any(value != int(value) for event in events for value in event[:2])


def _read_labels(rows: list[tuple[int, list[str]]], header: list[str]) -> Track:
    """A label for every time step: whole numbers, or names of classes."""
    column = next((header.index(name) for name in (*CLASS_COLUMNS, "labels", "classes") if name in header), None)
    cells = [row[column or 0] if len(row) > (column or 0) else "" for _, row in rows[column is not None :]]
    if len(header) > 1 and column is None:
        raise DataError(
            f"the table has the columns {', '.join(header[:6])}; expected events (`onset,offset,class`), or one column of labels."
        )
    if all(re.fullmatch(r"\d+", cell) for cell in cells):
        return Track(steps=np.array(cells, np.int64))
    names, values = np.unique(np.array(cells), return_inverse=True)
    return Track(steps=values.astype(np.int64), names=tuple(names.tolist()))


def collect_names(files: Sequence[Path]) -> tuple[dict[str, int], int, list[str]]:
    """Over all label files: how many have each class name, the highest value of unnamed labels (-1 for none), and their notes.

    Files that cannot be read are left out; the lint names them.
    """
    counts: dict[str, int] = {}
    highest, notes = -1, dict[str, None]()
    for file in files:
        try:
            track = read_track(file)
        except DataError:
            continue
        if track.steps is not None and not track.names:
            values = track.steps[track.steps != IGNORE_INDEX]
            highest = max(highest, int(values.max(initial=-1)))
        for name in {*(event.name for event in track.events), *track.names}:
            counts[name] = counts.get(name, 0) + 1
        notes |= dict.fromkeys(track.notes)
    return counts, highest, list(notes)


def leads_of(file: Path) -> tuple[str, ...]:
    """The leads that the events of a file name; empty if they are of all leads, or the file cannot be read."""
    try:
        return tuple(dict.fromkeys(event.lead for event in read_track(file).events if event.lead))
    except DataError:
        return ()
