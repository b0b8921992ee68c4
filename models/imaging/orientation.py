"""Orientation of an image as its EXIF block or XMP packet states it (EXIF 2.32, tag 274), and how to turn it upright."""

import re

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from models.errors import CorruptImageError
from models.imaging.tiff_limits import ORIENTATION, read_first_directory

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def apply_orientation(image: Image.Image) -> Image.Image:
    """Turn a loaded image upright. A TIFF is already: Pillow turns it when it loads it."""
    transpose = None if image.format == "TIFF" else TRANSPOSES.get(read_orientation(image))
    return image if transpose is None else image.transpose(transpose)


def read_orientation(image: Image.Image) -> int:
    """The orientation of an image, 1..8; 1, upright, if the file states none. Never raises.

    A PNG must be loaded, because it may state the orientation after its pixels; a TIFF must not be.
    Pillow's `getexif` would parse the whole block for this one number, and fail if any part of it is corrupt.
    """
    if isinstance(image, TiffImageFile):
        stated = image.tag_v2.get(ORIENTATION, 0)
    else:
        exif = image.info.get("exif") or _decode_hex_exif(image.info.get("Raw profile type exif"))
        stated = exif_orientation(exif) if exif else 0
    if stated in range(1, 9):
        return int(stated)
    # Pillow writes an AVIF's own rotation (`irot`, `imir`) into its EXIF block, so that its XMP does not count.
    xmp = image.info.get("xmp") if image.format != "AVIF" else None
    found = XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
    return int(found[1]) if found else 1


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1..8; 0 if the block is corrupt or has none."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        stated = read_first_directory(exif).first_value(ORIENTATION)
    except CorruptImageError:
        return 0
    return stated if 1 <= stated <= 8 else 0


def _decode_hex_exif(text: object) -> bytes:
    """ImageMagick's EXIF block in a PNG: a name, a length, and the block in hexadecimal digits, on lines of their own."""
    try:
        return bytes.fromhex("".join(str(text).split("\n")[3:])) if isinstance(text, str) else b""
    except ValueError:
        return b""
