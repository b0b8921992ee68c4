"""Reader of WFDB records, the format of PhysioNet: a header `NAME.hea` with the signal files that it names, in one zip file.

On disk a record is several files: `pack_record` reads them and gives the zip that `decode` takes; uploads are the same zip.
Formats 16, 24, 32, 61, 80, 160 and 212 of https://physionet.org/physiotools/wag/signal-5.htm, the header as in
https://physionet.org/physiotools/wag/header-5.htm. A sample that the format marks as invalid becomes NaN.
"""

import io
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, DataError, ImageTooLargeError, UnsupportedFormatError, first_line, quoted
from models.imaging.cpu_budget import allow_pixels
from models.readers.limits import BYTES_PER_PIXEL, MIN_BYTES, ReadLimits
from models.readers.resample import join_rates
from models.readers.signal import allocate_columns, build_signal, check_length, check_rate, check_signal_size, decode_24
from models.readers.zip_members import read_members
from models.sample import Sample
from models.spec import MAX_CHANNELS

HEADER_SUFFIX = ".hea"
DEFAULT_RATE, DEFAULT_GAIN = 250.0, 200.0  # Hz; ADC units a physical unit
BLOCK_STEPS = 1 << 16  # that are decoded at a time; an even number, because format 212 packs two samples
MAX_HEADER_BYTES, MAX_MEMBERS, MAX_BASELINE = 1 << 20, 256, 1 << 32
Integers = NDArray[np.int32]

_RECORD_LINE = re.compile(rb"[\w.-]+(/\d+)?\s+\d+(\s+[\d./()]+)?(\s+\d+.*)?")
_SIGNAL_LINE = re.compile(rb"(?=\S*[A-Za-z~])\S+\s+\d+(x\d+)?(:\d+)?(\+\d+)?(\s|$)")  # a file, and its format
_SPECIFICATION = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")  # format, samples a frame, skew, byte offset
_GAIN = re.compile(r"([-+.\deE]+)(?:\(([-+]?\d+)\))?(?:/(\S+))?")  # gain, baseline, unit


def _decode_212(data: NDArray[np.uint8]) -> Integers:
    """Two samples of 12 bits in three bytes."""
    padded = np.concatenate([data, np.zeros(-len(data) % 3, np.uint8)]).reshape(-1, 3).astype(np.int32)
    low, high = padded[:, 1] & 0x0F, padded[:, 1] >> 4
    return np.stack([padded[:, 0] | low << 8, padded[:, 2] | high << 8], axis=1).reshape(-1) << 20 >> 20


# By format: bits of a sample, the value that marks an invalid one, and the decoder of bytes.
FORMATS: dict[int, tuple[int, int, Callable[[NDArray[np.uint8]], Integers]]] = {
    16: (16, -(1 << 15), lambda data: data.view("<i2").astype(np.int32)),
    24: (24, -(1 << 23), decode_24),
    32: (32, -(1 << 31), lambda data: data.view("<i4").astype(np.int32)),
    61: (16, -(1 << 15), lambda data: data.view(">i2").astype(np.int32)),
    80: (8, -(1 << 7), lambda data: data.astype(np.int32) - 128),
    160: (16, -(1 << 15), lambda data: data.view("<u2").astype(np.int32) - (1 << 15)),
    212: (12, -(1 << 11), _decode_212),
}


@dataclass(frozen=True)
class SignalLine:
    """One channel, as a header describes it: physical value = (sample - baseline) / gain."""

    file: str
    format: int
    frame_samples: int  # samples of the channel for each time step of the record
    offset: int  # bytes before the first sample
    gain: float
    baseline: int
    unit: str
    checksum: int | None  # sum of all samples modulo 2^16; None if the header states none
    name: str


@dataclass(frozen=True)
class Header:
    """A header. `length`: time steps, 0 if it is not stated."""

    name: str
    rate: float
    length: int
    signals: tuple[SignalLine, ...]


def sniff(data: bytes) -> bool:
    """Whether the bytes are a zip file with a header in it, or the header alone."""
    return (data.startswith(b"PK\3\4") and HEADER_SUFFIX.encode() in data) or is_header(data)


