"""Training on other channels than RGB, and its bundle: evaluation, probes, predict and the service.

Two classes of the data set differ in the fourth channel only (`tests/fixtures_channels.py`).
"""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models.bundle import open_bundle
from models.errors import ConfigError, DataError
from models.inference.segmenter import Segmenter, agreement
from models.readers import read_input, read_input_file
from models.spec import IGNORE_INDEX
from tests.conftest import BuildOnce
from tests.fixtures_bundles import ENCODER, QUIET_CONSOLE
from tests.fixtures_channels import CHANNELS, CLASS_NAMES, draw_chip, encode_tiff, make_channel_dataset
from tests.service.in_process import start_app
from training.config_io import load_config
from training.data.loader import build_train_loader, iterate_batches
from training.evaluate import evaluate
from training.explain.run import explain
from training.export import export
from training.run_folder import read_run_metadata
from training.train import lint_before_training, train

SETTINGS = ["workers=0", "crop=64,64", "input=native", "batch=4", "tensorboard=false", "scale=1,1"]
SMALL = [*SETTINGS, "epochs=1", "optimizer=adamw", "lr=0.002", "warmup=2", f"encoder={ENCODER}"]
GOOD = [*SMALL, "epochs=40", "warmup=10", "precision=f32", "vflip=0.5", "skips=8s"]


@pytest.fixture(scope="session")
def chips(build_once: BuildOnce) -> Path:
    """Twelve chips of four channels of uint16, nodata 0, a collar of which the images have."""

    def build(folder: Path) -> None:
        make_channel_dataset(folder / "chips", nodata=0)
        for index in range(0, 12, 3):
            values, _ = draw_chip(index)
            values[:8] = 0
            (folder / f"chips/images/chip{index}.tif").write_bytes(encode_tiff(values, CHANNELS, nodata=0))

    return build_once("chips", build) / "chips"


@pytest.fixture(scope="session")
def chip_bundle(chips: Path, build_once: BuildOnce) -> Path:
    """The bundle of a training of ten epochs on the chips, without int8."""

    def build(folder: Path) -> None:
        train(chips, folder / "run", load_config(None, [*SMALL, "epochs=10"]), console=QUIET_CONSOLE)
        export(folder / "run", int8_limit=None, console=QUIET_CONSOLE)

    return build_once("chip-bundle", build) / "run" / "bundle"


