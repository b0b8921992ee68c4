"""Polygons of rasters: GeoJSON and GeoPackage without seams, areas right, in the raster's CRS or EPSG:4326."""

import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio import features

from maskserve.predict.vectors import write_vectors
from models.errors import ConfigError, DataError
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.predict.test_geotiff import read_mask, segment_whole, write_raster
from tests.maskserve.predict_helpers import run_predict

SPEC = BundleSpec(
    name="land",
    classes=[ClassInfo(name=name, rgb=(0, 0, 0)) for name in ("ground", "crop", "water")],
    input=InputRule(rule="native"),
    architecture=Architecture(name="fcn"),
)
LABELS = np.zeros((700, 900), np.uint8)
LABELS[100:600, 200:700] = 1
LABELS[300:400, 300:500] = 2  # a hole in 1
LABELS[250:300, 250:300] = 2  # touches the other one at a corner
LABELS[:, 800:] = 255
PIXEL_AREA = 100.0  # m2


def read_geojson(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def read_gpkg(file: Path) -> list[tuple[str, float, list[np.ndarray]]]:
    """Class, area and rings of each feature."""
    rows = sqlite3.connect(file).execute('SELECT geom, "class", area FROM regions').fetchall()
    found = []
    for blob, name, area in rows:
        assert blob[:2] == b"GP" and struct.unpack_from("<i", blob, 4)[0] == 32633
        at, rings = 40, []
        order, kind, count = struct.unpack_from("<BII", blob, at)
        assert (order, kind) == (1, 3)
        at += 9
        for _ in range(count):
            (points,) = struct.unpack_from("<I", blob, at)
            rings.append(np.frombuffer(blob, "<f8", 2 * points, at + 4).reshape(-1, 2))
            at += 4 + 16 * points
        assert at == len(blob)
        found.append((name, area, rings))
    return found


def areas(content: dict[str, Any]) -> dict[str, float]:
    total: dict[str, float] = {}
    for feature in content["features"]:
        name = feature["properties"]["class"]
        total[name] = total.get(name, 0) + feature["properties"]["area"]
    return total


def test_areas_are_those_of_the_pixels_and_rings_draw_the_mask_again(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", LABELS[None])
    write_vectors(mask, tmp_path / "a.geojson", "geojson", SPEC, "raster")
    content = read_geojson(tmp_path / "a.geojson")
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    assert len(content["features"]) == 4  # ground, crop, and two of water
    for label, name in enumerate(("ground", "crop", "water")):
        assert areas(content)[name] == pytest.approx((label == LABELS).sum() * PIXEL_AREA, rel=1e-9)
    with rasterio.open(mask) as raster:
        shapes = [(feature["geometry"], feature["properties"]["label"]) for feature in content["features"]]
        assert np.array_equal(features.rasterize(shapes, LABELS.shape, 255, transform=raster.transform), LABELS)


def test_degrees_keep_the_area(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", LABELS[None])
    write_vectors(mask, tmp_path / "a.geojson", "geojson", SPEC)  # the default of GeoJSON, as RFC 7946 wants it
    content = read_geojson(tmp_path / "a.geojson")
    assert "crs" not in content
    for feature in content["features"]:
        rings = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        assert 14 < rings[0][:, 0].mean() < 16 and 48 < rings[0][:, 1].mean() < 49
        # An equal-area projection: cos(latitude) on the sphere, whose scale the ellipsoid changes by less than 0.5%.
        flat = [np.column_stack([np.deg2rad(ring[:, 0]), np.sin(np.deg2rad(ring[:, 1]))]) for ring in rings]
        signed = [float(np.sum(x[:-1, 0] * x[1:, 1] - x[1:, 0] * x[:-1, 1])) / 2 for x in (r - r[0] for r in flat)]
        assert signed[0] > 0 > max([*signed[1:], -1.0])  # RFC 7946: counterclockwise, holes clockwise
        assert sum(signed) * 6_378_137**2 == pytest.approx(feature["properties"]["area"], rel=0.01)


def test_a_geopackage_holds_the_same_regions(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", LABELS[None])
    write_vectors(mask, tmp_path / "a.gpkg", "gpkg", SPEC)
    found = read_gpkg(tmp_path / "a.gpkg")
    assert sorted(name for name, _, _ in found) == ["crop", "ground", "water", "water"]
    assert sum(area for name, area, _ in found if name == "crop") == (LABELS == 1).sum() * PIXEL_AREA
    database = sqlite3.connect(tmp_path / "a.gpkg")
    assert database.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
    assert database.execute("SELECT min_x, max_x, srs_id FROM gpkg_contents").fetchone() == (500_000, 508_000, 32633)
    assert (
        "UTM zone 33N"
        in database.execute("SELECT definition FROM gpkg_spatial_ref_sys WHERE srs_id = 32633").fetchone()[0]
    )


@pytest.mark.parametrize("format", ["geojson", "gpkg"])
def test_predict_leaves_no_seam_between_windows(format: str, bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(1100, 1500)
    write_raster(tmp_path / "scene.tif", image.transpose(2, 0, 1))
    complete, _ = run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format=format, crs="raster")
    assert complete
    written = [path.name for path in (tmp_path / "out").iterdir() if "manifest" not in path.name]
    assert written == [f"scene.{format}"]
    expected = segment_whole(bundle, image).labels
    regions = sum(
        len(list(features.shapes((expected == label).astype(np.uint8), expected == label, 4)))
        for label in np.unique(expected).tolist()
    )
    if format == "geojson":
        assert len(read_geojson(tmp_path / "out/scene.geojson")["features"]) == regions
    else:
        assert len(read_gpkg(tmp_path / "out/scene.gpkg")) == regions


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    mask = write_raster(tmp_path / "mask.tif", LABELS[None], crs=None)
    with pytest.raises(DataError, match="no reference system"):
        write_vectors(mask, tmp_path / "a.geojson", "geojson", SPEC, "EPSG:4326")
    write_vectors(mask, tmp_path / "a.geojson", "geojson", SPEC)  # as it is
    with pytest.raises(ConfigError, match="choose raster or EPSG:4326"):
        run_predict(tmp_path, mask, out=tmp_path, format="gpkg", crs="EPSG:3857")
    with pytest.raises(ConfigError, match="--crs is for"):
        run_predict(tmp_path, mask, out=tmp_path, format="geotiff", crs="raster")


def test_pixels_without_data_are_in_no_polygon(bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(300, 400)
    image[:100] = 0
    write_raster(tmp_path / "scene.tif", image.transpose(2, 0, 1), nodata=0)
    run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "mask", format="geotiff")
    run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geojson", crs="raster")
    labels = read_mask(tmp_path / "mask")
    total = sum(areas(read_geojson(tmp_path / "out/scene.geojson")).values())
    assert total == pytest.approx((labels != 255).sum() * PIXEL_AREA) and (labels[:100] == 255).all()
