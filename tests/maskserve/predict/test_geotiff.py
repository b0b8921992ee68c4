"""GeoTIFF in, GeoTIFF out, by windows: the same labels as of the whole picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from maskserve.predict.config import Job
from maskserve.predict.geotiff import CACHE_BYTES, STRIP_BYTES, cache_of, in_blocks, label_raster
from models.bundle import SPEC, open_bundle, writing
from models.errors import ConfigError, EngineError, RunError
from models.imaging.decode import Labels
from models.inference.segmenter import Prediction, Segmenter
from models.outputs.options import Options
from models.spec import InputRule, Spec
from tests.fixtures_bundles import drawing
from tests.maskserve.predict.test_resume import largest_file
from tests.maskserve.predict_helpers import pictures, predict, rows
from tests.service.tiny_bundle import small_bundle

TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "small")


def write(file: Path, bands: np.ndarray, **told: Any) -> Path:
    """A raster of bands B x H x W, in UTM 33."""
    count, height, width = bands.shape
    told = {"crs": "EPSG:32633", "transform": TRANSFORM, **told}
    with rasterio.open(file, "w", "GTiff", width, height, count, dtype=bands.dtype, **told) as raster:
        raster.write(bands)
    return file


def mask(target: Path, name: str = "scene") -> Labels:
    with rasterio.open(target / f"{name}.tif") as raster:
        return np.asarray(raster.read(1))


def whole(bundle: Path, picture: np.ndarray, confidence: bool = False) -> Prediction:
    return Segmenter.load(open_bundle(bundle)).segment(np.ascontiguousarray(picture), confidence)


@pytest.mark.parametrize("size", [(300, 500), (1100, 1500), (2050, 700), (600, 2500)])
def test_windows_give_what_the_whole_gives(size: tuple[int, int], bundle: Path, tmp_path: Path) -> None:
    picture = drawing(*size)
    write(tmp_path / "scene.tif", picture.transpose(2, 0, 1))
    done, _ = predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    assert done
    wanted = whole(bundle, picture).labels
    assert (mask(tmp_path / "out") == wanted).all()
    (row,) = rows(tmp_path / "out")
    assert (row["height"], row["width"], row["mask"]) == (*size, "scene.tif")
    shares = {entry["label"]: entry["share"] for entry in row["classes"]}
    assert shares == {label: pytest.approx((wanted == label).mean(), abs=1e-6) for label in np.unique(wanted).tolist()}


def test_the_mask_lies_where_the_scene_does(bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "scene.tif", drawing(700, 900).transpose(2, 0, 1))
    predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    with rasterio.open(tmp_path / "out" / "scene.tif") as raster:
        assert (raster.crs, raster.transform) == (rasterio.CRS.from_epsg(32633), TRANSFORM)
        assert (raster.count, raster.dtypes[0], raster.nodata) == (1, "uint8", 255)
        assert raster.profile["tiled"] and raster.block_shapes == [(512, 512)] and raster.compression.value == "DEFLATE"
        palette = raster.colormap(1)
        for label, entry in enumerate(open_bundle(bundle).spec.classes):
            assert palette[label] == (*entry.rgb, 255)


def test_bands_scale_and_no_data(bundle: Path, tmp_path: Path) -> None:
    """As Sentinel-2's: near infrared first, reflectance times 10,000, 0 where nothing was seen."""
    picture = drawing(900, 1300)
    bands = np.concatenate([np.full((1, 900, 1300), 7), picture.transpose(2, 0, 1)[::-1].astype(int) * 40 + 1])
    bands[:, 100:300, 200:500] = 0
    bands[1, 400, 400] = 0  # black in one band is a colour
    write(tmp_path / "scene.tif", bands.astype(np.uint16), nodata=0)
    asked: dict[str, Any] = {"format": "geotiff", "bands": (4, 3, 2), "scale": (0.0, 10201.0)}
    predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", **asked)
    seen = (bands[[3, 2, 1]].clip(0, 10201) * (255 / 10201) + 0.5).astype(np.uint8).transpose(1, 2, 0)
    wanted = whole(bundle, seen).labels
    wanted[100:300, 200:500] = 255
    found = mask(tmp_path / "out")
    assert (found == 255).sum() == 200 * 300
    assert (found == wanted).mean() > 0.9999  # float32 and float64 round a sample in a million otherwise
    seal = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0]
    assert '"bands":[4,3,2],"scale":[0.0,10201.0]' in seal
    with pytest.raises(RunError, match=r"holds masks of bands 4,3,2, and now 1,2,3"):
        predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff", scale=(0.0, 10201.0))


def test_sixteen_bits_are_scaled_as_in_ordinary_pictures(bundle: Path, tmp_path: Path) -> None:
    bands = drawing(200, 300).transpose(2, 0, 1).astype(np.uint16) * 200
    write(tmp_path / "scene.tif", bands)
    predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    seen = (bands * np.float32(255 / 65535) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0)
    assert (mask(tmp_path / "out") == whole(bundle, seen).labels).mean() > 0.9999


