"""`report.html`: its content, that it opens offline, and that names in it are only text."""

import base64
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.reports.latency
from models.bundle import CHECKSUM_FILE, SPEC_FILE, bundle_writer, open_bundle
from models.engines import ENGINES
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb, palette
from tests.fixtures_bundles import QUIET_CONSOLE
from training.data.synthetic import generate_dataset
from training.evaluate import evaluate
from training.metrics.bootstrap import PerImageCounts
from training.metrics.confusion import ConfusionMatrix
from training.reports.build import zoomed_axis
from training.reports.confusion_matrix import MAX_CELLS_PER_ROW, confusion_section
from training.reports.gallery import (
    IMAGES_PER_GROUP,
    STRIPE_WIDTH,
    error_mask,
    mask_data_uri,
    worst_and_best,
    worst_class,
)
from training.reports.latency import EngineLatency, engines_section, measure_latencies
from training.reports.line_chart import curves_section
from training.reports.plots import save_curves

HOSTILE_NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "&lt;$css ${js} $$",
    "[/bold]",
    "</style></title></svg>",
]
CSV_HEADER = "epoch,step,lr,loss,miou,pixel_accuracy,images_per_second,iou_a,later\n"


class ParsedPage(HTMLParser):
    """The page as a browser parses it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def find_all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a bundle, a data set, classes and images whose names all try to inject HTML."""
    folder = tmp_path_factory.mktemp("page")
    spec = json.loads((tiny_bundle / SPEC_FILE).read_text())
    spec["name"] = HOSTILE_NAMES[0]
    spec["provenance"]["warnings"] = [f"Trained for 0.3 epochs on {HOSTILE_NAMES[1]}."]
    for entry, name in zip(spec["classes"], HOSTILE_NAMES, strict=True):
        entry["name"] = name
    with bundle_writer(folder / "bundle") as new:
        shutil.copytree(tiny_bundle, new, dirs_exist_ok=True)
        (new / CHECKSUM_FILE).unlink()
        (new / SPEC_FILE).write_text(json.dumps(spec))
        (new / "report").mkdir()
        (new / "report/metrics.csv").write_text(CSV_HEADER + "1,10,0.1,<b>2,,0.5,9,,x\n2,20,0.05,1.5,0.25,0.6,9,,x\n")
    data = folder / "<i>data"
    generate_dataset(data, counts={"train": 2, "val": 2, "test": 4}, size=(96, 128))
    lines = ['"' + name.replace('"', '""') + '"' for name in HOSTILE_NAMES]
    (data / "classes.csv").write_text("\n".join(lines))
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
        one = next((data / kind / "test").glob("test_0001*"))
        one.rename(one.with_name(f"<img src=x onerror=alert(4)>{one.suffix or suffix}"))
    for mask in (data / "masks/test").iterdir():  # one class is absent
        labels = np.asarray(Image.open(mask)).copy()
        labels[labels == 5] = IGNORE_INDEX
        Image.fromarray(labels).save(mask)
    evaluate(folder / "bundle", data, out=folder / "out", console=QUIET_CONSOLE)
    return (folder / "out/report.html").read_text()


def test_hostile_names_are_only_text(page: str) -> None:
    parsed = ParsedPage(page)
    assert len(parsed.find_all("script")) == 1
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    text = "".join(parsed.words)
    for name in HOSTILE_NAMES:
        assert name in text, name
    assert "<img src=x onerror=alert(4)>" in text
    assert f"Trained for 0.3 epochs on {HOSTILE_NAMES[1]}." in text
    assert "<i>data" in text
    assert {attributes["src"][:5] for attributes in parsed.find_all("img") if attributes["src"]} == {"data:"}
    assert len(parsed.find_all("img")) == 3 * 4
    assert all(set(attributes) == {"style"} for attributes in parsed.find_all("i"))  # bars, not the data set's name


def test_page_opens_offline(page: str) -> None:
    assert [address for address in re.findall(r"https?://[^\s\"'<>)]*", page) if "w3.org" not in address] == []
    parsed = ParsedPage(page)
    assert not parsed.find_all("link") and not parsed.find_all("iframe") and not parsed.find_all("object")
    for _, attributes in parsed.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert all(
            address.startswith("data:image/") for address in re.findall(r"url\(([^)]*)", attributes.get("style") or "")
        )
    policy = next(
        one["content"] for one in parsed.find_all("meta") if one.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and policy.startswith("default-src 'none'")
    assert "@import" not in page and "url(//" not in page


def test_page_is_accessible(page: str) -> None:
    parsed = ParsedPage(page)
    labels = {one.get("for") for one in parsed.find_all("label")}
    assert [one["id"] for one in parsed.find_all("input") if one.get("type") == "range"] == ["opacity"]
    assert labels == {"opacity"}
    assert all(one.get("aria-label") for one in parsed.find_all("svg") if one.get("role") == "img")
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(one["href"])[1:] for one in parsed.find_all("a")} <= set(ids)
    assert parsed.find_all("html")[0]["lang"] == "en" and "prefers-color-scheme" in page


