"""`maskserve predict` as a person types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskserve.cli.predict import with_ray_address
from models.bundle import open_bundle
from models.imaging.decode import read_image
from models.inference.segmenter import Segmenter
from models.outputs import encode
from models.outputs.options import OutputOptions
from models.spec import IGNORE_INDEX
from tests.fixtures_bundles import synthetic_image
from tests.maskserve.test_cli import assert_fails, run_maskserve
from training.data.synthetic import generate_dataset


def test_predict_is_the_segmenters_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 1, "val": 1, "test": 2})
    done = run_maskserve("predict", tiny_bundle, "s/images/test", "--out", "masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    segmenter = Segmenter.load(open_bundle(tiny_bundle))
    for image in sorted((tmp_path / "s/images/test").iterdir()):
        mask = Image.open(tmp_path / "masks" / f"{image.stem}.png")
        assert mask.mode == "P"
        assert (np.asarray(mask) == segmenter.segment(read_image(image)).labels).all()
    again = run_maskserve("predict", tiny_bundle, "s/images/test", "--out", "over", "--format", "overlay", cwd=tmp_path)
    assert again.returncode == 0
    assert {path.suffix for path in (tmp_path / "over").iterdir()} == {".jpg", ".jsonl", ".parquet"}


def test_predict_takes_the_engine_that_it_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(synthetic_image(90, 120)).save(tmp_path / "a.png")
    words = ("predict", tiny_bundle, "a.png", "--out", "sure", "--format", "confidence")
    done = run_maskserve(*words, "--engine", "onnxruntime", "--precision", "f32", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "running on onnxruntime: as asked; f32: as asked" in done.stderr
    segmenter = Segmenter.load(open_bundle(tiny_bundle), "onnxruntime")
    prediction = segmenter.segment(read_image(tmp_path / "a.png"), confidence=True)
    assert prediction.confidence is not None
    grey = np.asarray(Image.open(tmp_path / "sure" / "a.png"))
    assert np.abs(grey - prediction.confidence * 255).max() <= 0.5 + 1e-3
    for option, word in (("--engine", "abacus"), ("--precision", "f7"), ("--device", "tpu")):
        assert_fails(
            run_maskserve(*words[:4], f"not{option}", option, word, cwd=tmp_path),
            1,
            f"'{word}' is not known; choose auto, ",
        )


def test_predict_names_a_bad_image_and_goes_on(tiny_bundle: Path, tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 1, "val": 1, "test": 1})
    (tmp_path / "s/images/test/broken.jpg").write_bytes(b"nothing")
    done = run_maskserve("predict", tiny_bundle, "s/images/test", "--out", "masks", cwd=tmp_path)
    assert_fails(done, 1, "broken.jpg", "1 of 2")
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["test_0000.png"]


def test_predict_never_overwrites_an_image(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert_fails(run_maskserve("predict", tiny_bundle, "a.png", "--out", ".", cwd=tmp_path), 1, "overwrite")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")
    assert_fails(run_maskserve("predict", tiny_bundle, "a.png", "a.jpg", "--out", "o", cwd=tmp_path), 1, "both become")
    assert (tmp_path / "a.png").read_bytes() == before


def test_predict_leaves_out_what_the_service_would(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(synthetic_image(90, 120)).save(tmp_path / "a.png")
    opened = open_bundle(tiny_bundle)
    prediction = Segmenter.load(opened).segment(read_image(tmp_path / "a.png"), confidence=True)
    kept = np.bincount(prediction.labels.ravel()).argsort()[::-1][:2].tolist()  # those with the most pixels
    names = tuple(opened.spec.classes[label].name for label in kept)
    least = float(np.median(prediction.confidence)) if prediction.confidence is not None else 0.0
    options = OutputOptions(0.5, names, least, 20, 1.5, "polygons", True)
    words = ["--classes", ", ".join(names), "--min-confidence", str(least), "--min-area", "20"]
    for format, suffix in (("npy", "npy"), ("json", "json")):
        more = ["--format", format, "--masks", "polygons", "--simplify", "1.5", "--confidence"]
        done = run_maskserve("predict", tiny_bundle, "a.png", "--out", suffix, *words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{suffix}/a.{suffix}").read_bytes() == encode(format, prediction, opened.spec, options)
    labels = np.load(tmp_path / "npy/a.npy", allow_pickle=False)
    assert IGNORE_INDEX in labels and set(np.unique(labels)) <= {*kept, IGNORE_INDEX}
    answer = json.loads((tmp_path / "json/a.json").read_text())
    assert answer["unlabeled"]["pixels"] == (labels == IGNORE_INDEX).sum()


def test_alpha_is_of_the_colours(tiny_bundle: Path, tmp_path: Path) -> None:
    image = np.full((64, 80, 3), 90, np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    done = run_maskserve(
        "predict", tiny_bundle, "a.png", "--out", "o", "--format", "overlay", "--alpha", "0", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert np.abs(read_image(tmp_path / "o/a.jpg").astype(int) - image).max() <= 2


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "head:6379", "[::1]:6379", "ray://head:10001"])
def test_ray_takes_an_address_or_none(address: str) -> None:
    assert with_ray_address(["predict", "a", "--ray", address, "b"]) == ["predict", "a", "--ray", address, "b"]
    for words in (["a", "--ray", "b"], ["a", "--ray", "--out", "o"], ["a", "--ray"], ["--ray", "C:\\images"]):
        place = words.index("--ray") + 1
        assert with_ray_address(words) == [*words[:place], "local", *words[place:]]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["none.jpg"], 1, "none.jpg is not there"),
        (
            [".", "--format", "gif"],
            2,
            "'gif' is not known; choose from png, overlay, confidence, npy, json, parquet, geotiff",
        ),
        (["a.png", "--classes", "class 1,zebra"], 2, "The class 'zebra' is not known; known are class 0, "),
        (["a.png", "--min-confidence", "nan"], 2, "min_confidence is nan; wanted is a number from 0 to 1."),
        (["a.png", "--scale", "nan,1"], 2, "The scale nan,1 is empty"),
        (["a.png", "--actors", "2"], 2, "it goes with --ray"),
        (["a.png", "--ray=/a/folder"], 2, "Ray's address is '/a/folder'; wanted is local, auto, HOST:PORT"),
        (["a.png", "--format", "json", "--masks", "svg"], 2, "'svg' are not known; choose from rle, polygons"),
    ],
)
def test_bad_words_are_one_sentence(
    words: list[str], code: int, sentence: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    Image.fromarray(synthetic_image(40, 50)).save(tmp_path / "a.png")
    done = run_maskserve("predict", tiny_bundle, *words, "--out", "o", cwd=tmp_path)
    assert_fails(done, code, sentence)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()
