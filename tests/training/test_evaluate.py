import io
import json
import shutil
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from models.bundle import open_bundle
from models.errors import ConfigError, DataError
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX, InputRule
from tests.fixtures_bundles import CLASSES, QUIET_CONSOLE
from tests.training.fake_dataset import make_fake_dataset, predict_red
from training.data.synthetic import generate_dataset
from training.evaluate import PREFETCH, evaluate, evaluate_split, evaluation_folder, prefetch
from training.metrics.bootstrap import compute_metrics
from training.metrics.confusion import ConfusionMatrix
from training.reports.console import print_metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with the tiny bundle's classes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_dataset(folder, counts={"train": 2, "val": 2, "test": 7})
    (folder / "classes.csv").write_text("".join(f"class {label}\n" for label in range(CLASSES)))
    return folder


def parse_strict_json(text: str) -> Any:
    """JSON without the NaN and Infinity that Python alone reads."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def metrics_output(metrics: dict[str, Any], matrix: ConfusionMatrix) -> str:
    stream = io.StringIO()
    print_metrics(metrics, matrix, Console(file=stream, width=200))
    return stream.getvalue()


def test_what_is_left_behind(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    metrics = evaluate(tiny_bundle, dataset, "test", tmp_path / "new", console=QUIET_CONSOLE)
    assert parse_strict_json((tmp_path / "new/metrics.json").read_text()) == metrics
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"metrics.json", "report.html"}
    assert [row["name"] for row in metrics["per_image"]] == [f"test_{index:04d}" for index in range(7)]
    for name in ("miou", "pixel_accuracy", "mean_dice", "mean_accuracy", "boundary_iou", "mean_image_miou"):
        low, high = metrics["intervals"][name]
        assert 0 <= low <= high <= 1 and 0 <= metrics[name] <= 1
    assert metrics["bundle"]["hash"] == open_bundle(tiny_bundle).hash
    assert metrics["images"] == 7 and metrics["data"] == "shapes"


def test_a_second_evaluation_takes_the_place_of_the_first(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    for name in ("test", "val"):
        evaluate(tiny_bundle, dataset, name, tmp_path, console=QUIET_CONSOLE)
    assert json.loads((tmp_path / "metrics.json").read_text())["split"] == "val"
    assert "split val" in (tmp_path / "report.html").read_text()


def test_where_it_goes_by_itself() -> None:
    assert evaluation_folder(Path("runs/x/bundle")) == Path("runs/x/evaluation").resolve()
    assert evaluation_folder(Path("voc")) == Path("evaluation-voc").resolve()


def test_an_out_that_cannot_be_is_said_before_anything_is_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        evaluate(tiny_bundle, tmp_path / "no data", out=tmp_path / "file", console=QUIET_CONSOLE)
    with pytest.raises(ConfigError, match="sealed"):
        evaluate(tiny_bundle, tmp_path / "no data", out=tiny_bundle / "evaluation", console=QUIET_CONSOLE)


def test_a_mask_of_another_size_is_named(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    from PIL import Image

    bad = shutil.copytree(dataset, tmp_path / "bad")
    Image.new("L", (5, 5)).save(bad / "masks/test/test_0002.png")
    with pytest.raises(DataError, match=r"test_0002\.png has not the size of its image"):
        evaluate(tiny_bundle, bad, console=QUIET_CONSOLE)


def block_sample(index: int, size: tuple[int, int] = (600, 800)) -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros(size, np.uint8)
    truth[: size[0] // 2, index % 7 :] = 1
    return np.repeat(truth[..., None] * 255, 3, axis=2), truth


def test_mmseg_2015_memory_does_not_grow_with_the_number_of_images() -> None:
    """open-mmlab/mmsegmentation#2015: validation kept every prediction in memory."""

    def peak(number: int) -> int:
        tracemalloc.start()
        _, tally = evaluate_split(
            Segmenter(predict_red, InputRule(rule="native")), make_fake_dataset(number, block_sample), QUIET_CONSOLE
        )
        assert len(tally) == number
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    few, many = max(peak(20), peak(20)), peak(100)
    assert many - few < 20 * 600 * 800  # 80 more masks would be four times this