def test_every_image_is_shown_beside_its_masks_with_its_worst_class(page: str) -> None:
    parsed = ParsedPage(page)
    panes = [str(one["aria-label"]) for one in parsed.find_all("button") if "pane" in str(one.get("class"))]
    assert len(panes) == 4 * 4 and all(name.startswith("Enlarge ") for name in panes)
    assert [name.rpartition(": ")[2] for name in panes[:4]] == ["image", "ground truth", "prediction", "errors"]
    assert len(parsed.find_all("dialog")) == 1
    text = "".join(parsed.words)
    assert text.count("; worst class: ") == 4


def test_worst_class_is_one_of_the_ground_truth() -> None:
    tally = PerImageCounts(3)
    counts = np.array(
        [[80, 10, 0], [90, 20, 0], [85, 10, 5]]
    )  # hits, ground truth, prediction: the third is only predicted
    tally.add("one", counts, counts)
    classes = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in "abc"]
    assert worst_class(tally, 0, classes) == ("b", 0.5)


def test_the_run_is_described(page: str) -> None:
    words = [word.strip() for word in ParsedPage(page).words if word.strip()]
    facts = dict(itertools.pairwise(words))
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", facts["Date"])
    assert re.fullmatch(r"maskserve \d+\.\d+\.\d+", facts["Version"])
    assert facts["Seed"].endswith("intervals 0") and re.search(r", \d+ cores", facts["Hardware"])
    assert "Command" not in facts  # it was not made by the command line


def test_axes_zoom_to_the_intervals() -> None:
    assert zoomed_axis([(0.71, (0.68, 0.74)), (0.5, None), (None, None)]) == (0.5, 0.75)
    assert zoomed_axis([(1.0, (1.0, 1.0))]) == (0.95, 1.0)
    assert zoomed_axis([(0.0, None)]) == (0.0, 0.05)
    assert zoomed_axis([(None, None)]) == (0.0, 1.0)


def test_absent_class_and_training_curves_are_shown(page: str) -> None:
    text = "".join(ParsedPage(page).words)
    assert "absent from this split" in text
    assert "epoch 2: mIoU 0.25" in text and "epoch 1: pixel accuracy 0.5" in text and "epoch 2: loss 1.5" in text
    assert "epoch 1: loss" not in text  # it is not a number
    assert len(page) < 3_000_000


def test_curves_of_missing_broken_and_newer_tables(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    assert "No training curves" in curves_section(None)
    for content in (b"", b"\xff\xfe\x00", b"epoch,loss\n", b"a,b\n1,2\n", b"epoch\nx\n"):
        table.write_bytes(content)
        assert "No training curves" in curves_section(table)
    table.write_text("new,epoch,loss,miou\n7,1,0,nan\n7,2,0,inf\n7,3,0,\n")
    drawing = curves_section(table)
    assert "<svg" in drawing and "validation" not in drawing and "nan" not in drawing
    table.write_text(
        CSV_HEADER + "".join(f"{epoch},1,0.1,{9 / epoch},0.{epoch:03d},0.9,1,,\n" for epoch in range(1, 900))
    )
    assert len(curves_section(table)) < 600_000
    table.write_text(CSV_HEADER + "0.25,9,0.1,2,0.2,0.9,1,,\n0.5,18,0.1,2,0.3,0.9,1,,\n")  # validated within an epoch
    assert "epoch 0.25: mIoU 0.2" in curves_section(table) and "epoch 0.5: mIoU 0.3" in curves_section(table)
    table.write_text(CSV_HEADER + "5,1,0.1,2,0.3,0.9,1,,\n")  # a single epoch
    assert "epoch 5: mIoU 0.3" in curves_section(table)


@pytest.mark.parametrize("epochs", [1, 80])
def test_curves_png_shows_every_epoch(epochs: int, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("epoch,loss,miou\n" + "".join(f"{epoch},1,0.5\n" for epoch in range(1, epochs + 1)))
    save_curves(tmp_path / "m.csv", tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    blue = np.abs(pixels - (31, 119, 180)).sum(axis=2) < 30  # matplotlib's first color, of lines and markers
    left, right = np.array_split(blue, 2, axis=1)
    assert left.sum() > 20 and right.sum() > 20


def test_epoch_without_a_value_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("epoch,loss\n1,1\n2,2\n3,\n4,2\n5,1\n")
    (path,) = re.findall(r'class="line" d="([^"]*)"', curves_section(tmp_path / "m.csv"))
    assert (path.count("M"), path.count("L")) == (2, 2)


def make_matrix(classes: int) -> tuple[ConfusionMatrix, list[ClassInfo]]:
    matrix, random = ConfusionMatrix(classes), np.random.default_rng(0)
    for _ in range(3):
        target = random.integers(0, classes, (500, 600)).astype(np.uint8)
        matrix.add(
            target, np.where(random.random(target.shape) < 0.6, target, random.permuted(target)).astype(np.uint8)
        )
    return matrix, [ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(classes)]


def test_confusion_cells_show_counts_and_fractions() -> None:
    matrix = ConfusionMatrix(2)
    matrix.add(np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 0, 1, IGNORE_INDEX]], np.uint8))
    drawing = confusion_section(matrix, [ClassInfo(name=name, rgb=(0, 0, 0)) for name in "ab"])
    titles = re.findall(r"<title>([^<]*)</title>", drawing)
    assert titles == [
        "a predicted as a: 2 pixels, 66.67% of the class",
        "a predicted as b: 1 pixels, 33.33% of the class",
        "b predicted as no class: 1 pixels, 100.00% of the class",
    ]
    assert "b predicted as no class: 100.0% of b" in "".join(ParsedPage(drawing).words)


