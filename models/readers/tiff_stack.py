"""Reader of TIFF stacks: the pages of one file as the slices of a volume, D x H x W, or D x H x W x C with several bands.

ImageJ writes the distance of slices into the description of the first page, and the size of pixels into its resolution tags;
both are read. Axes are as stored: nothing says how the volume lies in a patient.
"""

import math
import re
import struct

import numpy as np

from models.errors import UnsupportedFormatError
from models.imaging import tiff_limits as tags
from models.imaging.tiff_limits import ImageFileDirectory, find_pages
from models.readers import tiff
from models.readers.limits import ReadLimits
from models.readers.volume_limits import check_volume
from models.sample import Sample
from models.spec import Spacing

sniff = tiff.sniff
DESCRIPTION, X_RESOLUTION, Y_RESOLUTION = 270, 282, 283
RATIONAL, ASCII, MAX_TEXT_BYTES = 5, 2, 1 << 20
MM_PER_UNIT = {
    "mm": 1.0,
    "millimeter": 1.0,
    "cm": 10.0,
    "um": 1e-3,
    "micron": 1e-3,
    "\u00b5m": 1e-3,
    "\\u00b5m": 1e-3,
    "nm": 1e-6,
}


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read all full-size pages; they must have one size and type. Raises: ImageError."""
    pages, has_more = find_pages(data, limits.max_pixels)
    if has_more:
        raise UnsupportedFormatError(
            f"The TIFF has more than {len(pages):,} pages. Split the stack, or save it as NIfTI."
        )
    first = pages[0]
    for index, page in enumerate(pages):
        if page.size != first.size:
            sizes = " and ".join(f"{width} x {height}" for width, height in (first.size, page.size))
            raise UnsupportedFormatError(
                f"The pages of the TIFF have different sizes, {sizes} (page {index + 1}); expected slices of one volume."
            )
        if not tiff.has_plain_samples(page):
            raise UnsupportedFormatError(
                f"Page {index + 1} of the TIFF has a palette, JPEG inside, or bits that are not whole bytes. Save the stack "
                "uncompressed or deflated, gray."
            )
    width, height = first.size
    bands, bits = first.first_value(tags.SAMPLES_PER_PIXEL, 1), first.first_value(tags.BITS_PER_SAMPLE, 1)
    _check_hyperstack(first)
    check_volume((len(pages), height, width), bands, max(1, bits // 8), limits)
    with tiff.translate_errors():
        top = tiff.decode_page(first, limits)
        values = np.empty((len(pages), *top.values.shape), top.values.dtype)
        values[0] = top.values
        for index, page in enumerate(pages[1:], 1):
            each = tiff.decode_page(page, limits)
            if (each.dtype, each.channels) != (top.dtype, top.channels):
                raise UnsupportedFormatError(
                    f"The pages of the TIFF differ: {top.describe()}, and {each.describe()} (page {index + 1}); expected slices "
                    "of one volume."
                )
            values[index] = each.values
    return Sample(values, "DHW", top.channels, _spacing(first))


def _check_hyperstack(page: ImageFileDirectory) -> None:
    """Raises: UnsupportedFormatError for ImageJ's stacks of several channels or times, whose pages are no slices."""
    text = _description(page)
    for axis in ("channels", "frames"):
        match = re.search(rf"^{axis}=(\d+)$", text, re.MULTILINE)
        if match and int(match[1]) > 1:
            raise UnsupportedFormatError(
                f"The TIFF is a hyperstack of {match[1]} {axis}. Save one stack for each (ImageJ: Image > Hyperstacks > Reduce "
                "Dimensionality), or an npz of depth x height x width x channels."
            )


def _spacing(page: ImageFileDirectory) -> Spacing | None:
    """The spacing that ImageJ wrote, in mm; None if it is not there, or in no unit of length."""
    text = _description(page)
    step, unit = (
        re.search(r"^spacing=([-\d.eE+]+)$", text, re.MULTILINE),
        re.search(r"^unit=(\S+)$", text, re.MULTILINE),
    )
    scale = MM_PER_UNIT.get(unit[1]) if unit else None
    per_unit = [_rational(page, tag) for tag in (Y_RESOLUTION, X_RESOLUTION)]
    if not step or scale is None or not all(per_unit):
        return None
    try:
        values = (abs(float(step[1])) * scale, *(scale / number for number in per_unit))
    except ValueError:
        return None
    usable = all(math.isfinite(value) and value > 0 for value in values)
    return Spacing(values=values, unit="mm") if usable else None


def _description(page: ImageFileDirectory) -> str:
    kind, count, offset = page.tags.get(DESCRIPTION, (0, 0, 0))
    return page.data[offset : offset + min(count, MAX_TEXT_BYTES)].decode("latin-1") if kind == ASCII else ""


def _rational(page: ImageFileDirectory, tag: int) -> float:
    kind, _, offset = page.tags.get(tag, (0, 0, 0))
    if kind != RATIONAL or offset + 8 > len(page.data):
        return 0.0
    above, below = struct.unpack_from(f"{page.encoding.byte_order}2I", page.data, offset)
    return above / below if below else 0.0
