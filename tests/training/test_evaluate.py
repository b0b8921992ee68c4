"""`evaluate`: what it writes and prints, and that memory, order and sizes are right."""

import io
import json
import shutil
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from models.bundle import open_bundle
from models.errors import ConfigError, DataError
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX, InputRule
from tests.fixtures_bundles import CLASSES, QUIET_CONSOLE
from tests.training.fake_dataset import FakeDataset, make_fake_dataset, make_metrics, predict_red
from training.data.synthetic import generate_dataset
from training.evaluate import evaluate, evaluate_split, evaluation_folder
from training.metrics.results import EvaluationMetrics
from training.reports.console import print_metrics

NATIVE = InputRule(rule="native")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with the tiny bundle's classes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_dataset(folder, counts={"train": 1, "val": 2, "test": 7}, size=(96, 128))
    (folder / "classes.csv").write_text("".join(f"class {label}\n" for label in range(CLASSES)))
    return folder


def metrics_output(samples: FakeDataset) -> str:
    """What `evaluate` prints for a split, by the network `predict_red`."""
    matrix, tally = evaluate_split(Segmenter(predict_red, NATIVE), samples, QUIET_CONSOLE)
    stream = io.StringIO()
    print_metrics(make_metrics(matrix, tally, samples.classes), matrix, Console(file=stream, width=200))
    return stream.getvalue()


