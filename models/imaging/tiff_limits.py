"""Limits on TIFF directories, checked before any library reads the file: the number of pages and the size of the tags.

Pillow creates Python objects for every number and every strip of a directory before it knows the size of the image, so
that a file of 32 MB fills gigabytes. EXIF blocks are TIFF directories too; `orientation.py` reads them with this parser.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from models.errors import CorruptImageError, ImageTooLargeError, MultiFrameImageError, UnsupportedFormatError
from models.imaging.detect_format import camera_raw_advice, unsupported_format_error

NEW_SUBFILE_TYPE, SUBFILE_TYPE, WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT = 254, 255, 256, 257, 322, 323
COMPRESSION, PLANAR_CONFIGURATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP = 259, 284, 277, 278
STRIP_OFFSETS, STRIP_BYTE_COUNTS, TILE_OFFSETS, TILE_BYTE_COUNTS = 273, 279, 324, 325
BITS_PER_SAMPLE, EXTRA_SAMPLES = 258, 338
PHOTOMETRIC, ORIENTATION, SUB_IFDS, DNG_VERSION = 262, 274, 330, 50706
NESTED_IFDS = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow loads these directories with the image's own
REDUCED, MASK = 1, 4  # bits of SUBFILE
COLOR_FILTER_ARRAY = 32803  # value of PHOTOMETRIC: raw data of a camera's sensor

# Bytes per value, by TIFF type (TIFF 6.0, and BigTIFF's 16 to 18).
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
BYTE_TYPES = (1, 2, 6, 7)  # types whose values Pillow keeps as one string, not as one object each

# Far above what programs write: a scan with one strip per row and 65,535 rows has 131,070 values in some 20 tags.
MAX_IFD_VALUES = 400_000  # per directory
MAX_ENTRIES = 2_000  # per directory
MAX_STRIPS = 131_072  # strips or tiles of an uncompressed page, each of which Pillow decodes in Python: 5 us each
MAX_PAGES, MAX_CHAIN_ENTRIES = 1_000, 40_000  # later pages are not read
THUMBNAIL_SIDE = (
    512  # pixels; of two pages that are larger, none is taken for a thumbnail of the other unless it says so
)
SMALL_TILE_PIXELS = 1 << 22  # allowed under every pixel limit, because a tile may be larger than a small image


@dataclass(frozen=True)
class TiffEncoding:
    """How a file stores its numbers."""

    byte_order: Literal["<", ">"]
    is_bigtiff: bool  # BigTIFF has offsets of 64 bits


@dataclass(frozen=True)
class ImageFileDirectory:
    """The tags of one page. Offsets are bytes from the start of the file."""

    data: bytes  # the whole file
    encoding: TiffEncoding
    offset: int
    tags: dict[int, tuple[int, int, int]]  # tag -> (type, count, offset of its values)
    entry_count: int
    byte_length: int
    next_offset: int  # of the next directory; 0 for none

    def first_value(self, tag: int, default: int = 0) -> int:
        """The first value of a tag of integers; `default` if it has none."""
        return next(self.iterate_values(tag), default)

    def iterate_values(self, tag: int) -> Iterator[int]:
        """The values of a tag of integers, as far as they are within the file."""
        kind, count, offset = self.tags.get(tag, (0, 0, 0))
        if kind not in INTEGER_FORMATS:
            return
        size, end = TYPE_SIZES[kind], len(self.data)
        count = min(count, max(0, end - offset) // size)
        for start in range(offset, offset + count * size, 4096 * size):  # in parts: a count may be of millions
            part = min(4096, (offset + count * size - start) // size)
            yield from struct.unpack_from(f"{self.encoding.byte_order}{part}{INTEGER_FORMATS[kind]}", self.data, start)

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of the page's image, in pixels."""
        return self.first_value(WIDTH), self.first_value(HEIGHT)

    @property
    def pixel_count(self) -> int:
        """Width times height of the page's image."""
        return math.prod(self.size)

    @property
    def is_auxiliary(self) -> bool:
        """Whether the page declares itself a thumbnail, a level of a pyramid, or a mask."""
        return bool(self.first_value(NEW_SUBFILE_TYPE) & (REDUCED | MASK)) or self.first_value(SUBFILE_TYPE) == 2


