"""Polygons of a GeoTIFF are in its coordinates, never silently in pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rasterio.control import GroundControlPoint

from maskserve.predict import geo_polygons
from models.outputs.options import OutputOptions
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.predict.test_geotiff import TRANSFORM, write_raster
from tests.maskserve.predict_helpers import read_rows, run_predict

POLYGONS = OutputOptions(masks="polygons")


def predict_json(bundle: Path, scene: Path, options: OutputOptions = POLYGONS) -> dict[str, Any]:
    out = scene.with_suffix("")
    assert run_predict(bundle, scene, out=out, format="json", options=options)[0]
    result: dict[str, Any] = json.loads((out / f"{scene.stem}.json").read_text())
    return result


def test_polygons_have_the_coordinates_of_the_crs(bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(40, 60)
    Image.fromarray(image).save(tmp_path / "plain.png")
    plain = predict_json(bundle, tmp_path / "plain.png")
    placed = predict_json(bundle, write_raster(tmp_path / "placed.tif", image.transpose(2, 0, 1)))
    assert (placed["crs"], placed["transform"]) == ("EPSG:32633", [10, 0, 500_000, 0, -10, 5_400_000])
    assert "crs" not in plain and [entry["bbox"] for entry in placed["classes"]] == [
        entry["bbox"] for entry in plain["classes"]
    ]
    for geo, pixel in zip(placed["classes"], plain["classes"], strict=True):
        for outlines, pixels in zip(geo["polygons"]["coordinates"], pixel["polygons"]["coordinates"], strict=True):
            for ring, corners in zip(outlines, pixels, strict=True):
                assert ring == [list(TRANSFORM @ tuple(corner)) for corner in corners[::-1]]
            x, y = np.array(outlines[0]).T
            assert x[:-1] @ y[1:] > x[1:] @ y[:-1]  # counterclockwise, as RFC 7946 requires


def test_other_masks_stay_in_pixels(bundle: Path, tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", synthetic_image(20, 30).transpose(2, 0, 1))
    assert "crs" not in predict_json(bundle, scene, OutputOptions(masks="rle"))


@pytest.mark.parametrize("case", ["points", "orientation", "without rasterio"])
def test_a_georeference_that_polygons_cannot_have(
    case: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    if case == "points":
        corners = [(0, 0), (0, 30), (20, 0), (20, 30)]
        options = {"transform": None, "gcps": [GroundControlPoint(row, col, col, -row) for row, col in corners]}
    scene = write_raster(tmp_path / "scene.tif", synthetic_image(20, 30).transpose(2, 0, 1), **options)
    if case == "orientation":
        monkeypatch.setattr(geo_polygons, "ORIENTATION", 277)  # the number of bands: GDAL writes no orientation but 1
    if case == "without rasterio":
        monkeypatch.setattr(geo_polygons, "is_installed", lambda package: False)
    complete, _ = run_predict(bundle, scene, out=tmp_path / "out", format="json", options=POLYGONS)
    (row,) = read_rows(tmp_path / "out")
    messages = {"points": "control points", "orientation": "an orientation", "without rasterio": "need rasterio"}
    assert not complete and messages[case] in row["error"]
