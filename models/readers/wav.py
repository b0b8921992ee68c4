"""Reader of WAV: PCM of 8, 16, 24 and 32 bits, as -1..1, and floats of 32 and 64 bits as they are."""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers.limits import ReadLimits
from models.readers.signal import build_signal, check_rate, check_signal_size
from models.sample import Sample

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # codes of formats; an extensible one has the code in its last field
STREAMED = 0xFFFFFFFF  # the length that a program writes which cannot go back to its header


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like a WAV file."""
    return data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read a recording; its channels are `channel1`, `channel2` ... Raises: ImageError."""
    if data.startswith(b"RF64"):
        raise UnsupportedFormatError("The WAV has more than 4 GB (RF64). Cut it into shorter files.")
    layout: tuple[int, int, int, int] | None = None
    for name, chunk in _chunks(data):
        if name == b"fmt " and len(chunk) >= 16:
            code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
            layout = (
                struct.unpack("<H", chunk[24:26])[0] if code == EXTENSIBLE and len(chunk) >= 26 else code,
                channels,
                rate,
                bits,
            )
        if name == b"data" and layout:
            return _read_samples(chunk, *layout, limits)
    raise CorruptImageError("The WAV has no format or no samples. Save it again.")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each chunk. Raises: CorruptImageError for a truncated one."""
    position, content = 12, memoryview(data)
    while position + 8 <= len(data):
        name, size = data[position : position + 4], struct.unpack("<I", data[position + 4 : position + 8])[0]
        start = position + 8
        if size == STREAMED:
            size = len(data) - start
        if start + size > len(data):
            raise CorruptImageError(
                f"The WAV is truncated: it has {len(data) - start:,} of {size:,} bytes of a chunk. Copy it again."
            )
        yield name, content[start : start + size]
        position = start + size + size % 2


def _read_samples(chunk: memoryview, code: int, channels: int, rate: int, bits: int, limits: ReadLimits) -> Sample:
    """Raises: ImageError."""
    if (code, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise UnsupportedFormatError(
            f"The WAV has samples of {bits} bits in the format {code}; expected PCM of 8, 16, 24 or 32 bits, or floats of 32 or "
            "64. Convert it to PCM."
        )
    width = bits // 8
    length = len(chunk) // max(1, width * channels)
    check_signal_size(limits, length, channels, width)
    raw = np.frombuffer(chunk, np.uint8, length * channels * width)
    return build_signal(_to_floats(raw, code, width).reshape(length, channels), check_rate(float(rate)))


def _to_floats(raw: NDArray[np.uint8], code: int, width: int) -> NDArray[np.floating]:
    if code == FLOAT:
        return raw.view(f"<f{width}")
    if width == 1:
        return (raw.astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw, width = wide.reshape(-1), 4
    values: NDArray[np.floating] = raw.view(f"<i{width}").astype(np.float64 if width == 4 else np.float32)
    return values / (1 << 8 * width - 1)
