"""Limits on the chunks of a PNG, and a check that its pixel data holds every row.

Pillow decompresses up to 1 MB of every compressed text and profile: 20 MB of them take a minute. If the pixel data ends
early, it leaves the rest of the image black and reports no error.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from models.errors import CorruptImageError

# Allowed chunks: a base, plus one per 512 bytes of file, because some encoders write one for each row; 3 us each.
BASE_CHUNKS, BYTES_PER_CHUNK = 10_000, 512
MAX_COMPRESSED_CHUNKS = 100  # compressed texts and profiles, each of which decompresses to 1 MB in 3 ms
_COMPRESSED_CHUNKS = {b"iCCP", b"zTXt", b"iTXt"}

# Passes of an interlaced PNG: (first column, first row, step of columns, step of rows), PNG specification, 8.2.
_ADAM7_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_INFLATE_BYTES = 1 << 20  # decompressed at once


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's kind, and the offsets of its content's start and end."""
    offset = 8
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        yield kind, offset + 8, offset + 8 + length
        offset += 12 + length


def check_png(data: bytes, max_pixels: int) -> None:
    """Raises: CorruptImageError for more chunks than any encoder writes."""
    compressed, limit = 0, BASE_CHUNKS + len(data) // BYTES_PER_CHUNK
    for chunks, (kind, _, _) in enumerate(_chunks(data), 1):
        compressed += kind in _COMPRESSED_CHUNKS
        if compressed > MAX_COMPRESSED_CHUNKS:
            raise CorruptImageError(
                f"The PNG has more than {MAX_COMPRESSED_CHUNKS} compressed texts and profiles. Save it again."
            )
        if chunks > limit:
            raise CorruptImageError(f"The PNG has more than {limit:,} chunks. Save it again.")
        if kind == b"IEND":
            break


def check_png_rows(image: Image.Image, data: bytes) -> None:
    """Check that the pixel data of a loaded PNG held all its rows. Raises: CorruptImageError.

    Missing rows are black or transparent: the data is decompressed again only if one of the last two rows is.
    """
    tail = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))
    if all(row.any() for row in tail):
        return
    expected = _decompressed_size(data)
    inflater, found = zlib.decompressobj(), 0
    for kind, start, end in _chunks(data):
        piece = data[start:end] if kind == b"IDAT" else b""
        while piece and found < expected:
            found += len(inflater.decompress(piece, _INFLATE_BYTES))
            piece = inflater.unconsumed_tail
    found += len(inflater.flush()) if found < expected else 0
    if found < expected:
        raise CorruptImageError(
            f"The PNG is truncated: it has {found:,} of {expected:,} bytes of pixel data. Save it again."
        )


def _decompressed_size(data: bytes) -> int:
    """Bytes of all rows, each with the byte of its filter."""
    width, height, bits, color_type, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    pixel_bits, total = bits * _SAMPLES_PER_PIXEL[color_type], 0
    for column, row, column_step, row_step in _ADAM7_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - column) // column_step), -(-(height - row) // row_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel_bits // 8))
    return total
