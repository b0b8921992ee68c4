"""The command `maskserve predict`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskserve.cli.predict import with_ray_address
from models.bundle import open_bundle
from models.imaging.decode import read_image
from models.inference.segmenter import Segmenter
from models.outputs.options import OutputOptions
from models.outputs.pipeline import SegmentationPipeline
from models.spec import IGNORE_INDEX
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.command_line import assert_fails, run_maskserve


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(synthetic_image(90, 120)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_masks_equal_the_segmenters(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(2):
        Image.fromarray(synthetic_image(90, 120, seed)).save(tmp_path / "in" / f"{seed}.png")
    done = run_maskserve("predict", tiny_bundle, "in", "--out", "masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    for file in sorted((tmp_path / "in").iterdir()):
        mask = Image.open(tmp_path / "masks" / file.name)
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), segmenter.segment(read_image(file)).labels)
    done = run_maskserve("predict", tiny_bundle, "in", "--out", "overlays", "--format", "overlay", cwd=tmp_path)
    assert done.returncode == 0
    assert {path.suffix for path in (tmp_path / "overlays").iterdir()} == {".jpg", ".jsonl", ".parquet"}


def test_the_requested_engine_is_used(bundle: Path, image: Path, tmp_path: Path) -> None:
    arguments = ("predict", bundle, image, "--out", "out", "--format", "confidence")
    options = ("--engine", "onnxruntime", "--precision", "f32", "--device", "cpu")
    done = run_maskserve(*arguments, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "running on onnxruntime" in done.stderr
    prediction = Segmenter.load(open_bundle(bundle), "onnxruntime").segment(read_image(image), confidence=True)
    assert prediction.confidence is not None
    gray = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert np.abs(gray - prediction.confidence * 255).max() <= 0.5 + 1e-3
    for option, value in (("--engine", "abacus"), ("--precision", "f7"), ("--device", "tpu")):
        done = run_maskserve(*arguments[:4], f"not{option}", option, value, cwd=tmp_path)
        assert_fails(done, 1, f"'{value}'", "auto, ")


def test_an_unreadable_image_is_reported(bundle: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    done = run_maskserve("predict", bundle, image, "broken.jpg", "--out", "masks", cwd=tmp_path)
    assert_fails(done, 1, "broken.jpg", "1 of 2")
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["a.png"]


def test_an_image_is_never_overwritten(bundle: Path, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    assert_fails(run_maskserve("predict", bundle, image, "--out", ".", cwd=tmp_path), 1, "nothing was written")
    assert image.read_bytes() == before


def test_the_options_are_those_of_the_service(bundle: Path, image: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    segmenter = Segmenter.load(opened)
    prediction = segmenter.segment(read_image(image), confidence=True)
    assert prediction.confidence is not None
    kept = np.bincount(prediction.labels.ravel()).argsort()[::-1][:2].tolist()  # the classes with the most pixels
    names = tuple(opened.spec.classes[label].name for label in kept)
    median = float(np.median(prediction.confidence))
    options = OutputOptions(0.5, names, median, 20, 1.5, "polygons", True)
    arguments = ["--classes", ", ".join(names), "--min-confidence", str(median), "--min-area", "20"]
    arguments += ["--masks", "polygons", "--simplify", "1.5", "--confidence"]
    for format in ("npy", "json"):
        done = run_maskserve("predict", bundle, image, "--out", format, "--format", format, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        expected = SegmentationPipeline(segmenter, opened.spec, format, options)(image.read_bytes()).data
        assert (tmp_path / f"{format}/a.{format}").read_bytes() == expected
    labels = np.load(tmp_path / "npy/a.npy", allow_pickle=False)
    assert IGNORE_INDEX in labels and set(np.unique(labels)) <= {*kept, IGNORE_INDEX}
    result = json.loads((tmp_path / "json/a.json").read_text())
    assert result["unlabeled"]["pixels"] == (labels == IGNORE_INDEX).sum()


def test_alpha_is_the_opacity_of_the_colors(bundle: Path, tmp_path: Path) -> None:
    image = np.full((64, 80, 3), 90, np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = ("predict", bundle, "a.png", "--out", "o", "--format", "overlay", "--alpha", "0")
    done = run_maskserve(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.abs(read_image(tmp_path / "o/a.jpg").astype(int) - image).max() <= 2


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "head:6379", "[::1]:6379", "ray://head:10001"])
def test_the_address_of_ray_is_optional(address: str) -> None:
    assert with_ray_address(["predict", "a", "--ray", address, "b"]) == ["predict", "a", "--ray", address, "b"]
    for arguments in (["a", "--ray", "b"], ["a", "--ray", "--out", "o"], ["a", "--ray"], ["--ray", "C:\\images"]):
        index = arguments.index("--ray") + 1
        assert with_ray_address(arguments) == [*arguments[:index], "local", *arguments[index:]]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.jpg"], 1, "none.jpg does not exist"),
        (
            [".", "--format", "gif"],
            2,
            "Unknown format 'gif'; choose one of png, overlay, confidence, npy, json, events, npz, csv, wfdb, nifti, tiff, "
            "parquet, geotiff",
        ),
        (["a.png", "--classes", "class 1,zebra"], 2, "'zebra'"),
        (["a.png", "--min-confidence", "nan"], 2, "min_confidence is nan"),
        (["a.png", "--scale", "nan,1"], 2, "--scale is nan,1; expected LOW,HIGH"),
        (["a.png", "--bands", "1,x"], 2, "--bands is '1,x'; expected band numbers"),
        (["a.png", "--bands", "0,1,2"], 2, "--bands is 0,1,2; expected band numbers from 1"),
        (["a.png", "--actors", "2"], 2, "add --ray"),
        (["a.png", "--ray=/a/folder"], 2, "--ray is '/a/folder'; expected local, auto, HOST:PORT"),
        (["a.png", "--format", "json", "--masks", "svg"], 2, "'svg'"),
    ],
)
@pytest.mark.usefixtures("image")
def test_bad_arguments_are_refused(arguments: list[str], code: int, message: str, bundle: Path, tmp_path: Path) -> None:
    done = run_maskserve("predict", bundle, *arguments, "--out", "o", cwd=tmp_path)
    assert_fails(done, code, message)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_images_are_decoded_in_a_sandbox_on_request(
    bundle: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    monkeypatch.setattr(SegmentationPipeline, "decode", lambda *_: pytest.fail("decoded in this process"))
    done = run_maskserve("predict", bundle, image, "broken.jpg", "--out", "masks", "--sandbox", cwd=tmp_path)
    assert_fails(done, 1, "broken.jpg", "1 of 2")
    expected = Segmenter.load(open_bundle(bundle)).segment(read_image(image)).labels
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "a.png")), expected)
