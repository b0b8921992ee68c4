"""Limits on the sizes that an AVIF declares in its boxes and AV1 sequence headers, checked before libavif reads it.

libavif reports images of more than 16384 x 16384 pixels as corrupt. Up to that size it decodes the size of the coded
image, even if the container (`ispe`) declares a smaller one.
References: ISO/IEC 14496-12 (boxes), 23008-12 (items), AV1 specification 5.5.1 (sequence header).
"""

import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from models.errors import CorruptImageError, ImageTooLargeError
from models.imaging.header_limits import MAX_EXIF_BYTES, check_size

MAX_BOXES = 10_000  # a grid of 256 tiles has about a thousand
# Boxes that contain boxes -> bytes before the first of them.
CONTAINER_BOXES = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
# Tables, for whose entries libavif allocates memory; it searches the items once for each entry of `ipma` and `iref`.
TABLE_BOXES = {b"iinf", b"iloc", b"ipma", b"iref", b"grpl", b"stco", b"co64", b"stsc", b"stss", b"stts"}
MAX_TABLE_BYTES = 1 << 16  # a grid of 256 tiles needs 10 KB
MAX_SAMPLES = 10_000  # of a track, whose `stsz` may state any number in four bytes

# AV1's units (OBUs). libavif takes the first frame of an item, and decodes all others that follow it.
OBU_SEQUENCE_HEADER, OBU_FRAME_HEADER, OBU_FRAME = 1, 3, 6
MAX_FRAMES = 4  # of an item: a layered image has up to four
MAX_UNITS = 20_000  # of all items: an image in 4096 AV1 tiles may have a unit for each; 1 us each
SMALL_IMAGE_PIXELS = (
    1 << 22
)  # which all items of a file may have under every limit, because tiles may be larger than an image
MAX_CODED_IMAGES = 3  # images of the limit's size that all items may have in sum: color, transparency and a gain map


@dataclass
class BoxContents:
    """The facts that `check_avif` collects from the boxes."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height)
    item_types: dict[int, bytes] = field(default_factory=dict)  # item -> av01, Exif, ...
    item_extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # item -> (start, end) in the file
    first_samples: list[list[int]] = field(
        default_factory=list
    )  # of each track: [start, length]; a length of 0 is unknown
    box_count: int = 0


def check_avif(file: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLargeError if any declared size is too large, CorruptImageError for what no encoder writes."""
    data, found = memoryview(file), BoxContents()  # slices are not copied
    with suppress(struct.error, IndexError):  # truncated: libavif reports it better
        _walk_boxes(data, 0, len(data), found)
    for width, height in found.sizes:
        check_size(width, height, max_pixels)
    coded_images = [data[start : start + length if length else None] for start, length in found.first_samples]
    for item, extents in found.item_extents.items():
        kind, length = found.item_types.get(item), sum(max(0, end - start) for start, end in extents)
        if length > len(data):
            raise CorruptImageError(
                f"The AVIF has an item of {length:,} bytes, more than the file's {len(data):,}. Save it again."
            )
        if kind == b"Exif" and length > MAX_EXIF_BYTES:
            raise CorruptImageError(
                f"The AVIF has {length:,} bytes of EXIF; the limit is {MAX_EXIF_BYTES:,}. Save it again."
            )
        if kind == b"av01":
            pieces = [data[start:end] for start, end in extents]
            coded_images.append(pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces)))
    _check_coded_images(coded_images, max_pixels)


def _check_coded_images(images: list[memoryview], max_pixels: int) -> None:
    """Check the sizes and the frames of all AV1 images of a file."""
    units_left, pixels = MAX_UNITS, 0
    limit = MAX_CODED_IMAGES * max(max_pixels, SMALL_IMAGE_PIXELS)
    for image in images:
        width, height, frames = 0, 0, 0
        for kind, content in _iterate_units(image):
            units_left -= 1
            if kind == OBU_SEQUENCE_HEADER:
                size = _sequence_size(content[:256])
                check_size(*size, max_pixels)
                width, height = max((width, height), size, key=math.prod)
            elif kind == OBU_FRAME or (kind == OBU_FRAME_HEADER and content[:1] and content[0] < 128):
                frames += 1  # the highest bit of a header is set if it shows an earlier frame again
            if frames > MAX_FRAMES or units_left < 0:
                what = f"{MAX_UNITS:,} units" if units_left < 0 else f"{MAX_FRAMES} frames in one image"
                raise CorruptImageError(f"The AVIF has more than {what}. Save it again as a single image.")
        pixels += width * height * max(1, frames)
        if pixels > limit:
            raise ImageTooLargeError(
                f"The images in the AVIF have {pixels:,} pixels or more in all; the limit is {limit:,}. Use a smaller one."
            )


