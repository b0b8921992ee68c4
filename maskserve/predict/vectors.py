"""Writes the mask of a raster as polygons, one feature a region: GeoJSON (RFC 7946) or GeoPackage (OGC 12-128r18).

The mask is a GeoTIFF, which was written in windows. GDAL traces it line by line over the whole raster, so that no window leaves a
seam, and the areas of a class's polygons add up to those of its pixels.
"""

import itertools
import json
import math
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio import features
from rasterio.warp import transform as transform_points

from models.errors import DataError
from models.spec import IGNORE_INDEX, BundleSpec

WGS84 = "EPSG:4326"
MAX_EDGE = 64.0  # pixels; longer edges get further corners before they are reprojected, because they become curves
GPKG_ID, GPKG_VERSION = 0x47504B47, 10300  # "GPKG", 1.3.0
UNDEFINED_CARTESIAN, CUSTOM_CRS = -1, 100_000  # identifiers of reference systems in a GeoPackage
TABLE = "regions"

Ring = list[tuple[float, float]]


class Region(NamedTuple):
    """A connected region of one class."""

    label: int
    rings: list[Ring]  # closed, in the target's CRS; the first is the outer one, the others are holes
    area: float  # in the square of the unit of the raster's CRS; square pixels without one


def write_vectors(mask: Path, target: Path, format: str, spec: BundleSpec, crs: str = "") -> None:
    """Write the regions of a mask, a GeoTIFF of labels, as `geojson` or `gpkg`.

    `crs`: `raster` keeps the raster's reference system, `EPSG:4326` is longitude and latitude; default: EPSG:4326 for GeoJSON, as
    RFC 7946 wants it, and `raster` for GeoPackage.
    Raises: DataError for a raster without CRS that must be reprojected; OSError if the file cannot be written.
    """
    with rasterio.open(mask, driver="GTiff") as raster:
        wants_degrees = crs == WGS84 or (not crs and format == "geojson" and raster.crs is not None)
        if wants_degrees and raster.crs is None:
            raise DataError(
                "the raster has no reference system, so that its polygons cannot be in EPSG:4326: use --crs raster."
            )
        target_crs = rasterio.CRS.from_epsg(4326) if wants_degrees else raster.crs
        same = target_crs is None or target_crs == raster.crs
        regions = _trace(raster, None if same else target_crs)
        if format == "geojson":
            _write_geojson(target, regions, spec, target_crs)
        else:
            try:
                _write_gpkg(target, regions, spec, target_crs)
            except sqlite3.Error as error:
                raise OSError(f"the GeoPackage cannot be written ({error})") from error


def _trace(raster: Any, target_crs: Any) -> Iterator[Region]:
    """The regions of all labels but 255. Pixels that touch at a corner only are two regions, so that rings are simple."""
    longest = MAX_EDGE * math.sqrt(abs(raster.transform.determinant))
    for geometry, value in features.shapes(
        rasterio.band(raster, 1), connectivity=4
    ):  # in the CRS, as GDAL traces a band
        if int(value) == IGNORE_INDEX:
            continue
        rings: list[Ring] = geometry["coordinates"]
        area = sum(abs(_signed_area(ring)) * (1 if index == 0 else -1) for index, ring in enumerate(rings))
        if target_crs is not None:
            rings = [_reproject(_densify(ring, longest), raster.crs, target_crs) for ring in rings]
        yield Region(int(value), [_turned(ring, index == 0) for index, ring in enumerate(rings)], area)


def _signed_area(ring: Ring) -> float:
    points = np.asarray(ring, np.float64)
    points = points - points[0]
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


def _turned(ring: Ring, outer: bool) -> Ring:
    """The ring in the direction of RFC 7946: outer rings counterclockwise, holes clockwise."""
    return ring if (_signed_area(ring) > 0) == outer else ring[::-1]


def _densify(ring: Ring, longest: float) -> Ring:
    """The ring with corners at most `longest` apart, in the unit of the CRS."""
    result: Ring = []
    for (x, y), (next_x, next_y) in itertools.pairwise(ring):
        parts = max(1, math.ceil(max(abs(next_x - x), abs(next_y - y)) / longest))
        result += [(x + (next_x - x) * part / parts, y + (next_y - y) * part / parts) for part in range(parts)]
    return [*result, ring[-1]]


def _reproject(ring: Ring, source: Any, target: Any) -> Ring:
    x, y = transform_points(source, target, [point[0] for point in ring], [point[1] for point in ring])
    if not all(map(math.isfinite, (*x, *y))):
        raise DataError(f"its coordinates cannot be converted to {WGS84}: use --crs raster.")
    return list(zip(x, y, strict=True))