def is_header(data: bytes) -> bool:
    """Whether the bytes begin as the text of a header: a record's name and numbers, then a line for each signal."""
    start = data[:4096]
    lines = [line.strip() for line in start.splitlines() if line.strip() and not line.startswith(b"#")]
    if not lines or b"\0" in start or not _RECORD_LINE.fullmatch(lines[0]):
        return False
    return len(lines) == 1 or bool(_SIGNAL_LINE.match(lines[1]))


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read a record from its zip file. Raises: ImageError."""
    if not data.startswith(b"PK\3\4"):
        raise CorruptImageError(
            "This is the header of a WFDB record without its signal file. Send one zip file of the .hea and the .dat; on disk, "
            "give the path of the .hea, with the .dat beside it."
        )
    members = _read_members(data, limits)
    names = [name for name in members if name.lower().endswith(HEADER_SUFFIX)]
    if len(names) != 1:
        raise UnsupportedFormatError(
            f"The zip file has {len(names)} headers (.hea): {', '.join(names[:4])}; expected one record a zip file. Split it."
        )
    header = parse_header(members[names[0]])
    folder = PurePosixPath(names[0]).parent

    def read(name: str) -> bytes:
        member = members.get(str(folder / name))
        if member is None:
            raise CorruptImageError(
                f"The header {names[0]} names the signal file {quoted(name)}, which is not in the zip file. Add it."
            )
        return member

    return read_record(header, read, limits)


def pack_record(header_name: str, read: Callable[[str], bytes]) -> bytes:
    """A record as a zip file, not compressed: the header and the signal files that it names. `read` gives a file's bytes by name.

    Raises: DataError, which begins with the header's name; what `read` raises for the header.
    """
    header = read(header_name)
    try:
        files = dict.fromkeys(line.file for line in parse_header(header).signals)
    except (CorruptImageError, UnsupportedFormatError) as error:
        raise DataError(f"{header_name}: {error}") from error
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(PurePosixPath(header_name).name, header)
        for name in files:
            try:
                archive.writestr(name, read(name))
            except OSError as error:
                raise DataError(
                    f"{header_name}: its signal file {quoted(name)} cannot be read ({error.strerror}); expected it beside "
                    "the header. Copy it there."
                ) from error
    return stream.getvalue()


def parse_header(data: bytes) -> Header:
    """Parse the text of a header. Raises: CorruptImageError, UnsupportedFormatError."""
    text = io.StringIO(data[:MAX_HEADER_BYTES].decode("utf-8", "replace"), newline=None)
    described = (line.split() for line in text if line.strip() and not line.startswith("#"))
    lines = list(islice(described, MAX_CHANNELS + 1))
    try:
        name, count = lines[0][0], int(lines[0][1])
        rate = float(re.split("[/(]", lines[0][2])[0]) if len(lines[0]) > 2 else DEFAULT_RATE
        length = int(lines[0][3]) if len(lines[0]) > 3 else 0
        if "/" in name:
            raise UnsupportedFormatError(
                f"The record {quoted(name)} has several segments; expected one. Send each segment as a record of its own."
            )
        check_length(length or 2, count)
        if count > MAX_CHANNELS:
            raise UnsupportedFormatError(
                f"The record {quoted(name)} has {count:,} signals; the limit is {MAX_CHANNELS}. Select those that you need."
            )
        if len(lines) <= count:
            raise CorruptImageError(
                f"The header of {quoted(name)} describes {len(lines) - 1} of {count} signals. Copy it again."
            )
        signals = tuple(_parse_signal(fields) for fields in lines[1 : count + 1])
    except (IndexError, ValueError) as error:
        raise CorruptImageError(
            f"The WFDB header cannot be read ({quoted(first_line(error))}); expected `NAME SIGNALS RATE LENGTH`, then a line "
            "for each signal. Copy it again."
        ) from error
    if all(signal.checksum == 0 for signal in signals):  # converters write 0 for "not computed"
        signals = tuple(replace(signal, checksum=None) for signal in signals)
    return Header(name, check_rate(rate), length, signals)


def _parse_signal(fields: list[str]) -> SignalLine:
    """Raises: ValueError, CorruptImageError, UnsupportedFormatError."""
    match = _SPECIFICATION.fullmatch(fields[1]) if len(fields) > 1 else None
    if match is None:
        raise ValueError(" ".join(fields)[:80])
    file, number = fields[0], int(match[1])
    if number not in FORMATS or int(match[3] or 0):
        raise UnsupportedFormatError(
            f"The signal file {quoted(file)} has the format {quoted(fields[1])}; expected one of "
            f"{', '.join(map(str, FORMATS))}, without skew. Convert it with `xform`, or save it as EDF."
        )
    check_name(file)
    gain, baseline, unit = DEFAULT_GAIN, None, "mV"
    if len(fields) > 2:
        parts = _GAIN.fullmatch(fields[2])
        if parts is None:
            raise ValueError(" ".join(fields)[:80])
        gain, unit = float(parts[1]) or DEFAULT_GAIN, parts[3] or "mV"
        baseline = int(parts[2]) if parts[2] else None
    baseline = (int(fields[4]) if len(fields) > 4 else 0) if baseline is None else baseline
    if not (math.isfinite(gain) and abs(baseline) < MAX_BASELINE):
        raise ValueError(" ".join(fields)[:80])
    return SignalLine(
        file, number, int(match[2] or 1) or 1, int(match[4] or 0), gain, baseline, unit,
        int(fields[6]) if len(fields) > 6 else None, " ".join(fields[8:]),
    )  # fmt: skip


def check_name(name: str) -> None:
    """Raises: UnsupportedFormatError for the name of a file outside of its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise UnsupportedFormatError(
            f"The record names the file {quoted(name)}, outside of its folder; expected a name without `..`. Pack it again."
        )