def fit_pixels(data: Path, *settings: str) -> float:
    """The fraction of pixels of the two classes that a linear classifier of the loader's pixels gets right."""
    config = load_config(None, [*SETTINGS, *settings])
    dataset = lint_before_training(data, config, QUIET_CONSOLE).datasets["train"]
    assert dataset.input is not None
    batches = iterate_batches(build_train_loader(dataset, dataset.input, (64, 64), config))
    pixels, labels = [], []
    for _ in range(3):
        batch = next(batches)
        inside = (batch.labels == 1) | (batch.labels == 2)
        pixels.append(batch.images[inside].float())
        labels.append(batch.labels[inside] == 2)
    values, target = torch.cat(pixels), torch.cat(labels).float()
    values = (values - values.mean(0)) / values.std(0)
    torch.manual_seed(0)
    model = nn.Linear(values.shape[1], 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model(values)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(((model(values)[:, 0] > 0) == target.bool()).float().mean())


def test_the_fourth_channel_reaches_the_network_and_tells_the_classes_apart(chips: Path) -> None:
    assert fit_pixels(chips) > 0.95
    assert fit_pixels(chips, "channels=red,green,blue", "color_jitter=0") < 0.75


@pytest.mark.slow
def test_four_channels_are_learned_and_three_fail(tmp_path: Path) -> None:
    data = make_channel_dataset(tmp_path / "data", count=40)
    found = {}
    for name, channels in (("four", []), ("three", ["channels=red,green,blue", "color_jitter=0"])):
        run = train(data, tmp_path / name, load_config(None, [*GOOD, *channels]), console=QUIET_CONSOLE)
        end = read_run_metadata(run).end
        assert end is not None
        found[name] = end.score  # the best mIoU on the validation images
    assert found["four"] >= 0.8 and found["three"] < 0.7, found


def test_the_input_is_planned_from_the_files_and_kept_in_the_bundle(chips: Path, chip_bundle: Path) -> None:
    rule = open_bundle(chip_bundle).spec.input
    assert rule.channels == CHANNELS and rule.dtype == "uint16" and rule.nodata == 0
    assert rule.scaling.kind == "window"
    assert rule.scaling.low[3] < 600 and 3000 < rule.scaling.high[3] < 3800  # without nodata
    assert rule.spacing is None  # four of the chips have no place


def test_the_probes_are_verified_in_every_engine(chip_bundle: Path) -> None:
    bundle = open_bundle(chip_bundle)
    assert all(image.suffix == ".npz" for image, _ in bundle.probes())
    for engine in ("openvino", "onnxruntime", "torch"):
        segmenter = Segmenter.load(bundle, engine, "f32", "cpu")
        assert segmenter.verify_probes(bundle) > 0.998


def test_nodata_is_void_and_not_evaluated(chips: Path, chip_bundle: Path) -> None:
    bundle = open_bundle(chip_bundle)
    sample = read_input_file(chips / "images/chip0.tif", bundle.spec.input)
    labels = Segmenter.load(bundle).segment(sample).labels
    assert (labels[:8] == IGNORE_INDEX).all() and (labels[8:] < len(CLASS_NAMES)).all()
    metrics = evaluate(chip_bundle, chips, "all", console=QUIET_CONSOLE)
    assert metrics.ignored_pixels == 4 * 8 * 64


def test_tiles_and_augmentation_at_test_time_take_any_channels(chip_bundle: Path) -> None:
    from models.inference.tta import TTAOptions

    bundle = open_bundle(chip_bundle)
    values = np.tile(draw_chip(1)[0], (5, 5, 1))
    plain, tiled = Segmenter.load(bundle, precision="f32"), Segmenter.load(bundle, precision="f32")
    tiled.tile_size = 256
    assert agreement(plain.segment(values).labels, tiled.segment(values).labels) > 0.8
    flipped = Segmenter.load(bundle, precision="f32", tta=TTAOptions.parse("flip,1,1.25"))
    assert flipped.segment(values[:96, :96]).labels.shape == (96, 96)


def test_the_service_takes_files_of_the_channels_and_says_which(chip_bundle: Path) -> None:
    values, _ = draw_chip(3)
    array = io.BytesIO()
    np.savez_compressed(array, values=values, channels=np.array(CHANNELS))
    bundle = open_bundle(chip_bundle)
    expected = Segmenter.load(bundle).segment(values).labels
    with start_app(chip_bundle) as http:
        for data in (
            encode_tiff(values, CHANNELS),
            encode_tiff(values, compress="lzw", interleave="band"),
            array.getvalue(),
        ):
            response = http.post("/v1/segment", content=data)
            assert response.status_code == 200, response.text
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), expected)
        collar = values.copy()
        collar[:8] = 0
        labels = np.asarray(Image.open(io.BytesIO(http.post("/v1/segment", content=encode_tiff(collar)).content)))
        assert (labels[:8] == IGNORE_INDEX).all() and (labels[8:] != IGNORE_INDEX).all()
        for data in (encode_tiff(values[:, :, :3]), encode_tiff(values.astype(np.float32))):
            response = http.post("/v1/segment", content=data)
            assert response.status_code == 422
            assert "takes 4 channels of uint16 (red, green, blue, nir)" in response.json()["detail"]
        image = http.post("/v1/segment?format=overlay&alpha=0&bands=nir,red,green", content=encode_tiff(values))
        assert Image.open(io.BytesIO(image.content)).size == (64, 64)
        assert http.post("/v1/segment?format=overlay&bands=swir", content=encode_tiff(values)).status_code == 400
        (model,) = http.get("/v1/models").json()
        assert model["spec"]["input"]["channels"] == list(CHANNELS)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "count"), [("uint8", 1), ("int16", 2), ("float32", 7)])
def test_every_type_of_bands_is_trained_and_served(dtype: str, count: int, tmp_path: Path) -> None:
    names = tuple(f"b{index}" for index in range(count))
    data = make_channel_dataset(tmp_path / "data", 10, names, dtype)
    kind = "zscore" if dtype == "int16" else "auto"
    run = train(data, tmp_path / "run", load_config(None, [*SMALL, f"scaling={kind}"]), console=QUIET_CONSOLE)
    export(run, int8_limit=0.5 if kind == "zscore" else None, console=QUIET_CONSOLE)
    evaluate(run / "bundle", data, "val", console=QUIET_CONSOLE)
    values, _ = draw_chip(3, count, dtype)
    bundle = open_bundle(run / "bundle")
    data_bytes = encode_tiff(values, names)
    expected = Segmenter.load(bundle).segment(read_input(data_bytes, bundle.spec.input)).labels
    with start_app(run / "bundle") as http:
        response = http.post("/v1/segment", content=data_bytes)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), expected)


