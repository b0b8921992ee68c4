"""AVIF's boxes and AV1's sequence headers: the sizes that the file claims, read before libavif is asked.

libavif refuses images of more than 16384 x 16384 pixels as if they were broken, and decodes up to that size whatever
the file says outside (`ispe`) where the coded image itself says another.
References: ISO/IEC 14496-12 (boxes), 23008-12 (items), AV1 specification 5.5.1 (sequence header).
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from models.errors import CorruptImageError
from models.imaging.header_limits import MAX_EXIF_BYTES, check_size

MAX_BOXES = 10_000  # a grid of 256 tiles has some thousand
CONTAINER_BOXES = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
OBU_SEQUENCE_HEADER, MAX_OBUS = 1, 64  # AV1's unit type; a sequence header stands among the first units of an image


@dataclass
class BoxContents:
    """What the boxes say that matters here."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height)
    item_types: dict[int, bytes] = field(default_factory=dict)  # of an item: av01, Exif, ...
    item_extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # of an item: (from, to) in the file
    sample_offsets: list[int] = field(default_factory=list)  # where tracks have their first frame
    box_count: int = 0


def check_avif(data: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLarge where any size that the file claims is; BrokenImage for what no encoder writes."""
    found = BoxContents()
    with suppress(struct.error, IndexError):  # what is cut off, libavif says better
        _walk_boxes(data, 0, len(data), found)
    for width, height in found.sizes:
        check_size(width, height, max_pixels)
    for item, kind in found.item_types.items():
        places = found.item_extents.get(item, [])
        if kind == b"Exif" and sum(end - start for start, end in places) > MAX_EXIF_BYTES:
            raise CorruptImageError(
                f"The AVIF holds more than {MAX_EXIF_BYTES:,} bytes of EXIF, which no program writes."
            )
        if kind == b"av01" and places:
            check_size(*_coded_size(b"".join(data[start:end] for start, end in places)), max_pixels)
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
    """Each box's kind, where its content begins, and where it ends."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        inside = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        after = end if length == 0 else min(start + length, end)
        found.box_count += 1
        if found.box_count > MAX_BOXES:
            raise CorruptImageError(
                f"The AVIF holds more than {MAX_BOXES:,} boxes, which no program writes; save it again."
            )
        if after < inside:
            return
        yield kind, inside, after
        start = after


def _read_item_locations(data: bytes, place: int, end: int, idat: int, found: BoxContents) -> None:
    """The item locations (`iloc`, ISO/IEC 14496-12, 8.11.3)."""
    version, sizes = data[place], data[place + 4 : place + 6]
    wide = {"offset": sizes[0] >> 4, "length": sizes[0] & 15, "base": sizes[1] >> 4, "index": sizes[1] & 15}
    place += 6

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > end:
            raise IndexError
        found.box_count += 1
        return int.from_bytes(data[place - count : place], "big")

    for _ in range(take(4 if version == 2 else 2)):
        item = take(4 if version == 2 else 2)
        within_idat = version > 0 and take(2) & 15 == 1
        take(2)  # of which file
        base = take(wide["base"]) + (idat if within_idat else 0)
        for _ in range(take(2)):
            if version > 0:
                take(wide["index"])
            start, length = base + take(wide["offset"]), take(wide["length"])
            found.item_extents.setdefault(item, []).append((start, start + length if length else len(data)))
            if found.box_count > 10 * MAX_BOXES:
                raise CorruptImageError("The AVIF lies in more pieces than any program writes; save it again.")


def _coded_size(units: bytes) -> tuple[int, int]:
    """(width, height) of the largest sequence header among the first units; (0, 0) where there is none."""
    place, largest = 0, (0, 0)
    for _ in range(MAX_OBUS):
        if place + 1 >= len(units):
            break
        head = units[place]
        place += 2 if head & 4 else 1
        length, shift = len(units) - place, 0
        if head & 2:  # it says its length, seven bits a byte
            length = 0
            while place < len(units) and shift < 56:
                length |= (units[place] & 127) << shift
                shift += 7
                place += 1
                if units[place - 1] < 128:
                    break
        if head >> 3 & 15 == OBU_SEQUENCE_HEADER:
            largest = max(
                largest, _sequence_size(units[place : place + min(length, 256)]), key=lambda size: size[0] * size[1]
            )
        place += length
    return largest


def _sequence_size(header: bytes) -> tuple[int, int]:
    """(width, height) that a sequence header allows for (AV1, 5.5.1)."""
    bits, left = int.from_bytes(header, "big"), 8 * len(header)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        return bits >> left & (1 << count) - 1 if left >= 0 else 0

    take(4)  # profile, still image
    if take(1):  # a reduced header
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
    wide, high = take(4) + 1, take(4) + 1
    return take(wide) + 1, take(high) + 1
