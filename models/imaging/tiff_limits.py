"""TIFF's directories, read before any library does: how many pages there are, and whether their tags are sane.

Pillow makes Python objects of every number and every strip that a directory names, before it can be asked for the
size: a file of 32 MB so fills gigabytes. EXIF blocks are such directories too; their orientation is read here.
"""

import struct
from dataclasses import dataclass
from typing import Literal

from models.errors import BrokenImage, ImageTooLarge, NotAnImage, SeveralPictures
from models.imaging.detect_format import READABLE, raw

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT = 254, 255, 256, 257, 322, 323
COMPRESSION, PLANAR, SAMPLES, ROWS, STRIPS, TILES = 259, 284, 277, 278, 273, 324
PHOTOMETRIC, ORIENTATION, SUB_DIRECTORIES, DNG_VERSION = 262, 274, 330, 50706
NESTED = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow loads their directories with the picture's
REDUCED, MASK = 1, 4  # bits of SUBFILE
COLOUR_FILTER = 32803  # of PHOTOMETRIC: what the sensor saw

# Bytes of a number, by TIFF's type (TIFF 6.0, and BigTIFF's 16 to 18).
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
BYTES = (1, 2, 6, 7)  # types that are kept as one string, not as a number each

# Far above what is in use: a scan of a strip a row, 65,535 rows high, names 131,070 numbers in some 20 tags.
MAX_NUMBERS = 400_000  # of one directory
MAX_ENTRIES = 2_000  # of one directory
MAX_PAGES = 1_000  # looked at
SMALL_TILE = 1 << 22  # pixels: a tile may be larger than a small picture


@dataclass(frozen=True)
class Form:
    """How a file's numbers are written."""

    order: Literal["<", ">"]
    big: bool  # BigTIFF: places of 64 bits


@dataclass(frozen=True)
class Directory:
    """One page's tags: tag -> (type, count, where in the file its numbers stand)."""

    data: bytes
    form: Form
    place: int
    tags: dict[int, tuple[int, int, int]]
    entries: int
    length: int  # bytes
    next: int  # where the next one stands; 0 is none

    def number(self, tag: int, default: int = 0) -> int:
        """The first number of a tag of whole numbers."""
        kind, count, place = self.tags.get(tag, (0, 0, 0))
        if kind not in INTEGERS or not count or place + SIZES[kind] > len(self.data):
            return default
        return int(struct.unpack_from(self.form.order + INTEGERS[kind], self.data, place)[0])

    @property
    def pixels(self) -> int:
        """The picture's."""
        return self.number(WIDTH) * self.number(HEIGHT)

    @property
    def is_aside(self) -> bool:
        """Whether it says of itself that it is a thumbnail, a level of a pyramid, or a mask."""
        return bool(self.number(SUBFILE) & (REDUCED | MASK)) or self.number(OLD_SUBFILE) == 2


def check(data: bytes, max_pixels: int) -> int:
    """Which page of a TIFF is the picture: the only full one, mostly the first.

    Raises: BrokenImage, SeveralPictures, ImageTooLarge; NotAnImage for a camera's raw file.
    """
    pages, more = _pages(data)
    full = [number for number, page in enumerate(pages) if not page.is_aside and page.pixels * 2 > pages[0].pixels]
    _check_raw(data, pages[0], bool(full))
    if len(full) > 1:
        count = f"more than {len(full):,}" if more else f"{len(full):,}"
        raise SeveralPictures(f"The TIFF holds {count} full pages; save the one that you want as a file of its own.")
    chosen = full[0] if full else 0
    page = pages[chosen]
    _check_tags(page)
    _check_strips(page)
    tile = page.number(TILE_WIDTH) * page.number(TILE_HEIGHT)
    if tile > max(max_pixels, SMALL_TILE):
        raise ImageTooLarge(f"The TIFF has tiles of {tile:,} pixels; the limit is {max_pixels:,}.")
    return chosen


