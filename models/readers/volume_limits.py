"""Limits of volumes, checked by the header before voxels are read, and streams that inflate no more than it promises."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, ImageTooLargeError, quoted
from models.imaging.cpu_budget import allow_pixels
from models.readers.limits import ReadLimits

MAX_RATIO = 1032  # deflate packs no more bytes into one (zlib's documentation, "Maximum Compression Factor")
CHUNK_BYTES = 1 << 20
FIRST_CHUNK_BYTES = (
    1 << 12
)  # of each member of a gzip: zlib copies what follows a member, and there may be thousands of empty ones
INFLATED_BYTES = 8 << 20  # at a time: a chunk may hold a thousand times its size


def check_volume(shape: Sequence[int], channels: int, sample_bytes: int, limits: ReadLimits) -> None:
    """Check a volume's lengths along its three axes, and allow a decoder process the CPU time for its voxels.

    Raises: ImageTooLargeError, CorruptImageError.
    """
    listed = " x ".join(map(str, shape))
    if min(shape) < 1 or channels < 1:
        raise CorruptImageError(f"The volume has no voxels: {listed}. Save it again.")
    voxels = math.prod(shape)
    if voxels > limits.max_voxels:
        raise ImageTooLargeError(
            f"The volume has {listed} = {voxels:,} voxels; the limit is {limits.max_voxels:,}. Crop it, or use a coarser one."
        )
    total, limit = voxels * channels * sample_bytes, 8 * limits.max_voxels
    if total > limit:
        raise ImageTooLargeError(
            f"The volume has {total:,} bytes of samples; the limit is {limit:,}. Use a smaller one, or fewer channels."
        )
    allow_pixels(voxels * channels)


def read_exactly(data: memoryview, count: int, compression: str, skip: int = 0) -> NDArray[np.uint8]:
    """`count` bytes of what `data` holds, after `skip` bytes; `compression`: `raw` or `gzip`.

    No more memory is touched than the bytes fill. Raises: CorruptImageError if there are fewer.
    """
    if compression == "raw":
        if skip < 0 or skip + count > len(data):
            raise _truncated(max(0, len(data) - skip), count)
        return np.frombuffer(data, np.uint8, count, skip)
    if skip + count > MAX_RATIO * len(data):
        raise _truncated(MAX_RATIO * len(data), count)
    result, filled, position = np.empty(skip + count, np.uint8), 0, 0
    view, inflater, chunk = result.data, zlib.decompressobj(wbits=31), FIRST_CHUNK_BYTES
    pending: bytes | memoryview = b""
    try:
        while filled < len(result):
            if inflater.eof:  # a gzip may have several members, one after the other
                position -= len(inflater.unused_data)
                inflater, chunk, pending = zlib.decompressobj(wbits=31), FIRST_CHUNK_BYTES, b""
            if not pending:
                pending = data[position : position + chunk]
                position, chunk = position + len(pending), min(2 * chunk, CHUNK_BYTES)
            if not len(pending):
                raise _truncated(max(0, filled - skip), count)
            part = inflater.decompress(pending, min(len(result) - filled, INFLATED_BYTES))
            view[filled : filled + len(part)] = part
            filled += len(part)
            pending = inflater.unconsumed_tail
        while not inflater.eof:  # what is left is the checksum, which is compared when it is read
            if not pending:
                pending = data[position : position + CHUNK_BYTES]
                position += len(pending)
            if not len(pending):
                raise CorruptImageError("The volume's gzip is truncated: its end is missing. Save or copy it again.")
            if inflater.decompress(pending, 1):  # more than the header promises, which is not read
                break
            pending = inflater.unconsumed_tail
    except zlib.error as error:
        raise CorruptImageError(f"The volume's gzip is corrupt ({quoted(str(error))}). Save it again.") from error
    return result[skip:]


def inflate_start(data: memoryview, count: int) -> bytes:
    """The first bytes, up to `count`, of a gzip; fewer if it has no more. Raises: CorruptImageError."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:CHUNK_BYTES], count)
    except zlib.error as error:
        raise CorruptImageError(f"The gzip is corrupt ({quoted(str(error))}). Save it again.") from error


def _truncated(found: int, expected: int) -> CorruptImageError:
    return CorruptImageError(
        f"The volume is truncated: its header promises {expected:,} bytes of samples, and it has at most {found:,}. Save it again."
    )