@pytest.mark.parametrize(("side", "size"), [(192, (207, 301)), (192, (600, 800)), (320, (101, 233)), (96, (97, 640))])
def test_ultralytics_24617_labels_are_not_shifted_on_the_way(side: int, size: tuple[int, int]) -> None:
    """ultralytics/ultralytics#24617: fitting, padding and cropping moved masks by a part of a pixel.

    Of bars at many places the edges must come back too far left as often as too far right, within a tenth of a pixel.
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
            answer = labels[height // 2] if axis == "x" else labels[:, width // 2]
            moved[axis].append(float(np.mean(np.flatnonzero(answer)) - np.mean(np.flatnonzero(line))))
    for axis, shifts in moved.items():
        assert abs(np.mean(shifts)) < 0.1 * max(1.0, max(size) / side), (axis, np.mean(shifts))


def test_mmseg_1609_masks_of_0_and_255_get_a_hint_and_no_figure_of_0() -> None:
    """open-mmlab/mmsegmentation#1609: binary masks of 0 and 255 gave IoU 0, and nothing said why."""

    def binary(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, truth = block_sample(index, (60, 80))
        return image, truth * np.uint8(255)

    matrix, tally = evaluate_split(
        Segmenter(predict_red, InputRule(rule="native")), make_fake_dataset(3, binary), QUIET_CONSOLE
    )
    samples = make_fake_dataset(3, binary)
    metrics = {**compute_metrics(tally, samples.classes), "split": "test", "images": 3}
    assert matrix.ignored_pixels > 0
    assert metrics["per_class_iou"]["class 1"] is None
    said = metrics_output(metrics, matrix)
    assert "absent from this split" in said
    assert "The masks hold class 0 and void (255, " in said and "data lint" in said


def test_what_is_absent_and_what_is_never_answered_is_said() -> None:
    def draw_one(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, truth = block_sample(index, (60, 80))
        return image, np.where(truth == 1, np.uint8(2), truth)

    samples = make_fake_dataset(2, draw_one, classes=4)
    matrix, tally = evaluate_split(Segmenter(predict_red, InputRule(rule="native")), samples, QUIET_CONSOLE)
    said = metrics_output({**compute_metrics(tally, samples.classes), "split": "test", "images": 2}, matrix)
    assert "in no mean unless answered: class 1, class 3." in said
    assert "counts as IoU 0: class 1." in said
    assert "Never answered: class 2." in said
    assert "void" not in said


def test_names_are_printed_as_they_are() -> None:
    samples = make_fake_dataset(2, partial(block_sample, size=(20, 30)))
    matrix, tally = evaluate_split(Segmenter(predict_red, InputRule(rule="native")), samples, QUIET_CONSOLE)
    metrics = {**compute_metrics(tally, samples.classes), "split": "test", "images": 2}
    for group in (metrics, metrics["intervals"]):
        for name in ("iou", "dice", "accuracy", "boundary_iou"):
            values = group[f"per_class_{name}"].values()
            group[f"per_class_{name}"] = dict(zip(("[/bold]", "[red]x"), values, strict=True))
    assert "[/bold]" in metrics_output(metrics, matrix) and "[red]x" in metrics_output(metrics, matrix)


def test_void_answers_and_native_size_reach_the_counts() -> None:
    def nothing(images: np.ndarray, logits: bool = False) -> tuple[np.ndarray, Any]:
        return np.full(images.shape[:3], IGNORE_INDEX, np.uint8), None

    matrix, tally = evaluate_split(
        Segmenter(nothing, InputRule(rule="fit", side=64)), make_fake_dataset(2, block_sample), QUIET_CONSOLE
    )
    assert matrix.class_counts[1].sum() == 2 * 600 * 800
    assert tally.counts[:, 0, 0].sum() == 0 and matrix.miou() == 0


def test_work_ahead_is_in_order_and_bounded() -> None:
    begun, taken, most = [0], 0, 0
    lock = threading.Lock()

    def call(index: int) -> int:
        with lock:
            begun[0] += 1
        return index

    with ThreadPoolExecutor(2) as pool:
        for expected, value in enumerate(prefetch(pool, (partial(call, index) for index in range(50)))):
            assert value == expected
            taken += 1
            most = max(most, begun[0] - taken)
    assert taken == 50 and most <= PREFETCH


def test_an_error_ahead_comes_in_its_turn() -> None:
    def call(index: int) -> int:
        if index == 3:
            raise DataError("the fourth")
        return index

    with ThreadPoolExecutor(2) as pool:
        found = prefetch(pool, (partial(call, index) for index in range(9)))
        assert [next(found) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="the fourth"):
            next(found)


def test_images_without_a_mask_are_told_of(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    part = shutil.copytree(dataset, tmp_path / "part")
    (part / "masks/test/test_0003.png").unlink()
    stream = io.StringIO()
    metrics = evaluate(tiny_bundle, part, console=Console(file=stream, width=200))
    assert (metrics["images"], metrics["images_without_mask"]) == (6, 1)
    assert "Images without a mask, which were left out: 1" in stream.getvalue()


def test_a_split_without_any_mask_is_a_sentence(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(dataset, tmp_path / "bare")
    for mask in (bare / "masks/test").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="holds no image with a mask"):
        evaluate(tiny_bundle, bare, console=QUIET_CONSOLE)
