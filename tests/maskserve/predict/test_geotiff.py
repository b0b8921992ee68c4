"""GeoTIFFs, segmented in windows: the same labels as for the whole image."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from maskserve.predict.config import PredictConfig
from maskserve.predict.geotiff import (
    GDAL_CACHE_BYTES,
    MAX_STRIP_CACHE_BYTES,
    gdal_cache_bytes,
    segment_raster,
    split_into_blocks,
    utf8_path,
)
from models.bundle import SPEC_FILE, bundle_writer, open_bundle
from models.errors import ConfigError, DataError, EngineError, RunError
from models.imaging.decode import Labels
from models.inference.segmenter import Prediction, Segmenter
from models.outputs.options import OutputOptions
from models.readers.prepare import prepare_sample
from models.sample import Sample as ImageSample
from models.spec import Architecture, BundleSpec, ClassInfo, InputRule
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.predict.test_resume import limit_file_size
from tests.maskserve.predict_helpers import read_rows, run_predict, write_images

TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)


def write_raster(file: Path, bands: np.ndarray, **options: Any) -> Path:
    """Write a raster of bands B x H x W, in UTM 33."""
    count, height, width = bands.shape
    options = {"crs": "EPSG:32633", "transform": TRANSFORM, **options}
    with rasterio.open(file, "w", "GTiff", width, height, count, dtype=bands.dtype, **options) as raster:
        raster.write(bands)
    return file


def read_mask(folder: Path, name: str = "scene") -> Labels:
    with rasterio.open(folder / f"{name}.tif") as raster:
        return np.asarray(raster.read(1))


def segment_whole(bundle: Path, image: np.ndarray, confidence: bool = False) -> Prediction:
    return Segmenter.load(open_bundle(bundle)).segment(np.ascontiguousarray(image), confidence)


@pytest.mark.parametrize("size", [(300, 500), (1100, 1500), (600, 2500)])
def test_the_labels_equal_those_of_the_whole_image(size: tuple[int, int], bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(*size)
    write_raster(tmp_path / "scene.tif", image.transpose(2, 0, 1))
    complete, _ = run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    assert complete
    expected = segment_whole(bundle, image).labels
    assert (read_mask(tmp_path / "out") == expected).all()
    (row,) = read_rows(tmp_path / "out")
    assert (row["height"], row["width"], row["mask"]) == (*size, "scene.tif")
    fractions = {entry["label"]: entry["fraction"] for entry in row["classes"]}
    labels = np.unique(expected).tolist()
    assert fractions == {label: pytest.approx((expected == label).mean(), abs=1e-6) for label in labels}


def test_the_mask_has_the_georeference_of_the_raster(bundle: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", synthetic_image(700, 900).transpose(2, 0, 1))
    run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    with rasterio.open(tmp_path / "out" / "scene.tif") as raster:
        assert (raster.crs, raster.transform) == (rasterio.CRS.from_epsg(32633), TRANSFORM)
        assert (raster.count, raster.dtypes[0], raster.nodata) == (1, "uint8", 255)
        assert raster.profile["tiled"] and raster.block_shapes == [(512, 512)] and raster.compression.value == "DEFLATE"
        palette = raster.colormap(1)
        for label, entry in enumerate(open_bundle(bundle).spec.classes):
            assert palette[label] == (*entry.rgb, 255)


def test_bands_scale_and_no_data(bundle: Path, tmp_path: Path) -> None:
    """As in Sentinel-2: near infrared first, reflectance times 10,000, 0 is no data."""
    image = synthetic_image(900, 1300)
    bands = np.concatenate([np.full((1, 900, 1300), 7), image.transpose(2, 0, 1)[::-1].astype(int) * 40 + 1])
    bands[:, 100:300, 200:500] = 0
    bands[1, 400, 400] = 0  # 0 in a single band is a value
    write_raster(tmp_path / "scene.tif", bands.astype(np.uint16), nodata=0)
    options: dict[str, Any] = {"format": "geotiff", "bands": (4, 3, 2), "scale": (0.0, 10201.0)}
    run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", **options)
    image = (bands[[3, 2, 1]].clip(0, 10201) * (255 / 10201) + 0.5).astype(np.uint8).transpose(1, 2, 0)
    expected = segment_whole(bundle, image).labels
    expected[100:300, 200:500] = 255
    labels = read_mask(tmp_path / "out")
    assert (labels == 255).sum() == 200 * 300
    assert (labels == expected).mean() > 0.9999  # float32 and float64 round a sample in a million differently
    header = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0]
    assert '"bands":[4,3,2],"scale":[0.0,10201.0]' in header
    with pytest.raises(RunError, match=r"contains masks with bands 4,3,2; this run has unset"):
        run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff", scale=(0.0, 10201.0))


def test_16_bits_are_scaled_as_in_other_images(bundle: Path, tmp_path: Path) -> None:
    bands = synthetic_image(200, 300).transpose(2, 0, 1).astype(np.uint16) * 200
    write_raster(tmp_path / "scene.tif", bands)
    run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    image = (bands * np.float32(255 / 65535) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0)
    assert (read_mask(tmp_path / "out") == segment_whole(bundle, image).labels).mean() > 0.9999


def test_nan_and_alpha_are_no_data(bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(150, 200)
    floats = image.transpose(2, 0, 1).astype(np.float32)
    floats[1, 20:40, 30:60] = np.nan
    write_raster(tmp_path / "floats.tif", floats)
    alpha = np.full((1, 150, 200), 255, np.uint8)
    alpha[:, 20:40, 30:60] = 0
    layout = {"photometric": "rgb", "alpha": "yes"}
    write_raster(tmp_path / "alpha.tif", np.concatenate([image.transpose(2, 0, 1), alpha]), **layout)
    options: dict[str, Any] = {"format": "geotiff", "scale": (0.0, 255.0)}
    assert run_predict(bundle, tmp_path / "floats.tif", tmp_path / "alpha.tif", out=tmp_path / "out", **options)[0]
    nodata = np.zeros((150, 200), np.bool_)
    nodata[20:40, 30:60] = True
    for name in ("floats", "alpha"):
        assert ((read_mask(tmp_path / "out", name) == 255) == nodata).all(), name


def test_classes_and_confidence_are_filtered_as_in_images(bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(1100, 1200)
    write_raster(tmp_path / "scene.tif", image.transpose(2, 0, 1))
    options = OutputOptions(classes=("class 1", "class 2"), min_confidence=0.6)
    run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff", options=options)
    prediction = segment_whole(bundle, image, confidence=True)
    assert prediction.confidence is not None
    kept = np.isin(prediction.labels, (1, 2)) & (prediction.confidence >= 0.6)
    assert ((read_mask(tmp_path / "out") == np.where(kept, prediction.labels, 255)).mean()) > 0.9999


def test_an_unusable_raster_gets_a_row_with_the_reason(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    write_raster(tmp_path / "in" / "two.tif", np.zeros((2, 30, 30), np.uint8))
    write_raster(tmp_path / "in" / "signed.tif", np.zeros((3, 30, 30), np.int16))
    write_raster(tmp_path / "in" / "good.tif", synthetic_image(30, 40).transpose(2, 0, 1))
    (tmp_path / "in" / "cut.tif").write_bytes((tmp_path / "in" / "good.tif").read_bytes()[:-900])
    complete, _ = run_predict(bundle, tmp_path / "in", out=tmp_path / "out", format="geotiff")
    assert not complete
    reasons = {Path(row["path"]).name: row.get("error", "") for row in read_rows(tmp_path / "out")}
    assert "0000.png: not a GeoTIFF. Other image formats need another --format." in reasons["0000.png"]
    assert "the GeoTIFF cannot be read" in reasons["cut.tif"]
    assert "the raster has 2 bands, and does not mark red, green and blue: name them with --bands" in reasons["two.tif"]
    assert "the samples are int16: give the values of black and white with --scale LOW,HIGH" in reasons["signed.tif"]
    assert not reasons["good.tif"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["good.tif"]


def test_options_that_rasters_do_not_support(bundle: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", synthetic_image(30, 40).transpose(2, 0, 1))
    with pytest.raises(ConfigError, match="omit --min-area"):
        run_predict(
            bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff", options=OutputOptions(min_area=9)
        )
    with pytest.raises(ConfigError, match="a service accepts only whole images"):
        run_predict("http://127.0.0.1:1", tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    spec = open_bundle(bundle).spec
    with bundle_writer(tmp_path / "fit") as new:
        for file in ("model.onnx",):
            (new / file).write_bytes((bundle / file).read_bytes())
        fit = BundleSpec(**{**spec.model_dump(), "input": InputRule(rule="fit", side=64)})
        (new / SPEC_FILE).write_text(fit.model_dump_json())
    with pytest.raises(EngineError, match="'native'"):
        run_predict(tmp_path / "fit", tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_raster(bundle: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 1200, 1200), dtype=np.uint8)
    write_raster(tmp_path / "scene.tif", noise)
    with (
        limit_file_size(20_000),
        pytest.raises(RunError, match=r"scene.tif cannot be written .*the same command resumes"),
    ):
        run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")
    assert not (tmp_path / "out").exists()
    assert run_predict(bundle, tmp_path / "scene.tif", out=tmp_path / "out", format="geotiff")[0]


@pytest.mark.parametrize("heights", [[1], [512], [700, 324, 1], [100] * 11, [1500]])
def test_rows_are_regrouped_into_blocks(heights: list[int]) -> None:
    whole = np.arange(sum(heights) * 3).reshape(-1, 3).astype(np.uint8)
    rows = np.split(whole, np.cumsum(heights)[:-1])
    blocks = list(split_into_blocks(rows))
    assert all(len(block) == 512 for block in blocks[:-1]) and len(blocks[-1]) <= 512
    assert (np.concatenate(blocks) == whole).all()


def test_a_stop_does_not_wait_for_the_whole_raster(bundle: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", synthetic_image(1500, 2500).transpose(2, 0, 1))
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return len(calls) > 1

    opened = open_bundle(bundle)
    config = PredictConfig(str(bundle), str(tmp_path / "out"), format="geotiff")
    with pytest.raises(RunError, match="stopped"):
        segment_raster(
            Segmenter.load(opened), opened.spec, tmp_path / "scene.tif", tmp_path / "mask.tif", config, should_stop
        )
    assert len(calls) == 2  # windows


def test_gdal_caches_a_row_of_windows_of_strips(tmp_path: Path) -> None:
    bands = np.zeros((3, 64, 20_000), np.uint16)
    strips = write_raster(tmp_path / "strips.tif", bands, blockysize=16)
    tiles = write_raster(tmp_path / "tiles.tif", bands, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(strips) as scene:
        assert gdal_cache_bytes(scene, 1024) == 20_000 * (1024 + 32) * 3 * 2
        assert gdal_cache_bytes(scene, 65_536) == MAX_STRIP_CACHE_BYTES
    with rasterio.open(tiles) as scene:
        assert gdal_cache_bytes(scene, 1024) == GDAL_CACHE_BYTES


def test_the_bands_of_a_raster_without_the_option(bundle: Path, tmp_path: Path) -> None:
    image = synthetic_image(60, 80).transpose(2, 0, 1)
    expected = {"gray": image[[0, 0, 0]], "alpha": image[[0, 0, 0]], "four": image, "marked": image[::-1]}
    write_raster(tmp_path / "gray.tif", image[:1])
    write_raster(tmp_path / "four.tif", np.concatenate([image, image[:1]]), photometric="minisblack")
    write_raster(tmp_path / "marked.tif", np.concatenate([image] * 2))
    write_raster(tmp_path / "alpha.tif", np.stack([image[0], np.full_like(image[0], 255)]))
    colors = [ColorInterp.undefined] * 3 + [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    for name, marks in {"marked": colors, "alpha": [ColorInterp.gray, ColorInterp.alpha]}.items():
        with rasterio.open(tmp_path / f"{name}.tif", "r+") as raster:
            raster.colorinterp = marks
    complete, _ = run_predict(bundle, *sorted(tmp_path.glob("*.tif")), out=tmp_path / "out", format="geotiff")
    assert complete
    for name, bands in expected.items():
        labels = segment_whole(bundle, bands.transpose(1, 2, 0)).labels
        assert (read_mask(tmp_path / "out", name) == labels).all(), name


def test_bands_that_are_not_marked_are_named(bundle: Path, tmp_path: Path) -> None:
    """A satellite's first bands are rarely red, green and blue."""
    scenes = tmp_path / "in"
    scenes.mkdir()
    write_raster(scenes / "seven.tif", np.zeros((7, 30, 40), np.uint16))
    with rasterio.open(write_raster(scenes / "table.tif", np.zeros((1, 30, 40), np.uint8)), "r+") as raster:
        raster.write_colormap(1, {0: (9, 9, 9, 255)})
    for format, messages in {
        "geotiff": (
            "7 bands, and does not mark red, green and blue: name them with --bands",
            "gdal_translate -expand rgb",
        ),
        "png": ("The TIFF has 7 bands of 16 bits", ""),
    }.items():
        run_predict(bundle, scenes, out=tmp_path / format, format=format)
        rows = {Path(row["path"]).stem: row.get("error", "") for row in read_rows(tmp_path / format)}
        assert messages[0] in rows["seven"] and messages[1] in rows["table"]
        assert (format == "geotiff") == bool(rows["table"])


