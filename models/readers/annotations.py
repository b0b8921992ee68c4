"""Annotation files of WFDB records in the MIT format, read and written (https://physionet.org/physiotools/wag/annot-5.htm).

An interval is `(`, a symbol and `)`: the beginning of a P wave, its peak and its end are `(`, `p`, `)`. A class without a symbol
of its own is a note, `"`, whose text is the class.
"""

import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from models.errors import DataError

# The symbol of each code; codes without a meaning are left out.
SYMBOLS = {
    code: symbol
    for code, symbol in enumerate(" NLRaVFJASEj/Q~ | sT*D\"=pB^t+u?![]en@xf()r")
    if symbol != " "
}  # fmt: skip
CODES = {symbol: code for code, symbol in SYMBOLS.items()}
SKIP, NUMBER, SUBTYPE, CHANNEL, TEXT = 59, 60, 61, 62, 63  # codes that belong to the annotation before, or to time
MAX_INTERVAL = 1023  # time steps between two annotations; more need a SKIP
MAX_TEXT_BYTES = 255
NOTE, RHYTHM = '"', "+"
BEATS = frozenset("NLRaVFJASEj/QeBnfr")
WAVES = {"p": "P", "t": "T", "u": "U", **dict.fromkeys(BEATS, "QRS")}  # the class of a symbol, in an ECG
WAVE_SYMBOLS = {"P": "p", "QRS": "N", "T": "t", "U": "u"}


class Annotation(NamedTuple):
    """A symbol at a time step; `text` is the rhythm of `+`, and the text of `"`; `channel` is the lead that it belongs to."""

    step: int
    symbol: str
    text: str = ""
    channel: int = 0


class Interval(NamedTuple):
    """A class from `start` to `end`, half-open in time steps: `)` is its last one, at `end` - 1."""

    start: int
    end: int
    name: str


def is_annotation_file(data: bytes) -> bool:
    """Whether bytes may be an annotation file: whole words that end with a zero, or are empty but for it."""
    return (
        len(data) >= 2
        and len(data) % 2 == 0
        and data.endswith(b"\0\0")
        and (data[1] >> 2) in {*SYMBOLS, 0, *range(59, 64)}
    )


def read_annotations(data: bytes) -> list[Annotation]:
    """The annotations in order. Raises: DataError for a truncated file, or time that runs backwards."""
    found: list[Annotation] = []
    step, position, channel, words = 0, 0, 0, memoryview(data)
    while True:
        if position + 2 > len(data):
            raise DataError("the annotation file is truncated: it has no end mark. Copy it again.")
        (word,) = struct.unpack_from("<H", words, position)
        code, value = word >> 10, word & MAX_INTERVAL
        position += 2
        if code == value == 0:
            return found
        if code == SKIP:
            if position + 4 > len(data):
                raise DataError("the annotation file is truncated in an interval. Copy it again.")
            high, low = struct.unpack_from("<hH", words, position)
            step += (high << 16) + low
            position += 4
        elif code == TEXT:
            text = bytes(words[position : position + value]).rstrip(b"\0").decode("utf-8", "replace")
            position += value + value % 2
            if found:
                found[-1] = found[-1]._replace(text=text)
        elif code == CHANNEL:  # it holds for all that follow
            channel = value
            if found:
                found[-1] = found[-1]._replace(channel=channel)
        elif code not in (NUMBER, SUBTYPE):
            step += value
            if (found and step < found[-1].step) or step < 0:
                raise DataError(
                    f"the annotations run backwards: one at time step {step} follows one at "
                    f"{found[-1].step if found else 0}. Sort them, or export the file again."
                )
            found.append(Annotation(step, SYMBOLS.get(code, "?"), "", channel))


def write_annotations(annotations: Iterable[Annotation]) -> bytes:
    """The bytes of an annotation file. Raises: DataError for annotations that are not in order of time."""
    parts, last, current = [], 0, 0
    for step, symbol, text, channel in annotations:
        gap, last = step - last, step
        if gap < 0:
            raise DataError(
                f"Events overlap at time step {step}; an annotation file holds one after the other. Save them as CSV."
            )
        if gap > MAX_INTERVAL:
            parts.append(struct.pack("<HhH", SKIP << 10, gap >> 16, gap & 0xFFFF))
            gap = 0
        parts.append(struct.pack("<H", CODES[symbol] << 10 | gap))
        if channel != current:
            parts.append(struct.pack("<H", CHANNEL << 10 | channel))
            current = channel
        encoded = text.encode()[:MAX_TEXT_BYTES]
        if encoded:
            parts.append(struct.pack("<H", TEXT << 10 | len(encoded)) + encoded + bytes(len(encoded) % 2))
    return b"".join(parts) + bytes(2)


def to_intervals(annotations: Sequence[Annotation]) -> list[Interval]:
    """The intervals from `(` to the next `)` of the channel; other symbols, such as beats and rhythms, are points and left out."""
    channels = {each.channel for each in annotations}
    if len(channels) > 1:
        parts = [[each for each in annotations if each.channel == channel] for channel in sorted(channels)]
        return sorted(interval for part in parts for interval in to_intervals(part))
    found = []
    for index, (start, symbol, _, _) in enumerate(annotations):
        if symbol != "(":
            continue
        name = ""
        for step, other, text, _ in itertools.islice(annotations, index + 1, None):
            if other in "()":
                if other == ")" and name:
                    found.append(Interval(start, step + 1, name))
                break
            if other != RHYTHM:
                name = name or (text if other == NOTE and text else WAVES.get(other, other))
    return found


def from_intervals(intervals: Iterable[Interval]) -> list[Annotation]:
    """`(`, the symbol in the middle, and `)` for each interval, in order; the opposite of `to_intervals`."""
    found = []
    for start, end, name in sorted(intervals):
        symbol = WAVE_SYMBOLS.get(name, NOTE)
        found += [
            Annotation(start, "("),
            Annotation((start + end - 1) // 2, symbol, name if symbol == NOTE else ""),
            Annotation(end - 1, ")"),
        ]
    return found
