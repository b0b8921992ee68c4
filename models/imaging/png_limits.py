"""PNG's chunks: whether they can be read in no time, and whether they held all the rows that the header claims.

Pillow unpacks up to 1 MB of every compressed text and profile: 20 MB of them keep it busy for a minute. And where the
pixels' stream ends early it leaves the rest of the image black, without a word.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from models.errors import CorruptImageError

# Some encoders write a chunk of data for each row.
BASE_CHUNKS, BYTES_PER_CHUNK = 10_000, 512  # so many chunks, and one more for each so many bytes of the file; 3 us each
MAX_COMPRESSED_CHUNKS = 100  # chunks of compressed text or of a profile, of which each unpacks to 1 MB: 3 ms each
_COMPRESSED_CHUNKS = {b"iCCP", b"zTXt", b"iTXt"}

# Of an interlaced PNG, each pass's (first column, first row, step of columns, step of rows): PNG, 8.2.
_ADAM7_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
_INFLATE_BYTES = 1 << 20  # bytes unpacked at once


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind, and from where to where its content stands."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place + 8, place + 8 + length
        place += 12 + length


def check_png(data: bytes, max_pixels: int) -> None:
    """Raises: BrokenImage for what no encoder writes."""
    packed, limit = 0, BASE_CHUNKS + len(data) // BYTES_PER_CHUNK
    for chunks, (kind, _, _) in enumerate(_chunks(data), 1):
        packed += kind in _COMPRESSED_CHUNKS
        if chunks > limit or packed > MAX_COMPRESSED_CHUNKS:
            what = (
                f"{packed:,} compressed texts or profiles" if packed > MAX_COMPRESSED_CHUNKS else f"{chunks:,} chunks"
            )
            raise CorruptImageError(f"The PNG holds {what} and more, which no program writes; save it again.")
        if kind == b"IEND":
            break


def check_png_rows(image: Image.Image, data: bytes) -> None:
    """Whether the stream of a loaded PNG held all its rows. Raises: BrokenImage.

    It is only unpacked again where one of the last two rows is black, or transparent, as missing ones are.
    """
    tail = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))
    if all(row.any() for row in tail):
        return
    wanted = _decompressed_size(data)
    unpacker, held = zlib.decompressobj(), 0
    for kind, start, end in _chunks(data):
        piece = data[start:end] if kind == b"IDAT" else b""
        while piece and held < wanted:
            held += len(unpacker.decompress(piece, _INFLATE_BYTES))
            piece = unpacker.unconsumed_tail
    held += len(unpacker.flush()) if held < wanted else 0
    if held < wanted:
        raise CorruptImageError(f"The PNG is truncated: its pixels are {held:,} bytes of {wanted:,}.")


def _decompressed_size(data: bytes) -> int:
    """Bytes of all rows, each with the byte that names its filter."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    pixel, total = bits * _SAMPLES_PER_PIXEL[colour], 0
    for column, row, across, down in _ADAM7_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - column) // across), -(-(height - row) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel // 8))
    return total