def check_tiff(data: bytes, max_pixels: int) -> int:
    """Return the index of the page that holds the image: the only full-size one, usually the first.

    Raises: CorruptImageError, MultiFrameImageError, ImageTooLargeError; UnsupportedFormatError for a camera's raw file.
    """
    return _check_pages(data, max_pixels)[0]


def find_page(data: bytes, max_pixels: int) -> ImageFileDirectory:
    """The directory of that page. Raises: as `check_tiff`."""
    return _check_pages(data, max_pixels)[1]


def find_pages(data: bytes, max_pixels: int) -> tuple[list[ImageFileDirectory], bool]:
    """The pages of a stack, without thumbnails and masks, and whether the file has more than were read. Raises: as `check_tiff`."""
    pages, has_more = _read_pages(data)
    full = [page for page in pages if not page.is_auxiliary] or pages[:1]
    _reject_camera_raw(data, pages[0], True)
    _check_shared(full)
    for page in full:
        _check_tags(page)
        _check_strip_count(page)
        _check_strip_bytes(page)
        _check_tiles(page, max_pixels)
    return full, has_more


def _check_pages(data: bytes, max_pixels: int) -> tuple[int, ImageFileDirectory]:
    pages, has_more = _read_pages(data)
    full = [index for index, page in enumerate(pages) if _is_full(page, pages[0])]
    _reject_camera_raw(data, pages[0], bool(full))
    if len(full) > 1:
        count = f"more than {len(full):,}" if has_more else f"{len(full):,}"
        raise MultiFrameImageError(
            f"The TIFF has {count} full-size pages; expected one. Save the page that you want as a separate file."
        )
    chosen = full[0] if full else 0
    for page in pages[: chosen + 1]:  # Pillow reads those before it too
        _check_tags(page)
    page = pages[chosen]
    _check_strip_count(page)
    _check_strip_bytes(page)
    _check_tiles(page, max_pixels)
    return chosen, page


def _is_full(page: ImageFileDirectory, first: ImageFileDirectory) -> bool:
    """Whether a page is neither declared a thumbnail or a mask, nor small compared with the first page."""
    is_small = page.pixel_count * 2 <= first.pixel_count and max(page.size) < THUMBNAIL_SIDE
    return not page.is_auxiliary and not is_small


def check_bands(data: bytes) -> None:
    """For a TIFF that Pillow cannot read: refuse several bands that are no RGB image, as satellites' are. The file may be sound.

    Raises: UnsupportedFormatError.
    """
    first = read_first_directory(data)
    bands, bits = first.first_value(SAMPLES_PER_PIXEL, 1), first.first_value(BITS_PER_SAMPLE, 1)
    _, count, _ = first.tags.get(BITS_PER_SAMPLE, (0, 0, 0))
    is_truncated = len(list(first.iterate_values(BITS_PER_SAMPLE))) < count
    if bands > 1 and not is_truncated:
        raise UnsupportedFormatError(
            f"The TIFF has {bands} bands of {bits} bits that are not a gray or RGB image. Select three of them: `gdal_translate "
            "-b 3 -b 2 -b 1 IN.tif OUT.tif`, or segment it with `maskserve predict --format geotiff --bands 3,2,1`."
        )


def read_first_directory(data: bytes) -> ImageFileDirectory:
    """Read the first directory of a TIFF file or an EXIF block. Raises: CorruptImageError."""
    order: Literal["<", ">"] = ">" if data[:2] == b"MM" else "<"
    encoding = TiffEncoding(order, data[2:4] in (b"+\0", b"\0+"))
    offset = data[8:16] if encoding.is_bigtiff else data[4:8]
    if len(offset) < (8 if encoding.is_bigtiff else 4):
        raise CorruptImageError("The TIFF is truncated in its header. Save it again.")
    return _read_directory(data, encoding, struct.unpack(order + ("Q" if encoding.is_bigtiff else "I"), offset)[0])