def _properties(region: Region, spec: BundleSpec) -> dict[str, Any]:
    return {"label": region.label, "class": spec.classes[region.label].name, "area": region.area}


def _write_geojson(target: Path, regions: Iterable[Region], spec: BundleSpec, crs: Any) -> None:
    """One feature a line, written as they come. Another CRS than EPSG:4326 is named as in GeoJSON 2008, which GDAL reads."""
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if crs is not None and crs.to_epsg() != 4326:
        code = crs.to_epsg()
        head["crs"] = {
            "type": "name",
            "properties": {"name": f"urn:ogc:def:crs:EPSG::{code}" if code else crs.to_wkt()},
        }
    with target.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for index, region in enumerate(regions):
            feature = {
                "type": "Feature",
                "properties": _properties(region, spec),
                "geometry": {"type": "Polygon", "coordinates": region.rings},
            }
            file.write((",\n" if index else "\n") + json.dumps(feature, separators=(",", ":"), allow_nan=False))
        file.write("\n]}\n")


def _write_gpkg(target: Path, regions: Iterable[Region], spec: BundleSpec, crs: Any) -> None:
    """A GeoPackage with one table of polygons."""
    target.unlink(missing_ok=True)
    srs = _srs_row(crs)
    with closing(sqlite3.connect(target)) as database, database:
        database.execute(f"PRAGMA application_id = {GPKG_ID}")
        database.execute(f"PRAGMA user_version = {GPKG_VERSION}")
        for statement in GPKG_SCHEMA:
            database.execute(statement)
        database.executemany(
            "INSERT OR IGNORE INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)", [*REQUIRED_SRS, srs]
        )
        bounds = [math.inf, math.inf, -math.inf, -math.inf]

        def rows() -> Iterator[tuple[Any, ...]]:
            for region in regions:
                points = np.asarray(region.rings[0])
                low, high = points.min(axis=0), points.max(axis=0)
                bounds[:] = [*np.minimum(bounds[:2], low).tolist(), *np.maximum(bounds[2:], high).tolist()]
                blob = _gpkg_geometry(region.rings, srs[1], (low[0], high[0], low[1], high[1]))
                yield blob, *_properties(region, spec).values()

        database.executemany(f'INSERT INTO {TABLE} (geom, label, "class", area) VALUES (?, ?, ?, ?)', rows())
        extent = bounds if math.isfinite(bounds[0]) else [None] * 4
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, max_x, max_y, srs_id) "
            f"VALUES ('{TABLE}', 'features', ?, ?, ?, ?, ?, ?)",
            [spec.name, *extent, srs[1]],
        )
        database.execute(f"INSERT INTO gpkg_geometry_columns VALUES ('{TABLE}', 'geom', 'POLYGON', ?, 0, 0)", [srs[1]])


def _srs_row(crs: Any) -> tuple[str, int, str, int, str]:
    """Name, identifier, organization, its code, and WKT of a reference system."""
    if crs is None:
        return REQUIRED_SRS[0]
    code = crs.to_epsg()
    return (
        (f"EPSG:{code}", code, "EPSG", code, crs.to_wkt())
        if code
        else ("custom", CUSTOM_CRS, "NONE", CUSTOM_CRS, crs.to_wkt())
    )


def _gpkg_geometry(rings: list[Ring], srs: int, envelope: tuple[float, float, float, float]) -> bytes:
    """A polygon as GeoPackage stores it: a header with the envelope, then little-endian WKB."""
    header = b"GP" + struct.pack("<BBi4d", 0, 0b0000_0011, srs, *envelope)
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    parts += [struct.pack("<I", len(ring)) + np.asarray(ring, "<f8").tobytes() for ring in rings]
    return header + b"".join(parts)


# Required by the standard, whether they are used or not.
REQUIRED_SRS: list[tuple[str, int, str, int, str]] = [
    ("Undefined cartesian SRS", UNDEFINED_CARTESIAN, "NONE", -1, "undefined"),
    ("Undefined geographic SRS", 0, "NONE", 0, "undefined"),
    (
        "WGS 84 geodetic", 4326, "EPSG", 4326,
        'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
        'UNIT["degree",0.0174532925199433]]',
    ),
]  # fmt: skip
GPKG_SCHEMA = (
    "CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL, "
    "organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT)",
    "CREATE TABLE gpkg_contents (table_name TEXT PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, "
    "description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')), min_x DOUBLE, "
    "min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER, FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id))",
    "CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL, "
    "srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name), UNIQUE (table_name), "
    "FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name), FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id))",
    f'CREATE TABLE {TABLE} (fid INTEGER PRIMARY KEY AUTOINCREMENT, geom POLYGON, label INTEGER, "class" TEXT, area DOUBLE)',
)