def read_record(header: Header, read: Callable[[str], bytes], limits: ReadLimits) -> Sample:
    """The signals of a record in physical units, at the highest rate of its signals. Raises: ImageError."""
    files: dict[str, list[int]] = {}  # the signals in each
    for index, line in enumerate(header.signals):
        files.setdefault(line.file, []).append(index)
    first = header.signals[0].file
    first_data = read(first)
    # Of all files, as that of the first one.
    length = header.length or _count_steps([header.signals[index] for index in files[first]], first_data)
    frames = [line.frame_samples for line in header.signals]
    check_signal_size(limits, length * max(frames), len(frames))
    table, columns = allocate_columns([length * frame for frame in frames])
    for file, indices in files.items():
        lines = [header.signals[index] for index in indices]
        data = first_data if file == first else read(file)
        _read_file(file, lines, length, data, [columns[index] for index in indices])
    names, units = ([getattr(line, field) for line in header.signals] for field in ("name", "unit"))
    if table is not None:
        return build_signal(table, header.rate * frames[0], names, units)
    return join_rates(columns, [header.rate * frame for frame in frames], names, units)


def _count_steps(lines: list[SignalLine], data: bytes) -> int:
    """The time steps in a file of these signals."""
    bits = max(0, len(data) - lines[0].offset) * 8
    return bits // FORMATS[lines[0].format][0] // sum(line.frame_samples for line in lines)


def _read_file(
    file: str, lines: list[SignalLine], length: int, data: bytes, columns: list[NDArray[np.float32]]
) -> None:
    """Fill the columns with the signals of one file, whose samples are interleaved. Raises: ImageError."""
    number, offset, frame = lines[0].format, lines[0].offset, sum(line.frame_samples for line in lines)
    if any((line.format, line.offset) != (number, offset) for line in lines):
        raise UnsupportedFormatError(f"The signals of the file {quoted(file)} have different formats. Save it as EDF.")
    bits, invalid, decode_bytes = FORMATS[number]
    content = np.frombuffer(data, np.uint8)[offset:]
    present = _count_steps(lines, data)
    if present < length:
        raise CorruptImageError(
            f"The signal file {quoted(file)} is truncated: it has {present:,} of {length:,} time steps. Copy it again."
        )
    allow_pixels(length * frame)
    sums = [0] * len(lines)
    for first in range(0, length, BLOCK_STEPS):
        steps = min(BLOCK_STEPS, length - first)
        packed = content[first * frame * bits // 8 : -(-(first + steps) * frame * bits // 8)]
        samples = decode_bytes(packed)[: steps * frame].reshape(steps, frame)
        start = 0
        for index, line in enumerate(lines):
            raw = samples[:, start : start + line.frame_samples].reshape(-1)
            start += line.frame_samples
            sums[index] += int(raw.sum(dtype=np.int64))
            values = columns[index][first * line.frame_samples :][: len(raw)]
            values[:] = (raw - np.float64(line.baseline)) / line.gain
            values[raw == invalid] = np.nan
    for line, total in zip(lines, sums, strict=True):
        if line.checksum is not None and (total - line.checksum) % (1 << 16):
            raise CorruptImageError(
                f"The checksum of the signal {quoted(line.name or line.file)} in {quoted(file)} is wrong: the header states "
                f"{line.checksum}. The file was altered or copied with errors; copy it again."
            )


def _read_members(data: bytes, limits: ReadLimits) -> dict[str, bytes]:
    """The files of a zip by name; nothing is written to disk. Raises: ImageError."""
    budget = max(BYTES_PER_PIXEL * limits.max_pixels, MIN_BYTES) + (1 << 20)

    def check(members: Sequence[zipfile.ZipInfo]) -> None:
        for member in members:
            check_name(member.filename)
        total = sum(member.file_size for member in members)
        if len(members) > MAX_MEMBERS or total > budget:
            raise ImageTooLargeError(
                f"The zip file unpacks to more than {budget:,} bytes or {MAX_MEMBERS} files. Send one record alone."
            )
        allow_pixels(total // 2)

    return read_members(
        data,
        check,
        lambda name, file: file.read(),
        lambda error: f"The zip file is truncated or corrupt ({quoted(first_line(error))}). Pack it again.",
    )
