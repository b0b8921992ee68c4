"""What GDAL and GeoTIFF 1.1 write into a TIFF's tags: names of bands, nodata, affine, CRS and spacing."""

import html
import math
import re
import struct

from models.imaging.tiff_limits import TYPE_SIZES, ImageFileDirectory
from models.sample import Frame
from models.spec import Spacing

GDAL_METADATA, GDAL_NODATA = 42112, 42113
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS = 33550, 33922, 34264, 34735
MODEL_TYPE, RASTER_TYPE, GEOGRAPHIC_CRS, PROJECTED_CRS = 1024, 1025, 2048, 3072  # keys of GEO_KEYS
GEOGRAPHIC, PIXEL_IS_POINT, USER_DEFINED = 2, 2, 32767
DOUBLE, MAX_TEXT_BYTES = 12, 1 << 20
# Not an XML parser: the file is untrusted, and only these items are needed.
BAND_NAME = re.compile(r'<Item\s+name="DESCRIPTION"\s+sample="(\d{1,4})"[^>]*>([^<]{1,200})</Item>')


def band_names(page: ImageFileDirectory, bands: int) -> list[str]:
    """The descriptions that GDAL gives to bands; "" for a band without one."""
    names = [""] * bands
    for index, name in BAND_NAME.findall(_text(page, GDAL_METADATA)):
        if int(index) < bands:
            names[int(index)] = html.unescape(name)
    return names


def nodata(page: ImageFileDirectory) -> float | None:
    """GDAL's value of missing samples; None without one. NaN is None: NaN samples are missing in any case."""
    try:
        value = float(_text(page, GDAL_NODATA).strip("\0 \n"))
    except ValueError:
        return None
    return None if math.isnan(value) else value


def georeference(page: ImageFileDirectory) -> tuple[Frame | None, Spacing | None]:
    """The affine from pixel corners to the CRS, and the size of a pixel; None without them."""
    keys = _geo_keys(page)
    code = keys.get(PROJECTED_CRS, keys.get(GEOGRAPHIC_CRS, 0))
    crs = f"EPSG:{code}" if 0 < code < USER_DEFINED else ""
    scale, tie, matrix = (_doubles(page, tag) for tag in (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION))
    if len(matrix) == 16:
        a, b, c, d, e, f = matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    elif len(scale) >= 2 and len(tie) == 6:
        a, b, d, e = scale[0], 0.0, 0.0, -scale[1]
        c, f = tie[3] - tie[0] * a, tie[4] - tie[1] * e
    else:
        return (Frame(crs=crs) if crs else None), None
    if keys.get(RASTER_TYPE) == PIXEL_IS_POINT:  # its coordinates are those of the centers
        c, f = c - (a + b) / 2, f - (d + e) / 2
    if not all(map(math.isfinite, (a, b, c, d, e, f))):
        return None, None
    rows, columns = math.hypot(b, e), math.hypot(a, d)
    unit = "degree" if keys.get(MODEL_TYPE) == GEOGRAPHIC else "m"
    spacing = Spacing(values=(rows, columns), unit=unit) if rows > 0 and columns > 0 else None
    return Frame((a, b, c, d, e, f), crs), spacing


def _geo_keys(page: ImageFileDirectory) -> dict[int, int]:
    """The GeoTIFF keys whose value is a short."""
    numbers = list(page.iterate_values(GEO_KEYS))[:4000]
    quads = (numbers[start : start + 4] for start in range(4, len(numbers) - 3, 4))
    return {key: value for key, location, count, value in quads if location == 0 and count == 1}


def _doubles(page: ImageFileDirectory, tag: int) -> list[float]:
    kind, count, offset = page.tags.get(tag, (0, 0, 0))
    if kind != DOUBLE or count > 1000 or offset + 8 * count > len(page.data):
        return []
    return list(struct.unpack_from(f"{page.encoding.byte_order}{count}d", page.data, offset))


def _text(page: ImageFileDirectory, tag: int) -> str:
    kind, count, offset = page.tags.get(tag, (2, 0, 0))
    size = min(count * TYPE_SIZES[kind], MAX_TEXT_BYTES)
    return bytes(page.data[offset : offset + size]).decode("utf-8", "replace")