def test_metrics_json_and_report_are_written_and_overwritten(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    evaluate(tiny_bundle, dataset, "val", out, console=QUIET_CONSOLE)
    metrics = evaluate(tiny_bundle, dataset, "test", out, console=QUIET_CONSOLE)
    assert EvaluationMetrics.load(out / "metrics.json") == metrics
    json.loads((out / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert {path.name for path in out.iterdir()} == {"metrics.json", "report.html"}
    assert "split test" in (out / "report.html").read_text()
    assert [row.name for row in metrics.per_image] == [f"test_{index:04d}" for index in range(7)]
    for name in (
        "miou",
        "pixel_accuracy",
        "mean_dice",
        "mean_precision",
        "mean_recall",
        "boundary_iou",
        "mean_image_miou",
    ):
        low, high = getattr(metrics.intervals, name)
        assert 0 <= low <= high <= 1 and 0 <= getattr(metrics, name) <= 1
    assert metrics.bundle.hash == open_bundle(tiny_bundle).hash
    assert (metrics.split, metrics.images, metrics.data) == ("test", 7, "shapes")


def test_default_folder_is_beside_the_bundle() -> None:
    assert evaluation_folder(Path("runs/x/bundle")) == Path("runs/x/evaluation").resolve()
    assert evaluation_folder(Path("voc")) == Path("evaluation-voc").resolve()


def test_wrong_output_folder_is_an_error_before_anything_is_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        evaluate(tiny_bundle, tmp_path / "no data", out=tmp_path / "file", console=QUIET_CONSOLE)
    with pytest.raises(ConfigError, match="sealed"):
        evaluate(tiny_bundle, tmp_path / "no data", out=tiny_bundle / "evaluation", console=QUIET_CONSOLE)


def test_folder_of_test_images_alone_and_all_images_of_a_small_set(
    tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    """Without training masks, the classes are the bundle's. A small set has no test split; the error names what there is."""
    alone = shutil.copytree(dataset, tmp_path / "alone", ignore=shutil.ignore_patterns("train", "val", "classes.csv"))
    expected = evaluate(tiny_bundle, dataset, console=QUIET_CONSOLE)
    assert evaluate(tiny_bundle, alone, console=QUIET_CONSOLE).per_image == expected.per_image

    everything = evaluate(tiny_bundle, dataset, "all", console=QUIET_CONSOLE)
    assert (everything.split, everything.images) == ("all", 10)
    assert {row.name for row in expected.per_image} < {row.name for row in everything.per_image}

    flat = tmp_path / "flat"
    for kind in ("images", "masks"):
        shutil.copytree(dataset / kind / "test", flat / kind)
    shutil.copy(dataset / "classes.csv", flat)
    with pytest.raises(
        DataError, match=r"no image with a mask in the split test; .* train, val\. .*--split val.*--split all"
    ):
        evaluate(tiny_bundle, flat, console=QUIET_CONSOLE)
    metrics = evaluate(tiny_bundle, flat, "all", console=QUIET_CONSOLE)
    assert metrics.images == 7
    assert metrics.miou == expected.miou


def test_images_of_equal_names_in_two_splits_are_told_apart(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    data = shutil.copytree(dataset, tmp_path / "data")
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (data / kind / "val" / f"val_0001.{suffix}").rename(data / kind / "val" / f"test_0003.{suffix}")
    names = [row.name for row in evaluate(tiny_bundle, data, "all", console=QUIET_CONSOLE).per_image]
    assert {"val/test_0003", "test/test_0003"} <= set(names) and len(set(names)) == 10


def test_mask_of_another_size_is_an_error(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(dataset, tmp_path / "bad")
    Image.new("L", (5, 6)).save(bad / "masks/test/test_0002.png")
    with pytest.raises(DataError, match=r"test_0002\.png has the size 5 x 6, its image 128 x 96"):
        evaluate(tiny_bundle, bad, console=QUIET_CONSOLE)


def block_sample(index: int, size: tuple[int, int] = (600, 800)) -> tuple[np.ndarray, np.ndarray]:
    target = np.zeros(size, np.uint8)
    target[: size[0] // 2, index % 7 :] = 1
    return np.repeat(target[..., None] * 255, 3, axis=2), target


def test_mmseg_2015_memory_does_not_grow_with_the_number_of_images() -> None:
    """open-mmlab/mmsegmentation#2015: validation kept every prediction in memory."""

    def peak(number: int) -> int:
        tracemalloc.start()
        samples = make_fake_dataset(number, partial(block_sample, size=(300, 400)))
        _, tally = evaluate_split(Segmenter(predict_red, NATIVE), samples, QUIET_CONSOLE)
        assert len(tally) == number
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    few, many = max(peak(15), peak(15)), peak(75)
    assert many - few < 15 * 300 * 400  # 60 more masks are four times this


@pytest.mark.parametrize(("side", "size"), [(192, (207, 301)), (192, (600, 800)), (320, (101, 233)), (96, (97, 640))])
def test_ultralytics_24617_labels_are_not_shifted(side: int, size: tuple[int, int]) -> None:
    """ultralytics/ultralytics#24617: resizing, padding and cropping moved masks by a fraction of a pixel.

    The edges of bars at many positions must be too far left as often as too far right, within a tenth of a pixel.
    """
    segmenter = Segmenter(predict_red, InputRule(rule="fit", side=side))
    height, width = size
    moved: dict[str, list[float]] = {"x": [], "y": []}
    for start in range(20, 60):
        for axis, length in (("x", width), ("y", height)):
            line = np.zeros(length, np.uint8)
            line[start % (length // 3) + 3 : length - 7 - start % 13] = 255
            image = np.broadcast_to(line if axis == "x" else line[:, None], size)
            labels = segmenter.segment(np.repeat(image[..., None], 3, axis=2).copy()).labels
            predicted = labels[height // 2] if axis == "x" else labels[:, width // 2]
            moved[axis].append(float(np.mean(np.flatnonzero(predicted)) - np.mean(np.flatnonzero(line))))
    for axis, shifts in moved.items():
        assert abs(np.mean(shifts)) < 0.1 * max(1.0, max(size) / side), (axis, np.mean(shifts))


def test_mmseg_1609_masks_of_0_and_255_get_a_hint() -> None:
    """open-mmlab/mmsegmentation#1609: binary masks of 0 and 255 gave IoU 0 without an explanation."""

    def binary(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, target = block_sample(index, (60, 80))
        return image, target * np.uint8(255)

    output = metrics_output(make_fake_dataset(3, binary))
    assert "absent from this split" in output
    assert "The masks hold only class 0 and ignored pixels (255, " in output and "data lint" in output


def test_absent_and_never_predicted_classes_are_listed() -> None:
    def sample(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, target = block_sample(index, (60, 80))
        return image, np.where(target == 1, np.uint8(2), target)

    output = metrics_output(make_fake_dataset(2, sample, classes=4))
    assert "in no mean unless predicted: class 1, class 3." in output
    assert "counts as IoU 0: class 1." in output
    assert "Never predicted: class 2." in output
    assert "ignored" not in output


def test_class_names_are_printed_without_markup() -> None:
    samples = make_fake_dataset(2, partial(block_sample, size=(20, 30)))
    for label, name in enumerate(("[/bold]", "[red]x")):
        samples.classes[label] = samples.classes[label].model_copy(update={"name": name})
    output = metrics_output(samples)
    assert "[/bold]" in output and "[red]x" in output


def test_predictions_of_255_are_counted_at_native_size() -> None:
    def predict_ignored(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, Any]:
        return np.full(images.shape[:3], IGNORE_INDEX, np.uint8), None

    segmenter = Segmenter(predict_ignored, InputRule(rule="fit", side=64))
    matrix, tally = evaluate_split(segmenter, make_fake_dataset(2, block_sample), QUIET_CONSOLE)
    assert matrix.class_counts[1].sum() == 2 * 600 * 800
    assert tally.counts[:, 0, 0].sum() == 0 and matrix.miou() == 0


def test_images_without_a_mask_are_reported(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    part = shutil.copytree(dataset, tmp_path / "part")
    (part / "masks/test/test_0003.png").unlink()
    stream = io.StringIO()
    metrics = evaluate(tiny_bundle, part, console=Console(file=stream, width=200))
    assert (metrics.images, metrics.images_without_mask) == (6, 1)
    assert "Left out, because they have no mask: 1 images" in stream.getvalue()


def test_split_without_any_mask_is_an_error(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(dataset, tmp_path / "bare")
    for mask in (bare / "masks/test").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="has no image with a mask"):
        evaluate(tiny_bundle, bare, console=QUIET_CONSOLE)