def test_settings_that_do_not_fit_the_channels_are_refused_by_name_at_the_start(chips: Path) -> None:
    def start(*settings: str) -> None:
        lint_before_training(chips, load_config(None, [*SETTINGS, *settings]), QUIET_CONSOLE)

    with pytest.raises(ConfigError, match=r"no channel 'swir'.*They have red, green, blue, nir"):
        start("channels=nir,swir")
    with pytest.raises(ConfigError, match=r"hue=0\.1 needs the channels red, green and blue"):
        start("channels=nir,red", "hue=0.1")
    with pytest.raises(ConfigError, match=r"The transform ToGray (fails|turns)"):
        start("transforms=[{name: ToGray}]")


def test_unnamed_bands_get_the_names_of_the_setting(tmp_path: Path) -> None:
    data = make_channel_dataset(tmp_path, 10, ("", "", ""), "int16")
    rule = (
        lint_before_training(data, load_config(None, ["channels=nir,red,green"]), QUIET_CONSOLE).datasets["train"].input
    )
    assert rule is not None and rule.channels == ("nir", "red", "green") and rule.dtype == "int16"
    with pytest.raises(ConfigError, match="Name all 3 in their order"):
        lint_before_training(data, load_config(None, ["channels=nir,red"]), QUIET_CONSOLE)


def test_mixed_files_are_refused(tmp_path: Path) -> None:
    data = make_channel_dataset(tmp_path, 10)
    (data / "images/chip3.tif").write_bytes(encode_tiff(draw_chip(3, 3)[0]))
    with pytest.raises(DataError, match="1 error"):
        lint_before_training(data, load_config(None, []), QUIET_CONSOLE)


def test_four_channels_are_explained(chips: Path, chip_bundle: Path, tmp_path: Path) -> None:
    explain(chip_bundle, [chips / "images" / "chip0.tif"], tmp_path, views=["kernels"], console=QUIET_CONSOLE)
    assert ", nir</figcaption>" in (tmp_path / "index.html").read_text()
    with Image.open(tmp_path / "images" / "chip0-kernels-first-layer-03.png") as sheet:
        assert sheet.size == (16 * 46 - 4, 42)  # 16 kernels


@pytest.mark.slow
def test_errors_of_four_channels_are_those_of_an_evaluation(chips: Path, chip_bundle: Path, tmp_path: Path) -> None:
    views = ["failures", "residual"]
    result = explain(chip_bundle, [], tmp_path, data=chips, split="all", views=views, console=QUIET_CONSOLE)
    numbers = result.facts["failures"][""].numbers
    evaluated = evaluate(chip_bundle, chips, "all", console=QUIET_CONSOLE).miou
    assert numbers["miou"] == pytest.approx(evaluated, abs=1e-3) and numbers["reversed_channels_gain"] is None
    assert result.facts["residual"][""].numbers["miou"] is not None
    assert "Reversed channels are tried with RGB only" in (tmp_path / "index.html").read_text()


def test_the_panel_of_the_page_shows_any_channels(chip_bundle: Path) -> None:
    values = draw_chip(0)[0]
    with start_app(chip_bundle, explain=True) as http:
        certainty = http.post("/v1/explain", content=encode_tiff(values)).json()
        occlusion = http.post("/v1/explain?view=occlusion&at=5,5", content=encode_tiff(values)).json()
    assert certainty["numbers"]["reversed_channels_gain"] is None and 0 < certainty["numbers"]["confidence"] <= 1
    prediction = np.asarray(Image.open(io.BytesIO(base64.b64decode(certainty["images"]["prediction"]))))
    bundle = open_bundle(chip_bundle)
    expected = Segmenter.load(bundle).segment(values).labels
    np.testing.assert_array_equal(prediction, np.array(bundle.spec.palette())[expected])
    assert occlusion["numbers"]["largest_fall"] > 0