def test_nan_and_alpha_are_no_data(bundle: Path, tmp_path: Path) -> None:
    picture = drawing(150, 200)
    floats = picture.transpose(2, 0, 1).astype(np.float32)
    floats[1, 20:40, 30:60] = np.nan
    write(tmp_path / "floats.tif", floats)
    alpha = np.full((1, 150, 200), 255, np.uint8)
    alpha[:, 20:40, 30:60] = 0
    told = {"photometric": "rgb", "alpha": "yes"}
    write(tmp_path / "alpha.tif", np.concatenate([picture.transpose(2, 0, 1), alpha]), **told)
    asked: dict[str, Any] = {"format": "geotiff", "scale": (0.0, 255.0)}
    assert predict(bundle, tmp_path / "floats.tif", tmp_path / "alpha.tif", out=tmp_path / "out", **asked)[0]
    void = np.zeros((150, 200), np.bool_)
    void[20:40, 30:60] = True
    for name in ("floats", "alpha"):
        assert ((mask(tmp_path / "out", name) == 255) == void).all(), name


def test_classes_and_confidence_are_left_out_as_in_pictures(bundle: Path, tmp_path: Path) -> None:
    picture = drawing(1100, 1200)
    write(tmp_path / "scene.tif", picture.transpose(2, 0, 1))
    options = Options(classes=("class 1", "class 2"), min_confidence=0.6)
    predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff", options=options)
    prediction = whole(bundle, picture, confidence=True)
    assert prediction.confidence is not None
    kept = np.isin(prediction.labels, (1, 2)) & (prediction.confidence >= 0.6)
    assert ((mask(tmp_path / "out") == np.where(kept, prediction.labels, 255)).mean()) > 0.9999


def test_what_is_no_raster_has_its_reason(bundle: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 1)
    write(tmp_path / "in" / "two.tif", np.zeros((2, 30, 30), np.uint8))
    write(tmp_path / "in" / "signed.tif", np.zeros((3, 30, 30), np.int16))
    write(tmp_path / "in" / "good.tif", drawing(30, 40).transpose(2, 0, 1))
    (tmp_path / "in" / "cut.tif").write_bytes((tmp_path / "in" / "good.tif").read_bytes()[:-900])
    done, _ = predict(bundle, tmp_path / "in", out=tmp_path / "out", format="geotiff")
    assert not done
    reasons = {Path(row["path"]).name: row.get("error", "") for row in rows(tmp_path / "out")}
    assert "0000.png: this is no GeoTIFF; without --format geotiff" in reasons["0000.png"]
    assert "this is no GeoTIFF that can be read" in reasons["cut.tif"]
    assert "it has 2 bands, and --bands asks for 1,2,3." in reasons["two.tif"]
    assert "its samples are int16: say with --scale LOW,HIGH" in reasons["signed.tif"]
    assert not reasons["good.tif"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["good.tif"]


def test_what_a_raster_cannot_be_asked(bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "scene.tif", drawing(30, 40).transpose(2, 0, 1))
    with pytest.raises(ConfigError, match="leave --min-area out"):
        predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff", options=Options(min_area=9))
    with pytest.raises(ConfigError, match="a service takes whole pictures alone"):
        predict("http://127.0.0.1:1", tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    spec = open_bundle(bundle).spec
    with writing(tmp_path / "fit") as new:
        for file in ("model.onnx",):
            (new / file).write_bytes((bundle / file).read_bytes())
        fit = Spec(**{**spec.model_dump(), "input": InputRule(rule="fit", side=64)})
        (new / SPEC).write_text(fit.model_dump_json())
    with pytest.raises(EngineError, match="windows of a raster need a bundle of the rule 'native'"):
        predict(tmp_path / "fit", tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_raster(bundle: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 1200, 1200), dtype=np.uint8)
    write(tmp_path / "scene.tif", noise)
    with largest_file(20_000), pytest.raises(RunError, match=r"scene.tif cannot be written .*the same command goes on"):
        predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    assert not (tmp_path / "out").exists()
    assert predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")[0]


@pytest.mark.parametrize("heights", [[1], [512], [700, 324, 1], [100] * 11, [1500]])
def test_rows_become_rows_of_blocks(heights: list[int]) -> None:
    whole = np.arange(sum(heights) * 3).reshape(-1, 3).astype(np.uint8)
    given = np.split(whole, np.cumsum(heights)[:-1])
    blocks = list(in_blocks(given))
    assert all(len(block) == 512 for block in blocks[:-1]) and len(blocks[-1]) <= 512
    assert (np.concatenate(blocks) == whole).all()


def test_a_stop_does_not_wait_for_the_end_of_a_scene(bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "scene.tif", drawing(1500, 2500).transpose(2, 0, 1))
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 1

    opened = open_bundle(bundle)
    job = Job(str(bundle), str(tmp_path / "out"), format="geotiff")
    with pytest.raises(RunError, match="stopped"):
        label_raster(Segmenter.load(opened), opened.spec, tmp_path / "scene.tif", tmp_path / "mask.tif", job, stopped)
    assert len(asked) == 2  # windows


def test_gdal_keeps_a_row_of_windows_of_strips(tmp_path: Path) -> None:
    bands = np.zeros((3, 64, 20_000), np.uint16)
    strips = write(tmp_path / "strips.tif", bands, blockysize=16)
    tiles = write(tmp_path / "tiles.tif", bands, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(strips) as scene:
        assert cache_of(scene, 1024) == 20_000 * (1024 + 32) * 3 * 2
        assert cache_of(scene, 65_536) == STRIP_BYTES
    with rasterio.open(tiles) as scene:
        assert cache_of(scene, 1024) == CACHE_BYTES