def exif_orientation(exif: bytes) -> int:
    """EXIF's orientation, 1..8; 0 where the block is broken or says nothing."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        told = _first(exif).number(ORIENTATION)
    except BrokenImage:
        return 0
    return told if 1 <= told <= 8 else 0


def _first(data: bytes) -> Directory:
    """Raises: BrokenImage."""
    order: Literal["<", ">"] = ">" if data[:2] == b"MM" else "<"
    form = Form(order, data[2:4] in (b"+\0", b"\0+"))
    place = data[8:16] if form.big else data[4:8]
    if len(place) < (8 if form.big else 4):
        raise BrokenImage("The TIFF is truncated in its header.")
    return _directory(data, form, struct.unpack(order + ("Q" if form.big else "I"), place)[0])


def _directory(data: bytes, form: Form, place: int) -> Directory:
    """Raises: BrokenImage where the file ends before it does."""
    count, entry, link = ("Q", "HHQ8s", "Q") if form.big else ("H", "HHI4s", "I")
    wide = struct.calcsize("<" + entry)
    start = place + struct.calcsize("<" + count)
    if place < 1 or start > len(data):
        raise BrokenImage("The TIFF is truncated: it names a directory beyond its end.")
    (entries,) = struct.unpack_from(form.order + count, data, place)
    end = start + entries * wide
    if end > len(data):
        raise BrokenImage("The TIFF is truncated in a directory.")
    tags: dict[int, tuple[int, int, int]] = {}
    inline = 8 if form.big else 4
    for number, (tag, kind, many, value) in enumerate(struct.iter_unpack(form.order + entry, data[start:end])):
        if kind not in SIZES or tag in tags:  # of two the first counts, as everywhere
            continue
        within = start + number * wide + wide - inline
        outside = many * SIZES[kind] > inline
        tags[tag] = (kind, many, struct.unpack(form.order + link, value)[0] if outside else within)
    after = data[end : end + inline]
    following = struct.unpack(form.order + link, after)[0] if len(after) == inline else 0
    return Directory(data, form, place, tags, entries, end - place, following)


def _pages(data: bytes) -> tuple[list[Directory], bool]:
    """The chain of directories, and whether there are more than were looked at.

    A chain may be a loop, or cross itself in the middle of a directory; that of a real file is no longer than the file.
    """
    pages = [_first(data)]
    seen, length = {pages[0].place}, pages[0].length
    while pages[-1].next and pages[-1].next not in seen:
        if len(pages) == MAX_PAGES or length > len(data):
            return pages, True
        seen.add(pages[-1].next)
        try:
            pages.append(_directory(data, pages[-1].form, pages[-1].next))
        except BrokenImage:  # the pages before it are whole
            break
        length += pages[-1].length
    return pages, False


def _check_raw(data: bytes, first: Directory, has_full: bool) -> None:
    """A raw file's first page is a thumbnail, and its picture, what the sensor saw, stands in a directory below."""
    below = SUB_DIRECTORIES in first.tags and not has_full
    if DNG_VERSION in first.tags or below or first.number(PHOTOMETRIC) == COLOUR_FILTER:
        kind = "DNG" if DNG_VERSION in first.tags else "such as NEF or ARW"
        raise NotAnImage(f"These {len(data):,} bytes are {raw(kind)}. Pictures are read as {READABLE}.")


def _check_strips(page: Directory) -> None:
    """Pillow leaves black what no strip or tile of an uncompressed picture covers."""
    width, height, planes = page.number(WIDTH), page.number(HEIGHT), 1
    if page.number(PLANAR) == 2:
        planes = page.number(SAMPLES, 1)
    if STRIPS in page.tags:
        named, wanted = page.tags[STRIPS][1], -(-height // max(1, page.number(ROWS, height))) * planes
    elif TILES in page.tags:
        across = -(-width // max(1, page.number(TILE_WIDTH, width)))
        named = page.tags[TILES][1]
        wanted = across * -(-height // max(1, page.number(TILE_HEIGHT, height))) * planes
    else:
        return
    if page.number(COMPRESSION, 1) == 1 and named < wanted:
        raise BrokenImage(f"The TIFF is truncated: it names {named:,} strips or tiles of {wanted:,}.")


def _check_tags(page: Directory, depth: int = 0) -> None:
    """Whether the tags of a page, and of the directories that Pillow reads with it, can be read in no time."""
    numbers = sum(count for kind, count, _ in page.tags.values() if kind not in BYTES)
    if numbers > MAX_NUMBERS or page.entries > MAX_ENTRIES:
        raise BrokenImage(
            f"The TIFF has a directory of {page.entries:,} tags with {numbers:,} numbers, which no program writes; "
            "save it again, with larger strips or tiles."
        )
    for tag in NESTED:
        if tag in page.tags and depth < 3:
            try:
                nested = _directory(page.data, page.form, page.number(tag))
            except BrokenImage:  # its EXIF is left aside
                continue
            _check_tags(nested, depth + 1)
