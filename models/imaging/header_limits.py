"""Limits on the headers of JPEG, WebP and BMP, checked before any library reads the file.

Pillow parses headers in Python: 30 MB of valid comments take 40 seconds and half a gigabyte. The limits are far above
what programs write; each states the time that it bounds.
"""

import re
import struct

from models.errors import CorruptImageError, ImageTooLargeError

# JPEG. libtiff has the same limit for JPEG data in TIFF; libjpeg's default script has 10 scans, mozjpeg's up to 20.
# An empty scan takes 100 bytes of file, and costs a pass over the whole image.
MAX_SCANS = 100
MAX_SCAN_PIXELS = 1_000_000_000  # scans times pixels, if there are more than USUAL_SCANS; up to 5 ns each
USUAL_SCANS = 20
ARITHMETIC_SCAN_PIXELS, ARITHMETIC_SCANS = (
    200_000_000,
    10,
)  # the same with arithmetic coding, of which an empty scan costs 4 ns
MAX_SEGMENTS = 10_000  # a profile has up to 255, a depth map some hundreds; 2 us each
MAX_RESOURCES = 10_000  # Photoshop's blocks (8BIM), of which it writes some dozens; 1 us each
MAX_TABLE_BYTES = 1 << 18  # bytes of quantization tables, which a file states once or for each scan; 0.1 us each
MAX_JUNK_BYTES = 1 << 20  # bytes between the segments; 0.1 us each
MAX_EXIF_BYTES = 1 << 18  # a segment holds 64 KB, and Pillow concatenates several; up to 1 us each

_MARKER = re.compile(rb"\xff([\x01-\xfe])", re.DOTALL)  # 0xFF00 is data, and 0xFFFF padding
_MARKER_IN_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)  # without the restart markers
_SOS, _EOI, _APP1, _APP13, _DQT = 0xDA, 0xD9, 0xE1, 0xED, 0xDB
_SOF_MARKERS, _PROGRESSIVE_SOF_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0xC2, 0xC6, 0xCA, 0xCE}
_STANDALONE_MARKERS = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers without a length, as in Pillow

# Pixels, of any format. A column of 50 million pixels would be padded to 32 times its size for the network, has a run for each
# row of its mask, and takes gigabytes wherever a step keeps numbers by row. The longest panoramas have 200,000.
MAX_SIDE = 1_000_000

# BMP. Pillow decodes runs in Python, byte by byte and pixel by pixel.
MAX_RLE_BYTES = 2 << 20  # bytes of a run-length encoded file: up to 0.3 us each
MAX_RLE_PIXELS = 4_000_000  # 0.1 us each


def check_jpeg(data: bytes, max_pixels: int) -> None:
    """Raises: CorruptImageError for more segments, scans or EXIF than any encoder writes."""
    offset, segments, junk, exif, resources, tables = 2, 0, 0, 0, 0, 0
    scans, scan_limit, progressive, components = 0, MAX_SCANS, False, 0
    while True:
        pattern, end = (_MARKER_IN_SCAN, len(data)) if scans else (_MARKER, offset + MAX_JUNK_BYTES)
        found = pattern.search(data, offset, end)
        if found is None:
            break
        marker = found[1][0]
        if not scans:  # after a scan's header come pixels
            junk += found.start() - offset
        offset = found.end()
        if marker == _EOI and scans:
            break
        length = 0 if marker in _STANDALONE_MARKERS else int.from_bytes(data[offset : offset + 2], "big")
        if marker in _SOF_MARKERS:
            progressive = marker in _PROGRESSIVE_SOF_MARKERS
            components = data[offset + 7] if offset + 7 < len(data) else 0
            pixels = int.from_bytes(data[offset + 3 : offset + 5], "big") * int.from_bytes(
                data[offset + 5 : offset + 7], "big"
            )
            is_arithmetic = marker > 0xC8
            most, usual = (
                (ARITHMETIC_SCAN_PIXELS, ARITHMETIC_SCANS) if is_arithmetic else (MAX_SCAN_PIXELS, USUAL_SCANS)
            )
            scan_limit = min(MAX_SCANS, max(usual, most // max(1, pixels)))
        elif marker == _SOS:
            scans += 1
            # The decoder reads no scans after one that holds all components.
            is_last = not progressive and data[offset + 2 : offset + 3] == bytes([components])
            if is_last or (scans == 1 and data.count(b"\xff\xda") <= scan_limit):  # the count includes thumbnails
                break
        elif marker == _APP1 and data.startswith(b"Exif\0\0", offset + 2):
            exif += length
        elif marker == _APP13:
            resources += data.count(b"8BIM", offset, offset + length)
        elif marker == _DQT:
            tables += length
        offset += 0 if marker in _STANDALONE_MARKERS else max(length, 2)
        segments += 1
        for what, count, limit in (
            ("segments", segments, MAX_SEGMENTS),
            ("scans", scans, scan_limit),
            ("bytes between its segments", junk, MAX_JUNK_BYTES),
            ("bytes of EXIF", exif, MAX_EXIF_BYTES),
            ("Photoshop resources", resources, MAX_RESOURCES),
            ("bytes of quantization tables", tables, MAX_TABLE_BYTES),
        ):
            if count > limit:
                raise CorruptImageError(
                    f"The JPEG has {count:,} {what} or more; the limit is {limit:,}. Save it again."
                )
    if found is None and not scans and offset + MAX_JUNK_BYTES < len(data):
        raise CorruptImageError(
            f"The JPEG is corrupt: it has more than {MAX_JUNK_BYTES:,} bytes between its segments. Save it again."
        )


def check_bmp(data: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLargeError for a large run-length encoded BMP, which takes long to decode."""
    if len(data) < 34 or data[14] == 12 or data[30:34] not in (b"\1\0\0\0", b"\2\0\0\0"):
        return
    width, height = struct.unpack_from("<Ii", data, 18)
    for what, count, limit in (
        ("bytes", len(data), MAX_RLE_BYTES),
        ("pixels", width * abs(height), min(MAX_RLE_PIXELS, max_pixels)),
    ):
        if count > limit:
            raise ImageTooLargeError(
                f"The BMP is run-length encoded and has {count:,} {what}; the limit is {limit:,}. Save it as PNG."
            )


def check_webp(data: bytes, max_pixels: int) -> None:
    """Raises: ImageTooLargeError. The decoder allocates its canvas when it opens a file, before its size can be read."""
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
    """Raises: ImageTooLargeError for more than `max_pixels` pixels, or more than MAX_SIDE a side."""
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image has {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}. Use a smaller one."
        )
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(
            f"The image has {width} x {height} pixels; the limit is {MAX_SIDE:,} a side. Cut it into parts."
        )
