"""Polygons of a GeoTIFF in the coordinates of its reference system, in place of pixels."""

import json
import warnings
from typing import Any

import numpy as np

from maskserve.predict.config import is_installed
from models.errors import DataError, ImageError
from models.imaging.tiff_limits import ORIENTATION, read_first_directory

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags: GeoTIFF 1.1, annex B, and GDAL's rational polynomial coefficients.
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, GEO_KEYS, RPC_COEFFICIENTS = 33550, 33922, 34264, 34735, 50844


def georeference_polygons(data: bytes, encoded: bytes) -> bytes:
    """The format `json` with its polygons as (x, y) in the CRS of the image file `data`, and with `crs` and `transform`.

    `transform` is [a, b, c, d, e, f] of x = a col + b row + c, y = d col + e row + f. Pixel counts and `bbox` stay in pixels.
    Returns `encoded` itself for an image without georeference.
    Raises: DataError for a georeference that polygons cannot have, or without rasterio.
    """
    if not _has_georeference(data):
        return encoded
    if not is_installed("rasterio"):
        raise DataError(
            "it has a georeference, and polygons in its coordinates need rasterio: install the extra [geo], or use other --masks."
        )
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings(), rasterio.MemoryFile(data) as file:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with file.open(driver="GTiff") as raster:
                transform, crs, points = raster.transform, raster.crs, raster.gcps[0] or raster.rpcs
    except RasterioError as error:
        raise DataError(f"its georeference cannot be read ({error}).") from error
    if transform.is_identity:
        if points:
            raise DataError(
                "its georeference is control points or RPCs, which polygons cannot have: use --format geotiff."
            )
        return encoded
    if read_first_directory(data).first_value(ORIENTATION, 1) != 1:
        raise DataError("it has a georeference and an orientation, which contradict each other: remove one of them.")
    result = json.loads(encoded)
    matrix = np.array([[transform.a, transform.d], [transform.b, transform.e]])  # (col, row) @ matrix
    offset = np.array([transform.c, transform.f])

    def convert(ring: list[list[int]]) -> list[list[float]]:
        points: list[list[float]] = (np.array(ring, np.float64) @ matrix + offset).tolist()
        # A transform that flips an axis turns the direction of rings, which RFC 7946 prescribes.
        return points[::-1] if transform.determinant < 0 else points

    for entry in result["classes"]:
        polygons: Any = entry["polygons"]["coordinates"]
        entry["polygons"]["coordinates"] = [[convert(ring) for ring in polygon] for polygon in polygons]
    result["crs"], result["transform"] = crs.to_string() if crs else None, list(transform)[:6]
    return json.dumps(result, separators=(",", ":"), allow_nan=False).encode()


def _has_georeference(data: bytes) -> bool:
    if not data.startswith(TIFF_SIGNATURES):
        return False
    try:
        tags = read_first_directory(data).tags.keys()
    except ImageError:
        return False
    return bool(tags & {PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, GEO_KEYS, RPC_COEFFICIENTS})
