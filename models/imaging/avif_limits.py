"""Limits on the sizes that an AVIF declares in its boxes and AV1 sequence headers, checked before libavif reads it.

libavif reports images of more than 16384 x 16384 pixels as corrupt. Up to that size it decodes the size of the coded
image, even if the container (`ispe`) declares a smaller one.
References: ISO/IEC 14496-12 (boxes), 23008-12 (items), AV1 specification 5.5.1 (sequence header).
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from models.errors import CorruptImageError
from models.imaging.header_limits import MAX_EXIF_BYTES, check_size

MAX_BOXES = 10_000  # a grid of 256 tiles has about a thousand
# Boxes that contain boxes -> bytes before the first of them.
CONTAINER_BOXES = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
OBU_SEQUENCE_HEADER, MAX_OBUS = 1, 64  # AV1's unit type; a sequence header is among the first units of an image


@dataclass
class BoxContents:
    """The facts that `check_avif` collects from the boxes."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height)
    item_types: dict[int, bytes] = field(default_factory=dict)  # item -> av01, Exif, ...
    item_extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # item -> (start, end) in the file
    sample_offsets: list[int] = field(default_factory=list)  # of the first frame of each track
    box_count: int = 0


def check_avif(data: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLargeError if any declared size is too large, CorruptImageError for what no encoder writes."""
    found = BoxContents()
    with suppress(struct.error, IndexError):  # truncated: libavif reports it better
        _walk_boxes(data, 0, len(data), found)
    for width, height in found.sizes:
        check_size(width, height, max_pixels)
    for item, kind in found.item_types.items():
        extents = found.item_extents.get(item, [])
        exif_bytes = sum(end - start for start, end in extents) if kind == b"Exif" else 0
        if exif_bytes > MAX_EXIF_BYTES:
            raise CorruptImageError(
                f"The AVIF has {exif_bytes:,} bytes of EXIF; the limit is {MAX_EXIF_BYTES:,}. Save it again."
            )
        if kind == b"av01" and extents:
            check_size(*_coded_size(b"".join(data[start:end] for start, end in extents)), max_pixels)
    for start in found.sample_offsets:
        check_size(*_coded_size(data[start:]), max_pixels)


def _walk_boxes(data: bytes, start: int, end: int, found: BoxContents) -> None:
    idat = 0
    for kind, inside, after in _iterate_boxes(data, start, end, found):
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
        elif kind in (b"stco", b"co64") and data[inside + 4 : inside + 8] != bytes(4):
            found.sample_offsets.append(struct.unpack_from(">I" if kind == b"stco" else ">Q", data, inside + 8)[0])
    for kind, inside, after in _iterate_boxes(data, start, end, found):
        if kind == b"iloc":
            _read_item_locations(data, inside, after, idat, found)


def _iterate_boxes(data: bytes, start: int, end: int, found: BoxContents) -> Iterator[tuple[bytes, int, int]]:
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


def _read_item_locations(data: bytes, offset: int, end: int, idat: int, found: BoxContents) -> None:
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


def _coded_size(units: bytes) -> tuple[int, int]:
    """(width, height) of the largest sequence header among the first units; (0, 0) if there is none."""
    offset, largest = 0, (0, 0)
    for _ in range(MAX_OBUS):
        if offset + 1 >= len(units):
            break
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
        if head >> 3 & 15 == OBU_SEQUENCE_HEADER:
            size = _sequence_size(units[offset : offset + min(length, 256)])
            largest = max(largest, size, key=lambda size: size[0] * size[1])
        offset += length
    return largest


def _sequence_size(header: bytes) -> tuple[int, int]:
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
