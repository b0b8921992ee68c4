"""Reader of EDF, EDF+C and BDF: recordings of sleep, EEG and other physiological signals (https://www.edfplus.info/specs/).

Channels of lower rates are resampled to the highest one. The channel of annotations is left out.
"""

import numpy as np

from models.errors import CorruptImageError, UnsupportedFormatError, quoted
from models.readers.limits import ReadLimits
from models.readers.resample import join_rates
from models.readers.signal import allocate_columns, build_signal, check_length, check_rate, check_signal_size, decode_24
from models.sample import Sample

MAGIC, BDF_MAGIC = b"0       ", b"\xffBIOSEMI"
HEADER_BYTES = 256  # of the recording, and of each signal
ANNOTATIONS = ("EDF ANNOTATIONS", "BDF ANNOTATIONS")
BLOCK_SAMPLES = 1 << 17  # of a signal that are decoded at a time
# The fields of all signals follow each other: label, transducer, unit, physical and digital range, filter, samples, reserved.
FIELD_BYTES = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like an EDF or a BDF."""
    return data.startswith((MAGIC, BDF_MAGIC))


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read a recording. Raises: ImageError."""
    width = 3 if data.startswith(BDF_MAGIC) else 2  # bytes of a sample
    if len(data) < HEADER_BYTES:
        raise CorruptImageError(
            f"The EDF is truncated: it has {len(data):,} of {HEADER_BYTES} bytes of header. Copy it again."
        )
    if data[192:236].upper().startswith((b"EDF+D", b"BDF+D")):
        raise UnsupportedFormatError(
            "The EDF is discontinuous (EDF+D): time is missing between its records. Save each part without gaps as a file."
        )
    records, seconds, count = (
        _number(data[236:244], "records"),
        _number(data[244:252], "duration"),
        _number(data[252:256], "signals"),
    )
    check_length(2, int(count))
    check_rate(1 / seconds if seconds > 0 else 0.0)
    start = HEADER_BYTES * (1 + int(count))
    if len(data) < start:
        raise CorruptImageError(f"The EDF is truncated: {len(data):,} of {start:,} bytes of header. Copy it again.")
    fields, position = [], HEADER_BYTES
    for size in FIELD_BYTES:
        fields.append([data[position + index * size : position + (index + 1) * size] for index in range(int(count))])
        position += size * int(count)
    labels = [field.decode("latin-1").strip() for field in fields[0]]
    lengths = [int(_number(field, "samples")) for field in fields[8]]
    record_bytes = width * sum(lengths)
    if min(lengths) < 0 or record_bytes < 1:
        raise CorruptImageError("The EDF states no samples a record. Export it again.")
    present = (len(data) - start) // record_bytes
    length = int(records) if records >= 0 else present  # -1: the recording was not finished
    if present < length:
        raise CorruptImageError(f"The EDF is truncated: it has {present:,} of {length:,} records. Copy it again.")
    kept = [index for index, label in enumerate(labels) if label.upper() not in ANNOTATIONS and lengths[index]]
    check_length(2, len(kept))
    check_signal_size(limits, length * max(lengths[index] for index in kept), len(kept), width)
    content = np.frombuffer(data, np.uint8, length * record_bytes, start).reshape(length, record_bytes)
    offsets = np.cumsum([0, *lengths]) * width
    table, columns = allocate_columns([length * lengths[index] for index in kept])
    for index, column in zip(kept, columns, strict=True):
        low, high, first, last = (_number(fields[field][index], "range") for field in (3, 4, 5, 6))
        if first >= last or low == high:
            raise CorruptImageError(f"The EDF states no range for the signal {quoted(labels[index])}. Export it again.")
        at_once = max(1, BLOCK_SAMPLES // lengths[index])
        for begin in range(0, length, at_once):
            raw = content[begin : begin + at_once, offsets[index] : offsets[index + 1]].tobytes()
            part = column[begin * lengths[index] : (begin + at_once) * lengths[index]]
            part[:] = (_integers(np.frombuffer(raw, np.uint8), width) - first) * ((high - low) / (last - first)) + low
    names, units = ([fields[field][index].decode("latin-1").strip() for index in kept] for field in (0, 2))
    rates = [lengths[index] / seconds for index in kept]
    return join_rates(columns, rates, names, units) if table is None else build_signal(table, rates[0], names, units)


def _integers(raw: np.ndarray, width: int) -> np.ndarray:
    if width == 2:
        return raw.view("<i2").astype(np.int32)
    return decode_24(raw)


def _number(field: bytes, what: str) -> float:
    """Raises: CorruptImageError."""
    text = field.decode("latin-1").strip().strip("\0")
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise CorruptImageError(f"The EDF header has {quoted(text)} where its {what} should be. Export it again.")
    return number