@pytest.mark.parametrize("classes", [2, 60, 254])
def test_confusion_matrix_fits_many_classes(classes: int) -> None:
    drawing = confusion_section(*make_matrix(classes))
    assert drawing.count("<rect") <= classes * MAX_CELLS_PER_ROW
    assert len(drawing) < 3_000_000
    width, height = (float(number) for number in re.findall(r'<svg[^>]*width="(\d+)" height="(\d+)"', drawing)[0])
    assert width < 3200 and height < 3200
    corners = [(float(x), float(y)) for x, y in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', drawing)]
    assert max(x for x, _ in corners) < width and max(y for _, y in corners) < height


def test_perfect_prediction_has_no_confusion() -> None:
    matrix = ConfusionMatrix(2)
    matrix.add(np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))
    assert "None: every counted pixel is right." in confusion_section(
        matrix, [ClassInfo(name=n, rgb=(0, 0, 0)) for n in "ab"]
    )


@pytest.mark.parametrize("images", [1, 2, 5, 12, 13, 40])
def test_no_image_is_both_worst_and_best(images: int) -> None:
    tally, rates = PerImageCounts(1), np.random.default_rng(0).permutation(images)
    for rate in rates:
        tally.add(str(rate), np.array([[rate], [100], [rate]]), np.zeros((3, 1), np.int64))
    tally.add("ignored", np.zeros((3, 1), np.int64), np.zeros((3, 1), np.int64))
    worst, best = worst_and_best(tally)
    assert (
        len(worst) + len(best) == min(images, 2 * IMAGES_PER_GROUP)
        and len(worst) <= IMAGES_PER_GROUP
        and len(best) <= IMAGES_PER_GROUP
    )
    assert [tally.names[index] for index in worst] == [str(rate) for rate in range(len(worst))]
    assert [tally.names[index] for index in best] == [str(images - 1 - index) for index in range(len(best))]


def test_mask_has_class_colors_and_transparent_ignored_pixels() -> None:
    labels = np.array([[0, 1, IGNORE_INDEX], [1, 0, 3]], np.uint8)
    colors = palette([ClassInfo(name=str(label), rgb=(10 * label, 20, 30)) for label in range(4)])
    uri = mask_data_uri(labels, colors)
    assert uri.startswith("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")
    pixels = np.asarray(image)
    assert pixels[..., 3].tolist() == [[255, 255, 0], [255, 255, 255]]
    assert pixels[1, 2, :3].tolist() == [30, 20, 30] and pixels[0, 0, :3].tolist() == [0, 20, 30]


def test_error_mask_marks_wrong_pixels_and_stripes_ignored_ones() -> None:
    target = np.full((20, 30), 1, np.uint8)
    target[:, :10] = IGNORE_INDEX
    prediction = target.copy()
    prediction[5, 20], prediction[:, :10], prediction[7, 25] = 0, 0, IGNORE_INDEX
    errors = error_mask(target, prediction)
    assert np.argwhere(errors == 1).tolist() == [[5, 20], [7, 25]]
    stripes = errors[:, :10]
    assert set(np.unique(stripes).tolist()) == {0, 2} and STRIPE_WIDTH < 10
    assert not (errors[:, 10:] == 2).any()


def test_every_installed_engine_is_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.reports.latency, "SECONDS_PER_ENGINE", 0.01)
    monkeypatch.setattr(training.reports.latency, "TIME_BUDGET", 600.0)
    opened = open_bundle(tiny_bundle)
    latencies = measure_latencies(opened, [np.zeros((90, 120, 3), np.uint8)])
    assert {each.engine for each in latencies} >= set(ENGINES)
    assert all(each.median_ms is not None and each.median_ms > 0 for each in latencies)
    drawing = engines_section(opened, latencies, ("openvino", "f32"))
    assert "openvino <b>(this evaluation)</b>" in drawing and "model.onnx" in drawing and " MB" in drawing


def test_skipped_engines_have_a_reason(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.reports.latency, "TIME_BUDGET", -1.0)
    opened = open_bundle(tiny_bundle)
    latencies = measure_latencies(opened, [np.zeros((9, 9, 3), np.uint8)])
    assert latencies and all(each.median_ms is None and each.reason for each in latencies)
    drawing = engines_section(opened, [*latencies, EngineLatency("x", "y", reason="<b>no</b>")], ("", ""))
    assert "skipped: time limit reached" in drawing and "&lt;b&gt;no" in drawing
    assert "maskserve bench" in engines_section(opened, [], ("", ""))