def test_names_that_are_not_utf8(bundle: Path, tmp_path: Path) -> None:
    """GDAL opens only paths that are UTF-8."""
    image = synthetic_image(30, 40)
    folder = tmp_path / "in"
    folder.mkdir()
    write_raster(tmp_path / "scene.tif", image.transpose(2, 0, 1)).rename(folder / os.fsdecode(b"sz\xe4ne.tif"))
    complete, printed = run_predict(bundle, folder, out=folder / "out", format="geotiff")
    assert complete, printed
    (mask,) = (folder / "out").glob("*.tif")
    with utf8_path(mask) as path, rasterio.open(path) as raster:
        assert (raster.read(1) == segment_whole(bundle, image).labels).all()


class ChannelRun:
    """A small network of four channels behind `segment_raster`: the class is the brightest of the first three channels."""

    def __init__(self, rule: InputRule) -> None:
        def run(images: np.ndarray, logits: bool = False, statistics: np.ndarray | None = None) -> Any:
            values = images.astype(np.float32)
            if statistics is not None:
                values = (values - statistics[:, None, None, 0]) / statistics[:, None, None, 1]
            scores = np.moveaxis(values[..., :3], 3, 1)
            return scores.argmax(axis=1).astype(np.uint8), scores

        self.rule, self.segmenter = rule, Segmenter(run, rule)
        self.spec = BundleSpec(
            name="four",
            classes=[ClassInfo(name=name, rgb=(0, 0, 0)) for name in "abc"],
            input=rule,
            architecture=Architecture(name="fcn"),
        )

    def __call__(self, source: Path, out: Path, **options: Any) -> Labels:
        config = PredictConfig("bundle", str(out.parent), format="geotiff", **options)
        segment_raster(self.segmenter, self.spec, source, out, config, lambda: False)
        with rasterio.open(out) as raster:
            return np.asarray(raster.read(1))


