"""What a JPEG, a WebP or a BMP says before any library reads it: its size, and whether it can be read in no time.

Pillow walks a header in Python: 30 MB of well-made comments keep it busy for 40 seconds, and fill half a gigabyte.
The limits here are far above what programs write, and each says what it is measured by.
"""

import re

from models.errors import CorruptImageError, ImageTooLargeError

# JPEG. libtiff has the same limit for the JPEGs in its files; libjpeg's own script has 10 scans, mozjpeg's up to 20.
# A scan of nothing costs 100 bytes, and a pass over all the image.
MAX_SCANS = 100
MAX_SEGMENTS = 10_000  # a profile has up to 255, a depth map some hundreds; 2 us each
MAX_JUNK_BYTES = 1 << 20  # bytes between the segments; 0.1 us each
MAX_EXIF_BYTES = 1 << 18  # bytes: a segment holds 64 KB, and Pillow strings several together; up to 1 us each

_MARKER = re.compile(rb"\xff([\x01-\xfe])", re.DOTALL)  # 0xFF00 is data, and 0xFFFF a filler
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_SOF_MARKERS, _PROGRESSIVE_SOF_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0xC2, 0xC6, 0xCA, 0xCE}
_STANDALONE_MARKERS = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers without a length, as Pillow reads them

# BMP.
MAX_RLE_BYTES = 4 << 20  # bytes of one in runs, which Pillow reads one by one: up to 0.4 us a byte


def check_jpeg(data: bytes, max_pixels: int) -> None:
    """Raises: BrokenImage for what no encoder writes."""
    place, segments, junk, exif, scans, progressive, components = 2, 0, 0, 0, 0, False, 0
    while (found := _MARKER.search(data, place, len(data) if scans else place + MAX_JUNK_BYTES)) is not None:
        marker = found[1][0]
        if not scans:  # behind it are pixels
            junk += found.start() - place
        place = found.end()
        if marker == _EOI and scans:
            break
        if marker in _STANDALONE_MARKERS:
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if marker in _SOF_MARKERS:
            progressive, components = (
                marker in _PROGRESSIVE_SOF_MARKERS,
                data[place + 7] if place + 7 < len(data) else 0,
            )
        elif marker == _SOS:
            scans += 1
            whole = not progressive and data[place + 2 : place + 3] == bytes([components])  # no more scans are read
            if whole or (scans == 1 and data.count(b"\xff\xda") <= MAX_SCANS):  # more may also be of thumbnails
                break
        elif marker == _APP1 and data.startswith(b"Exif\0\0", place + 2):
            exif += length
        place += max(length, 2)
        segments += 1
        if segments > MAX_SEGMENTS or scans > MAX_SCANS or junk > MAX_JUNK_BYTES or exif > MAX_EXIF_BYTES:
            raise CorruptImageError(
                f"The JPEG holds {_describe_excess(segments, scans, exif)}, which no program writes; save it again."
            )
    if found is None and not scans and place + MAX_JUNK_BYTES < len(data):
        raise CorruptImageError(
            f"The JPEG holds more than {MAX_JUNK_BYTES:,} bytes between its segments; it is broken."
        )


def _describe_excess(segments: int, scans: int, exif: int) -> str:
    if scans > MAX_SCANS:
        return f"more than {MAX_SCANS} scans"
    if segments > MAX_SEGMENTS:
        return f"more than {MAX_SEGMENTS:,} segments"
    return (
        f"{exif:,} bytes of EXIF"
        if exif > MAX_EXIF_BYTES
        else f"more than {MAX_JUNK_BYTES:,} bytes between its segments"
    )


def check_bmp(data: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLarge for a long BMP in runs."""
    if len(data) >= 34 and data[14] != 12 and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0") and len(data) > MAX_RLE_BYTES:
        raise ImageTooLargeError(
            f"The BMP is run-length encoded, with {len(data):,} bytes; of those {MAX_RLE_BYTES:,} are read. Save it as PNG."
        )


def check_webp(data: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLarge. The decoder makes its canvas when it is opened, before it can be asked for the size."""
    kind, size = data[12:16], (0, 0)
    if kind == b"VP8X" and len(data) >= 30:
        size = (1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
    elif kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    elif kind == b"VP8 " and len(data) >= 30:
        size = (data[26] | (data[27] & 0x3F) << 8, data[28] | (data[29] & 0x3F) << 8)
    check_size(*size, max_pixels)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises: ImageTooLarge."""
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}."
        )