def _read_directory(data: bytes, encoding: TiffEncoding, offset: int) -> ImageFileDirectory:
    """Raises: CorruptImageError if the directory is not entirely within the file, or has too many tags."""
    count_format, entry_format, offset_format = ("Q", "HHQ8s", "Q") if encoding.is_bigtiff else ("H", "HHI4s", "I")
    entry_size = struct.calcsize("<" + entry_format)
    start = offset + struct.calcsize("<" + count_format)
    if offset < 1 or start > len(data):
        raise CorruptImageError("The TIFF is truncated: a directory begins after the end of the file. Save it again.")
    (entries,) = struct.unpack_from(encoding.byte_order + count_format, data, offset)
    end = start + entries * entry_size
    if end > len(data):
        raise CorruptImageError("The TIFF is truncated in a directory. Save it again.")
    if entries > MAX_ENTRIES:
        raise CorruptImageError(
            f"The TIFF has a directory of {entries:,} tags; the limit is {MAX_ENTRIES:,}. Save it again."
        )
    tags: dict[int, tuple[int, int, int]] = {}
    inline = 8 if encoding.is_bigtiff else 4  # bytes of values that fit into an entry
    rows = struct.iter_unpack(encoding.byte_order + entry_format, data[start:end])
    for index, (tag, kind, count, value) in enumerate(rows):
        if kind not in TYPE_SIZES or tag in tags:  # the first of two equal tags counts, as in other readers
            continue
        values_at = start + (index + 1) * entry_size - inline
        if count * TYPE_SIZES[kind] > inline:
            values_at = struct.unpack(encoding.byte_order + offset_format, value)[0]
        tags[tag] = (kind, count, values_at)
    after = data[end : end + inline]
    next_offset = struct.unpack(encoding.byte_order + offset_format, after)[0] if len(after) == inline else 0
    return ImageFileDirectory(data, encoding, offset, tags, entries, end - offset, next_offset)


def _read_pages(data: bytes) -> tuple[list[ImageFileDirectory], bool]:
    """The chain of directories, and whether it continues after those that were read.

    A chain may be a loop, or cross itself in the middle of a directory; that of a real file is no longer than the file.
    """
    pages = [read_first_directory(data)]
    seen, length, entries = {pages[0].offset}, pages[0].byte_length, pages[0].entry_count
    while pages[-1].next_offset and pages[-1].next_offset not in seen:
        if len(pages) == MAX_PAGES or entries > MAX_CHAIN_ENTRIES or length > len(data):
            return pages, True
        seen.add(pages[-1].next_offset)
        try:
            pages.append(_read_directory(data, pages[-1].encoding, pages[-1].next_offset))
        except CorruptImageError:  # the pages before it are complete
            break
        length += pages[-1].byte_length
        entries += pages[-1].entry_count
    return pages, False


def _reject_camera_raw(data: bytes, first: ImageFileDirectory, has_full: bool) -> None:
    """Raises: UnsupportedFormatError for a raw file: a thumbnail, with the sensor's data in a directory below it."""
    has_nested_image = SUB_IFDS in first.tags and not has_full
    if DNG_VERSION in first.tags or has_nested_image or first.first_value(PHOTOMETRIC) == COLOR_FILTER_ARRAY:
        raise unsupported_format_error(
            data, camera_raw_advice("DNG" if DNG_VERSION in first.tags else "such as NEF or ARW")
        )