@pytest.mark.parametrize("kind", ["window", "zscore"])
def test_a_raster_is_read_by_the_channels_of_the_bundle(kind: str, tmp_path: Path) -> None:
    names = ("nir", "red", "green", "blue")
    ranges = {"low": (), "high": ()} if kind == "zscore" else {"low": (0.0,) * 4, "high": (4000.0,) * 4}
    rule = InputRule.model_validate(
        {"rule": "native", "channels": names, "dtype": "uint16", "scaling": {"kind": kind, **ranges}}
    )
    run = ChannelRun(rule)
    image = np.tile(np.random.default_rng(0).integers(1, 4000, (64, 64, 4)), (18, 22, 1)).astype(np.uint16)
    image[:100, :200] = 0
    write_raster(tmp_path / "ordered.tif", image.transpose(2, 0, 1), nodata=0)
    write_raster(tmp_path / "named.tif", np.insert(image[:, :, ::-1], 2, 7, axis=2).transpose(2, 0, 1), nodata=0)
    with rasterio.open(tmp_path / "named.tif", "r+") as raster:
        raster.descriptions = ("Blue", "Green", "swir", "Red", "NIR")
    expected = run.segmenter.segment(prepare_sample(ImageSample(image, channels=names, nodata=0), rule)).labels
    assert (expected[:100, :200] == 255).all()
    found = run(tmp_path / "ordered.tif", tmp_path / "ordered.out.tif")
    assert (found == expected).mean() > 0.999 and (found[:100, :200] == 255).all()
    assert np.array_equal(run(tmp_path / "named.tif", tmp_path / "named.out.tif"), found)
    assert np.array_equal(run(tmp_path / "named.tif", tmp_path / "bands.out.tif", bands=(5, 4, 2, 1)), found)
    for options, words in (({"bands": (1, 2)}, "name a band for each"), ({"scale": (0.0, 1.0)}, "omit it")):
        with pytest.raises(DataError, match=words):
            run(tmp_path / "ordered.tif", tmp_path / "x.tif", **options)
    write_raster(tmp_path / "three.tif", image[:, :, :3].transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"3 channels of uint16 .*this model takes 4 channels of uint16 .*--bands"):
        run(tmp_path / "three.tif", tmp_path / "x.tif")
    write_raster(tmp_path / "floats.tif", image.transpose(2, 0, 1).astype(np.float32))
    with pytest.raises(DataError, match="the samples are float32; the model takes"):
        run(tmp_path / "floats.tif", tmp_path / "x.tif")


def test_a_single_band_is_read_by_a_gray_model(tmp_path: Path) -> None:
    rule = InputRule.model_validate(
        {"rule": "native", "channels": ("gray",), "dtype": "int16", "scaling": {"low": (-100.0,), "high": (900.0,)}}
    )
    run = ChannelRun(rule)
    write_raster(tmp_path / "dem.tif", np.full((1, 90, 70), 5, np.int16), nodata=-9999)
    assert (run(tmp_path / "dem.tif", tmp_path / "out.tif") == 0).all()
