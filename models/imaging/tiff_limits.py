"""TIFF's directories, read before any library does: how many pages there are, and whether their tags are sane.

Pillow makes Python objects of every number and every strip that a directory names, before it can be asked for the
size: a file of 32 MB so fills gigabytes. EXIF blocks are such directories too; their orientation is read here.
"""

import struct
from dataclasses import dataclass
from typing import Literal

from models.errors import CorruptImageError, ImageTooLargeError, MultiFrameImageError, UnsupportedFormatError
from models.imaging.detect_format import READABLE_FORMATS, camera_raw_advice

NEW_SUBFILE_TYPE, SUBFILE_TYPE, WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT = 254, 255, 256, 257, 322, 323
COMPRESSION, PLANAR_CONFIGURATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, STRIP_OFFSETS, TILE_OFFSETS = (
    259,
    284,
    277,
    278,
    273,
    324,
)
PHOTOMETRIC, ORIENTATION, SUB_IFDS, DNG_VERSION = 262, 274, 330, 50706
NESTED_IFDS = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow loads their directories with the image's
REDUCED, MASK = 1, 4  # bits of SUBFILE
COLOUR_FILTER_ARRAY = 32803  # of PHOTOMETRIC: what the sensor saw

# Bytes of a number, by TIFF's type (TIFF 6.0, and BigTIFF's 16 to 18).
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
BYTE_TYPES = (1, 2, 6, 7)  # types that are kept as one string, not as a number each

# Far above what is in use: a scan of a strip a row, 65,535 rows high, names 131,070 numbers in some 20 tags.
MAX_IFD_VALUES = 400_000  # of one directory
MAX_ENTRIES = 2_000  # of one directory
MAX_PAGES = 1_000  # looked at
SMALL_TILE_PIXELS = 1 << 22  # pixels: a tile may be larger than a small image


@dataclass(frozen=True)
class TiffEncoding:
    """How a file's numbers are written."""

    byte_order: Literal["<", ">"]
    is_bigtiff: bool  # BigTIFF: places of 64 bits


@dataclass(frozen=True)
class ImageFileDirectory:
    """One page's tags: tag -> (type, count, where in the file its numbers stand)."""

    data: bytes
    encoding: TiffEncoding
    offset: int
    tags: dict[int, tuple[int, int, int]]
    entry_count: int
    byte_length: int  # bytes
    next_offset: int  # where the next one stands; 0 is none

    def first_value(self, tag: int, default: int = 0) -> int:
        """The first number of a tag of whole numbers."""
        kind, count, place = self.tags.get(tag, (0, 0, 0))
        if kind not in INTEGER_FORMATS or not count or place + TYPE_SIZES[kind] > len(self.data):
            return default
        return int(struct.unpack_from(self.encoding.byte_order + INTEGER_FORMATS[kind], self.data, place)[0])

    @property
    def pixel_count(self) -> int:
        """The image's."""
        return self.first_value(WIDTH) * self.first_value(HEIGHT)

    @property
    def is_auxiliary(self) -> bool:
        """Whether it says of itself that it is a thumbnail, a level of a pyramid, or a mask."""
        return bool(self.first_value(NEW_SUBFILE_TYPE) & (REDUCED | MASK)) or self.first_value(SUBFILE_TYPE) == 2


def check_tiff(data: bytes, max_pixels: int) -> int:
    """Which page of a TIFF is the image: the only full one, mostly the first.

    Raises: BrokenImage, SeveralImages, ImageTooLarge; NotAnImage for a camera's raw file.
    """
    pages, more = _read_pages(data)
    full = [
        number
        for number, page in enumerate(pages)
        if not page.is_auxiliary and page.pixel_count * 2 > pages[0].pixel_count
    ]
    _reject_camera_raw(data, pages[0], bool(full))
    if len(full) > 1:
        count = f"more than {len(full):,}" if more else f"{len(full):,}"
        raise MultiFrameImageError(
            f"The TIFF holds {count} full pages; save the one that you want as a file of its own."
        )
    chosen = full[0] if full else 0
    page = pages[chosen]
    _check_tags(page)
    _check_strip_count(page)
    tile = page.first_value(TILE_WIDTH) * page.first_value(TILE_HEIGHT)
    if tile > max(max_pixels, SMALL_TILE_PIXELS):
        raise ImageTooLargeError(f"The TIFF has tiles of {tile:,} pixels; the limit is {max_pixels:,}.")
    return chosen