def _check_strip_count(page: ImageFileDirectory) -> None:
    """Raises: CorruptImageError if strips or tiles of an uncompressed image are missing: Pillow leaves them black."""
    height, planes = page.size[1], 1
    if page.first_value(PLANAR_CONFIGURATION) == 2:
        planes = page.first_value(SAMPLES_PER_PIXEL, 1)
    if STRIP_OFFSETS in page.tags:
        found = page.tags[STRIP_OFFSETS][1]
        expected = -(-height // max(1, page.first_value(ROWS_PER_STRIP, height))) * planes
    elif TILE_OFFSETS in page.tags:
        found = page.tags[TILE_OFFSETS][1]
        expected = math.prod(_tile_grid(page)) * planes
    else:
        return
    if page.first_value(COMPRESSION, 1) != 1:
        return
    if found < expected:
        raise CorruptImageError(
            f"The TIFF is truncated: it has {found:,} of {expected:,} strips or tiles. Save it again."
        )
    if found > MAX_STRIPS:
        raise CorruptImageError(
            f"The TIFF has {found:,} strips or tiles; the limit is {MAX_STRIPS:,}. Save it again, with larger ones."
        )


def _check_shared(pages: list[ImageFileDirectory]) -> None:
    """Raises: CorruptImageError if the pages of a stack share numbers or pixels, which are read again for each page."""
    size = len(pages[0].data)
    numbers = sum(
        count * TYPE_SIZES[kind] for page in pages for kind, count, _ in page.tags.values() if kind not in BYTE_TYPES
    )
    pixels = 0
    if numbers <= 2 * size:  # else there may be many more of them than bytes
        pixels = sum(sum(page.iterate_values(tag)) for page in pages for tag in (STRIP_BYTE_COUNTS, TILE_BYTE_COUNTS))
    if max(numbers, pixels) > 2 * size:
        raise CorruptImageError(
            f"The TIFF's pages have {max(numbers, pixels):,} bytes in all, more than the file's {size:,}. Save it again."
        )


def _check_strip_bytes(page: ImageFileDirectory) -> None:
    """Raises: CorruptImageError if compressed strips or tiles share their bytes: libtiff copies all bytes of each."""
    if page.first_value(COMPRESSION, 1) == 1:
        return
    for tag in (STRIP_BYTE_COUNTS, TILE_BYTE_COUNTS):
        total = sum(page.iterate_values(tag))
        if total > 2 * len(page.data):
            raise CorruptImageError(
                f"The TIFF has strips or tiles of {total:,} bytes in all, more than the file's {len(page.data):,}. Save it again."
            )


def _check_tiles(page: ImageFileDirectory, max_pixels: int) -> None:
    """Raises: ImageTooLargeError for tiles that are much larger than the image: whole tiles are decoded."""
    limit = max(max_pixels, SMALL_TILE_PIXELS)
    tile = page.first_value(TILE_WIDTH) * page.first_value(TILE_HEIGHT)
    total = tile * math.prod(_tile_grid(page))
    if tile > limit or total > 2 * limit:
        raise ImageTooLargeError(
            f"The TIFF has tiles of {tile:,} pixels, {total:,} in all; the limits are {limit:,} and {2 * limit:,}. "
            "Save it with smaller tiles."
        )


def _tile_grid(page: ImageFileDirectory) -> tuple[int, int]:
    """The numbers of columns and of rows of tiles."""
    width, height = page.size
    columns = -(-width // max(1, page.first_value(TILE_WIDTH, width)))
    return columns, -(-height // max(1, page.first_value(TILE_HEIGHT, height)))


def _check_tags(page: ImageFileDirectory, depth: int = 0) -> None:
    """Check the size of a page's tags, and of the directories that Pillow reads with it. Raises: CorruptImageError."""
    values = sum(count for kind, count, _ in page.tags.values() if kind not in BYTE_TYPES)
    if values > MAX_IFD_VALUES:
        raise CorruptImageError(
            f"The TIFF has a directory of {values:,} values; the limit is {MAX_IFD_VALUES:,}. Save it again, with larger "
            "strips or tiles."
        )
    for tag in NESTED_IFDS:
        if tag in page.tags and depth < 3:
            try:
                nested = _read_directory(page.data, page.encoding, page.first_value(tag))
            except CorruptImageError:  # corrupt EXIF is ignored
                continue
            _check_tags(nested, depth + 1)