def _walk_boxes(data: memoryview, start: int, end: int, found: BoxContents) -> None:
    idat = 0
    for kind, inside, after in _iterate_boxes(data, start, end, found):
        if kind in TABLE_BOXES and after - inside > MAX_TABLE_BYTES:
            raise CorruptImageError(
                f"The AVIF has a table ({kind.decode()}) of {after - inside:,} bytes; the limit is {MAX_TABLE_BYTES:,}. "
                "Save it again as a single image."
            )
        if kind == b"trak":
            found.first_samples.append([0, 0])
        if kind in CONTAINER_BOXES:
            _walk_boxes(data, inside + CONTAINER_BOXES[kind], after, found)
        elif kind == b"ispe":
            found.sizes.append(struct.unpack_from(">II", data, inside + 4))
        elif kind == b"iinf":
            _walk_boxes(data, inside + (8 if data[inside] else 6), after, found)
        elif kind == b"infe" and data[inside] in (2, 3):
            item, _, name = struct.unpack_from(">HH4s" if data[inside] == 2 else ">IH4s", data, inside + 4)
            found.item_types[item] = name
        elif kind == b"idat":
            idat = inside
        elif kind in (b"stco", b"co64", b"stsz") and found.first_samples:
            _read_sample_table(data, kind, inside, found.first_samples[-1])
    for kind, inside, after in _iterate_boxes(data, start, end, found):
        if kind == b"iloc":
            _read_item_locations(data, inside, after, idat, found)


def _iterate_boxes(data: memoryview, start: int, end: int, found: BoxContents) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box's kind, and the offsets of its content's start and end."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        inside = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        after = end if length == 0 else min(start + length, end)
        found.box_count += 1
        if found.box_count > MAX_BOXES:
            raise CorruptImageError(f"The AVIF has more than {MAX_BOXES:,} boxes. Save it again.")
        if after < inside:
            return
        yield kind, inside, after
        start = after


def _read_item_locations(data: memoryview, offset: int, end: int, idat: int, found: BoxContents) -> None:
    """Read the item locations (`iloc`, ISO/IEC 14496-12, 8.11.3)."""
    version, sizes = data[offset], data[offset + 4 : offset + 6]
    width = {"offset": sizes[0] >> 4, "length": sizes[0] & 15, "base": sizes[1] >> 4, "index": sizes[1] & 15}  # bytes
    offset += 6

    def take(count: int) -> int:
        nonlocal offset
        offset += count
        if offset > end:
            raise IndexError
        found.box_count += 1
        return int.from_bytes(data[offset - count : offset], "big")

    for _ in range(take(4 if version == 2 else 2)):
        item = take(4 if version == 2 else 2)
        within_idat = version > 0 and take(2) & 15 == 1
        take(2)  # index of the file
        base = take(width["base"]) + (idat if within_idat else 0)
        for _ in range(take(2)):
            if version > 0:
                take(width["index"])
            start, length = base + take(width["offset"]), take(width["length"])
            found.item_extents.setdefault(item, []).append((start, start + length if length else len(data)))
            if found.box_count > 10 * MAX_BOXES:
                raise CorruptImageError(f"The AVIF has more than {10 * MAX_BOXES:,} item extents. Save it again.")


def _read_sample_table(data: memoryview, kind: bytes, inside: int, first_sample: list[int]) -> None:
    """Read the position or the length of a track's first frame. Raises: CorruptImageError for too many frames."""
    if kind == b"stsz":
        length, count = struct.unpack_from(">II", data, inside + 4)
        if count > MAX_SAMPLES:
            raise CorruptImageError(
                f"The AVIF has a track of {count:,} frames; expected a single image. Save one frame as an image."
            )
        first_sample[1] = length or (struct.unpack_from(">I", data, inside + 12)[0] if count else 0)
    elif data[inside + 4 : inside + 8] != bytes(4):
        first_sample[0] = struct.unpack_from(">I" if kind == b"stco" else ">Q", data, inside + 8)[0]


def _iterate_units(units: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the content of each AV1 unit (AV1, 5.3)."""
    offset = 0
    while offset + 1 < len(units):
        head = units[offset]
        offset += 2 if head & 4 else 1
        length, shift = len(units) - offset, 0
        if head & 2:  # the unit states its length, seven bits per byte
            length = 0
            while offset < len(units) and shift < 56:
                length |= (units[offset] & 127) << shift
                shift += 7
                offset += 1
                if units[offset - 1] < 128:
                    break
        yield head >> 3 & 15, units[offset : offset + length]
        offset += length


def _sequence_size(header: memoryview) -> tuple[int, int]:
    """The maximum (width, height) in a sequence header (AV1, 5.5.1)."""
    bits, left = int.from_bytes(header, "big"), 8 * len(header)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        return bits >> left & (1 << count) - 1 if left >= 0 else 0

    take(4)  # profile, still image
    if take(1):  # reduced header
        take(5)
    else:
        delay = -1
        if take(1):  # timing
            take(64)
            if take(1):
                zeros = 0
                while left > 0 and not take(1):
                    zeros += 1
                take(min(zeros, 32))
            if take(1):  # decoder model
                delay = take(5)
                take(42)
        shown = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay >= 0 and take(1):
                take(2 * (delay + 1) + 1)
            if shown and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return take(width_bits) + 1, take(height_bits) + 1
