"""Reader of TIFF and GeoTIFF with any number of bands: integers and floats of 8 to 64 bits, strips or tiles, pixels or planes.

NumPy and zlib read uncompressed and deflated samples; LZW, PackBits, LZMA and Zstandard go through Pillow's libtiff. What
Pillow shows as a photograph by other means (JPEG inside, palettes, CMYK, bits that are not whole bytes) goes to the reader of
images. Directories and sizes are checked before (`models/imaging/tiff_limits.py`).
"""

import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from models.errors import (
    CorruptImageError,
    ImageError,
    InsufficientMemoryError,
    UnsupportedFormatError,
    first_line,
    quoted,
)
from models.imaging import tiff_limits as tags
from models.imaging.decode import UNASSOCIATED_ALPHA, is_opacity
from models.imaging.tiff_limits import EXTRA_SAMPLES, ImageFileDirectory, find_page
from models.readers import geotiff_tags, image
from models.readers.limits import ReadLimits
from models.readers.names import channel_names, to_sample_dtype
from models.sample import Sample
from models.spec import RGB_CHANNELS

SAMPLE_FORMAT, PREDICTOR, FILL_ORDER = 339, 317, 266
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, MASK = 0, 1, 2, 4  # values of PHOTOMETRIC
NO_COMPRESSION, DEFLATE, LIBTIFF = 1, (8, 32946), (5, 32773, 34925, 50000)  # values of COMPRESSION
ALPHA = (1, UNASSOCIATED_ALPHA)  # values of EXTRA_SAMPLES
KINDS = {1: "u", 2: "i", 3: "f"}  # values of SAMPLE_FORMAT
MAX_SEGMENTS = 1 << 20
BATCH_BYTES = 1 << 20  # of samples that are decoded at once: strips of one row are common


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like a TIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read all bands of the one full-size page; an alpha band becomes `valid`, if it is opacity. Raises: ImageError."""
    page = find_page(data, limits.max_pixels)
    if not has_plain_samples(page):
        return image.decode(data, limits)
    with translate_errors():
        return decode_page(page, limits)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raises: InsufficientMemoryError in place of MemoryError, CorruptImageError in place of a decoder's own errors."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise InsufficientMemoryError(
            "There is not enough free memory to decode the image. Use a smaller one."
        ) from error
    except Exception as error:  # Pillow's plugins raise exceptions of any class
        raise CorruptImageError(
            f"The TIFF is truncated or corrupt ({quoted(first_line(error))}). Save it again."
        ) from error


def has_plain_samples(page: ImageFileDirectory) -> bool:
    """Whether this reader reads the page: every band has the same type of whole bytes, and values mean themselves."""
    kinds = list(page.iterate_values(SAMPLE_FORMAT)) or [1]
    bits = list(page.iterate_values(tags.BITS_PER_SAMPLE)) or [1]
    compression = page.first_value(tags.COMPRESSION, 1)
    return (
        len(set(bits)) == 1
        and bits[0] in (8, 16, 32, 64)
        and set(kinds) <= set(KINDS)
        and len(set(kinds)) == 1
        and not (kinds[0] == 3 and bits[0] == 8)
        and compression in (NO_COMPRESSION, *DEFLATE, *LIBTIFF)
        and page.first_value(tags.PHOTOMETRIC, BLACK_IS_ZERO) in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
        and page.first_value(FILL_ORDER, 1) == 1
    )


def is_photograph(data: bytes, max_pixels: int) -> bool:
    """Whether the file is what `decode_image` shows whole: gray or RGB of 8 bits, with or without opacity, no nodata.

    Raises: as `find_page`, and CorruptImageError if the alpha band cannot be decoded.
    """
    page = find_page(data, max_pixels)
    if not has_plain_samples(page):
        return page.first_value(tags.BITS_PER_SAMPLE, 1) <= 8
    bands, extra = page.first_value(tags.SAMPLES_PER_PIXEL, 1), list(page.iterate_values(EXTRA_SAMPLES))
    colors = bands - sum(kind in ALPHA for kind in extra)
    return (
        page.first_value(tags.BITS_PER_SAMPLE) == 8
        and page.first_value(SAMPLE_FORMAT, 1) == 1
        and colors == (3 if page.first_value(tags.PHOTOMETRIC) == RGB else 1)
        and geotiff_tags.nodata(page) is None
        and (UNASSOCIATED_ALPHA not in extra or decode(data, ReadLimits(max_pixels)).valid is not None)
    )


def decode_page(page: ImageFileDirectory, limits: ReadLimits) -> Sample:
    """Read all bands of a page that `has_plain_samples`. Raises: ImageError, and what Pillow raises."""
    width, height = page.size
    bands = page.first_value(tags.SAMPLES_PER_PIXEL, 1)
    kind = KINDS[page.first_value(SAMPLE_FORMAT, 1)]
    dtype = np.dtype(f"{kind}{page.first_value(tags.BITS_PER_SAMPLE) // 8}")
    limits.check(height, width, bands, dtype.itemsize)
    values = to_sample_dtype(_read_samples(page, (height, width, bands), dtype))
    names = geotiff_tags.band_names(page, bands)
    photometric = page.first_value(tags.PHOTOMETRIC, BLACK_IS_ZERO)
    if photometric == RGB and bands >= 3:
        names = [name or color for name, color in zip(names, [*RGB_CHANNELS, *[""] * (bands - 3)], strict=True)]
    if photometric == WHITE_IS_ZERO and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    names, valid, kept = list(channel_names(names, bands)), None, list(range(bands))
    extra = list(page.iterate_values(EXTRA_SAMPLES))
    alpha = [bands - len(extra) + index for index, each in enumerate(extra) if each in ALPHA]
    associated = UNASSOCIATED_ALPHA not in extra
    if len(alpha) == 1 and 0 < alpha[0] < bands and (associated or is_opacity(values[:, :, alpha[0]])):
        valid = values[:, :, alpha[0]] != 0
        kept.remove(alpha[0])
        values, names = values[:, :, kept], [names[index] for index in kept]
        names = ["gray" if len(names) == 1 and name == "band1" else name for name in names]
    frame, spacing = geotiff_tags.georeference(page)
    return Sample(values, "HW", tuple(names), spacing, frame, geotiff_tags.nodata(page), valid)


def _read_samples(page: ImageFileDirectory, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """All samples, H x W x bands, in the machine's byte order."""
    height, width, bands = shape
    by_plane = page.first_value(tags.PLANAR_CONFIGURATION, 1) == 2 and bands > 1
    planes, depth = (bands, 1) if by_plane else (1, bands)
    tiled = tags.TILE_OFFSETS in page.tags
    if tiled:
        rows, columns = page.first_value(tags.TILE_HEIGHT), page.first_value(tags.TILE_WIDTH)
    else:
        rows, columns = min(page.first_value(tags.ROWS_PER_STRIP, height) or height, height), width
    if rows < 1 or columns < 1:
        raise CorruptImageError("The TIFF has tiles without a size. Save it again.")
    segments = _segments(page, tiled, planes * math.ceil(height / rows) * math.ceil(width / columns))
    if planes == 1 and (rows, columns) == (height, width):  # no copy beside the decoded one
        return _decode_segments(page, [next(segments)], [rows], (columns, depth), dtype)
    positions = [(top, left) for top in range(0, height, rows) for left in range(0, width, columns)]
    result = np.empty((planes, height, width, depth), dtype)
    at_once = max(1, BATCH_BYTES // (rows * columns * depth * dtype.itemsize))
    for target in result:
        for start in range(0, len(positions), at_once):
            batch = positions[start : start + at_once]
            heights = [rows if tiled else min(rows, height - top) for top, _ in batch]
            block = _decode_segments(page, [next(segments) for _ in batch], heights, (columns, depth), dtype)
            first = 0
            for (top, left), stored in zip(batch, heights, strict=True):
                kept = min(stored, height - top), min(columns, width - left)
                target[top : top + kept[0], left : left + kept[1]] = block[first : first + kept[0], : kept[1]]
                first += stored
    return np.ascontiguousarray(result[:, :, :, 0].transpose(1, 2, 0)) if by_plane else result[0]


def _segments(page: ImageFileDirectory, tiled: bool, count: int) -> Iterator[memoryview]:
    """The bytes of each strip or tile, in order. Raises: CorruptImageError."""
    offset_tag, size_tag = (
        (tags.TILE_OFFSETS, tags.TILE_BYTE_COUNTS) if tiled else (tags.STRIP_OFFSETS, tags.STRIP_BYTE_COUNTS)
    )
    offsets, sizes = list(page.iterate_values(offset_tag)), list(page.iterate_values(size_tag))
    if len(offsets) < count or len(sizes) < count or count > MAX_SEGMENTS:
        raise CorruptImageError(f"The TIFF has {len(offsets):,} of {count:,} strips or tiles. Save it again.")
    content = memoryview(page.data)
    ends = [offset + size for offset, size in zip(offsets[:count], sizes, strict=False)]
    if max(ends) > len(content):
        raise CorruptImageError("The TIFF is truncated: a strip or tile ends after the file. Save it again.")
    return (content[offset:end] for offset, end in zip(offsets, ends, strict=False))


def _decode_segments(
    page: ImageFileDirectory,
    contents: list[memoryview],
    heights: list[int],
    row_shape: tuple[int, int],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Strips or tiles below each other, rows x columns x samples, in the machine's byte order. Raises: CorruptImageError.

    All but the last have the same height.
    """
    row_bytes, shape = math.prod(row_shape) * dtype.itemsize, (sum(heights), *row_shape)
    compression = page.first_value(tags.COMPRESSION, 1)
    raw: Any
    if compression in LIBTIFF:
        raw = _decompress_with_libtiff(contents, heights, row_bytes, compression)
    else:
        parts = [_decompress(each, compression, rows * row_bytes) for each, rows in zip(contents, heights, strict=True)]
        raw = parts[0] if len(parts) == 1 else b"".join(parts)
    predictor = page.first_value(PREDICTOR, 1)
    if predictor == 3 and dtype.kind == "f":
        return _undo_float_predictor(np.frombuffer(raw, np.uint8), shape, dtype)
    block = np.frombuffer(raw, dtype.newbyteorder(page.encoding.byte_order)).reshape(shape)
    if predictor == 1:
        return block if block.dtype.isnative else block.astype(dtype)
    if predictor != 2 or dtype.kind == "f":
        raise UnsupportedFormatError(f"The TIFF has the predictor {predictor}. Save it without compression.")
    return np.cumsum(block.astype(dtype, copy=False), axis=1, dtype=dtype)


def _decompress(content: memoryview, compression: int, needed: int) -> Any:
    """The bytes of a strip or tile that is deflated, or not compressed. Raises: CorruptImageError."""
    raw = zlib.decompressobj().decompress(content, needed) if compression in DEFLATE else content[:needed]
    if len(raw) < needed:
        raise CorruptImageError(f"The TIFF is truncated: a strip or tile has {len(raw):,} of {needed:,} bytes.")
    return raw


def _undo_float_predictor(raw: NDArray[np.uint8], shape: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Predictor 3 (TIFF Technical Note 3): rows hold the differences of bytes, all first bytes before all second ones."""
    rows, columns, depth = shape
    result, at_once = np.empty(shape, dtype), max(1, BATCH_BYTES // max(1, columns * depth * dtype.itemsize))
    by_row = raw.reshape(rows, columns * dtype.itemsize, depth)
    for first in range(0, rows, at_once):  # the steps between need as much memory again, each
        summed = np.cumsum(by_row[first : first + at_once], axis=1, dtype=np.uint8)
        by_sample = summed.reshape(-1, dtype.itemsize, columns * depth).transpose(0, 2, 1)
        block = np.ascontiguousarray(by_sample).view(dtype.newbyteorder(">"))
        result[first : first + at_once] = block.reshape(-1, columns, depth)
    return result


def _decompress_with_libtiff(contents: list[memoryview], heights: list[int], row_bytes: int, compression: int) -> bytes:
    """Decompress strips or tiles as the strips of a TIFF of its own: gray, 8 bits, `row_bytes` pixels a row.

    All but the last have the same height. One call for many, because each costs more than it takes to decompress a few rows.
    """
    sizes = [len(each) for each in contents]
    end = 8 + sum(sizes) + sum(sizes) % 2  # of the strips; two tables of 32 bits follow, and the directory
    offsets = itertools.accumulate(sizes[:-1], initial=8)
    tables = struct.pack(f"<{len(sizes)}I", *offsets) + struct.pack(f"<{len(sizes)}I", *sizes)
    one = len(sizes) == 1  # a table of one number is in the entry itself
    entries = (
        (tags.WIDTH, 1, row_bytes), (tags.HEIGHT, 1, sum(heights)), (tags.BITS_PER_SAMPLE, 1, 8),
        (tags.COMPRESSION, 1, compression), (tags.PHOTOMETRIC, 1, BLACK_IS_ZERO),
        (tags.STRIP_OFFSETS, len(sizes), 8 if one else end), (tags.SAMPLES_PER_PIXEL, 1, 1),
        (tags.ROWS_PER_STRIP, 1, heights[0]),
        (tags.STRIP_BYTE_COUNTS, len(sizes), sizes[0] if one else end + len(tables) // 2),
    )  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries
    )
    header = b"II*\0" + struct.pack("<I", end + len(tables))
    image = TiffImageFile(io.BytesIO(b"".join([header, *contents, bytes(sum(sizes) % 2), tables, directory, bytes(4)])))
    image.load()
    return image.tobytes()