def exif_orientation(exif: bytes) -> int:
    """EXIF's orientation, 1..8; 0 where the block is broken or says nothing."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        told = _read_first_directory(exif).first_value(ORIENTATION)
    except CorruptImageError:
        return 0
    return told if 1 <= told <= 8 else 0


def _read_first_directory(data: bytes) -> ImageFileDirectory:
    """Raises: BrokenImage."""
    order: Literal["<", ">"] = ">" if data[:2] == b"MM" else "<"
    form = TiffEncoding(order, data[2:4] in (b"+\0", b"\0+"))
    place = data[8:16] if form.is_bigtiff else data[4:8]
    if len(place) < (8 if form.is_bigtiff else 4):
        raise CorruptImageError("The TIFF is truncated in its header.")
    return _read_directory(data, form, struct.unpack(order + ("Q" if form.is_bigtiff else "I"), place)[0])


def _read_directory(data: bytes, form: TiffEncoding, place: int) -> ImageFileDirectory:
    """Raises: BrokenImage where the file ends before it does."""
    count, entry, link = ("Q", "HHQ8s", "Q") if form.is_bigtiff else ("H", "HHI4s", "I")
    wide = struct.calcsize("<" + entry)
    start = place + struct.calcsize("<" + count)
    if place < 1 or start > len(data):
        raise CorruptImageError("The TIFF is truncated: it names a directory beyond its end.")
    (entries,) = struct.unpack_from(form.byte_order + count, data, place)
    end = start + entries * wide
    if end > len(data):
        raise CorruptImageError("The TIFF is truncated in a directory.")
    tags: dict[int, tuple[int, int, int]] = {}
    inline = 8 if form.is_bigtiff else 4
    for number, (tag, kind, many, value) in enumerate(struct.iter_unpack(form.byte_order + entry, data[start:end])):
        if kind not in TYPE_SIZES or tag in tags:  # of two the first counts, as everywhere
            continue
        within = start + number * wide + wide - inline
        outside = many * TYPE_SIZES[kind] > inline
        tags[tag] = (kind, many, struct.unpack(form.byte_order + link, value)[0] if outside else within)
    after = data[end : end + inline]
    following = struct.unpack(form.byte_order + link, after)[0] if len(after) == inline else 0
    return ImageFileDirectory(data, form, place, tags, entries, end - place, following)


def _read_pages(data: bytes) -> tuple[list[ImageFileDirectory], bool]:
    """The chain of directories, and whether there are more than were looked at.

    A chain may be a loop, or cross itself in the middle of a directory; that of a real file is no longer than the file.
    """
    pages = [_read_first_directory(data)]
    seen, length = {pages[0].offset}, pages[0].byte_length
    while pages[-1].next_offset and pages[-1].next_offset not in seen:
        if len(pages) == MAX_PAGES or length > len(data):
            return pages, True
        seen.add(pages[-1].next_offset)
        try:
            pages.append(_read_directory(data, pages[-1].encoding, pages[-1].next_offset))
        except CorruptImageError:  # the pages before it are whole
            break
        length += pages[-1].byte_length
    return pages, False


def _reject_camera_raw(data: bytes, first: ImageFileDirectory, has_full: bool) -> None:
    """A raw file's first page is a thumbnail, and its image, what the sensor saw, stands in a directory below."""
    below = SUB_IFDS in first.tags and not has_full
    if DNG_VERSION in first.tags or below or first.first_value(PHOTOMETRIC) == COLOUR_FILTER_ARRAY:
        kind = "DNG" if DNG_VERSION in first.tags else "such as NEF or ARW"
        raise UnsupportedFormatError(
            f"These {len(data):,} bytes are {camera_raw_advice(kind)}. Images are read as {READABLE_FORMATS}."
        )


def _check_strip_count(page: ImageFileDirectory) -> None:
    """Pillow leaves black what no strip or tile of an uncompressed image covers."""
    width, height, planes = page.first_value(WIDTH), page.first_value(HEIGHT), 1
    if page.first_value(PLANAR_CONFIGURATION) == 2:
        planes = page.first_value(SAMPLES_PER_PIXEL, 1)
    if STRIP_OFFSETS in page.tags:
        named, wanted = (
            page.tags[STRIP_OFFSETS][1],
            -(-height // max(1, page.first_value(ROWS_PER_STRIP, height))) * planes,
        )
    elif TILE_OFFSETS in page.tags:
        across = -(-width // max(1, page.first_value(TILE_WIDTH, width)))
        named = page.tags[TILE_OFFSETS][1]
        wanted = across * -(-height // max(1, page.first_value(TILE_HEIGHT, height))) * planes
    else:
        return
    if page.first_value(COMPRESSION, 1) == 1 and named < wanted:
        raise CorruptImageError(f"The TIFF is truncated: it names {named:,} strips or tiles of {wanted:,}.")


def _check_tags(page: ImageFileDirectory, depth: int = 0) -> None:
    """Whether the tags of a page, and of the directories that Pillow reads with it, can be read in no time."""
    numbers = sum(count for kind, count, _ in page.tags.values() if kind not in BYTE_TYPES)
    if numbers > MAX_IFD_VALUES or page.entry_count > MAX_ENTRIES:
        raise CorruptImageError(
            f"The TIFF has a directory of {page.entry_count:,} tags with {numbers:,} numbers, which no program writes; "
            "save it again, with larger strips or tiles."
        )
    for tag in NESTED_IFDS:
        if tag in page.tags and depth < 3:
            try:
                nested = _read_directory(page.data, page.encoding, page.first_value(tag))
            except CorruptImageError:  # its EXIF is left aside
                continue
            _check_tags(nested, depth + 1)
