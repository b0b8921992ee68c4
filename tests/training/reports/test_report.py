"""`report.html`: what it says, that it needs nobody, and that no name in it is more than text."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.reports.latency
from models.bundle import SPEC, SUMS, open_bundle, writing
from models.engines import ENGINES
from models.spec import VOID, ClassInfo, default_rgb, palette
from tests.fixtures_bundles import SILENT
from training.data.synthetic import draw
from training.evaluate import evaluate
from training.metrics.bootstrap import Tally
from training.metrics.confusion import Confusion
from training.reports.confusion_matrix import MOST, heatmap
from training.reports.gallery import SHOWN, STRIPE, errors, extremes, mask_png
from training.reports.latency import Speed, engines_section, measured
from training.reports.line_chart import curves

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "&lt;$css ${js} $$",
    "[/bold]",
    "</style></title></svg>",
]
CURVES = "epoch,step,lr,loss,miou,pixel_accuracy,images_per_second,iou_a,later\n"


class Read(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a bundle, a data set, classes and pictures that all go by names that mean harm."""
    folder = tmp_path_factory.mktemp("page")
    spec = json.loads((tiny_bundle / SPEC).read_text())
    spec["name"] = HOSTILE[0]
    for entry, name in zip(spec["classes"], HOSTILE, strict=True):
        entry["name"] = name
    with writing(folder / "bundle") as new:
        shutil.copytree(tiny_bundle, new, dirs_exist_ok=True)
        (new / SUMS).unlink()
        (new / SPEC).write_text(json.dumps(spec))
        (new / "report").mkdir()
        (new / "report/metrics.csv").write_text(CURVES + "1,10,0.1,<b>2,,0.5,9,,x\n2,20,0.05,1.5,0.25,0.6,9,,x\n")
    data = folder / "<i>data"
    draw(data, counts={"train": 2, "val": 2, "test": 4})
    lines = ['"' + name.replace('"', '""') + '"' for name in HOSTILE]
    (data / "classes.csv").write_text("\n".join(lines))
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
        one = next((data / kind / "test").glob("test_0001*"))
        one.rename(one.with_name(f"<img src=x onerror=alert(4)>{one.suffix or suffix}"))
    for mask in (data / "masks/test").iterdir():  # one class is absent
        labels = np.asarray(Image.open(mask)).copy()
        labels[labels == 5] = VOID
        Image.fromarray(labels).save(mask)
    evaluate(folder / "bundle", data, out=folder / "out", console=SILENT)
    return (folder / "out/report.html").read_text()


def test_hostile_names_are_text_and_nothing_else(page: str) -> None:
    read = Read(page)
    assert len(read.of("script")) == 1
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    text = "".join(read.words)
    for name in HOSTILE:
        assert name in text, name
    assert "<img src=x onerror=alert(4)>" in text
    assert "<i>data" in text
    assert {attributes["src"][:5] for attributes in read.of("img") if attributes["src"]} == {"data:"}
    assert len(read.of("img")) == 3 * 4
    assert all(set(attributes) == {"style"} for attributes in read.of("i"))  # the bars', not the data set's


def test_it_opens_without_a_network(page: str) -> None:
    assert [address for address in re.findall(r"https?://[^\s\"'<>)]*", page) if "w3.org" not in address] == []
    read = Read(page)
    assert not read.of("link") and not read.of("iframe") and not read.of("object")
    for _, attributes in read.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert all(
            address.startswith("data:image/") for address in re.findall(r"url\(([^)]*)", attributes.get("style") or "")
        )
    policy = next(one["content"] for one in read.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")
    assert "@import" not in page and "url(//" not in page


def test_what_a_keyboard_and_a_reader_need(page: str) -> None:
    read = Read(page)
    labels = {one.get("for") for one in read.of("label")}
    assert [one["id"] for one in read.of("input") if one.get("type") == "range"] == ["opacity"]
    assert labels == {"opacity"}
    assert all(one.get("aria-label") for one in read.of("svg") if one.get("role") == "img")
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(one["href"])[1:] for one in read.of("a")} <= set(ids)
    assert read.of("html")[0]["lang"] == "en" and "prefers-color-scheme" in page


def test_the_absent_is_said_and_the_curves_are_drawn(page: str) -> None:
    text = "".join(Read(page).words)
    assert "absent from this split" in text
    assert "epoch 2: mIoU 0.25" in text and "epoch 1: pixel accuracy 0.5" in text and "epoch 2: loss 1.5" in text
    assert "epoch 1: loss" not in text  # it was no number
    assert len(page) < 3_000_000


def test_curves_of_tables_that_are_broken_missing_or_from_later(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    assert "no curves" in curves(None)
    for content in (b"", b"\xff\xfe\x00", b"epoch,loss\n", b"a,b\n1,2\n", b"epoch\nx\n"):
        table.write_bytes(content)
        assert "no curves" in curves(table)
    table.write_text("new,epoch,loss,miou\n7,1,0,nan\n7,2,0,inf\n7,3,0,\n")
    drawing = curves(table)
    assert "<svg" in drawing and "validation" not in drawing and "nan" not in drawing
    table.write_text(CURVES + "".join(f"{epoch},1,0.1,{9 / epoch},0.{epoch:03d},0.9,1,,\n" for epoch in range(1, 900)))
    assert len(curves(table)) < 600_000
    table.write_text(CURVES + "0.25,9,0.1,2,0.2,0.9,1,,\n0.5,18,0.1,2,0.3,0.9,1,,\n")  # validated within an epoch
    assert "epoch 0.25: mIoU 0.2" in curves(table) and "epoch 0.5: mIoU 0.3" in curves(table)
    table.write_text(CURVES + "5,1,0.1,2,0.3,0.9,1,,\n")  # an epoch alone
    assert "epoch 5: mIoU 0.3" in curves(table)


def test_an_epoch_without_a_value_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("epoch,loss\n1,1\n2,2\n3,\n4,2\n5,1\n")
    (path,) = re.findall(r'class="line" d="([^"]*)"', curves(tmp_path / "m.csv"))
    assert (path.count("M"), path.count("L")) == (2, 2)


def matrix_of(classes: int) -> tuple[Confusion, list[ClassInfo]]:
    matrix, random = Confusion(classes), np.random.default_rng(0)
    for _ in range(3):
        truth = random.integers(0, classes, (500, 600)).astype(np.uint8)
        matrix.add(truth, np.where(random.random(truth.shape) < 0.6, truth, random.permuted(truth)).astype(np.uint8))
    return matrix, [ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(classes)]


def test_the_matrix_says_its_counts_and_shares() -> None:
    matrix = Confusion(2)
    matrix.add(np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 0, 1, VOID]], np.uint8))
    drawing = heatmap(matrix, [ClassInfo(name=name, rgb=(0, 0, 0)) for name in "ab"])
    titles = re.findall(r"<title>([^<]*)</title>", drawing)
    assert titles == [
        "a answered as a: 2 pixels, 66.67% of the class",
        "a answered as b: 1 pixels, 33.33% of the class",
        "b answered as no class: 1 pixels, 100.00% of the class",
    ]
    assert "b answered as no class: 100.0% of b" in "".join(Read(drawing).words)


@pytest.mark.parametrize("classes", [2, 60, 200, 254])
def test_the_matrix_stays_sane_with_many_classes(classes: int) -> None:
    drawing = heatmap(*matrix_of(classes))
    assert drawing.count("<rect") <= classes * MOST
    assert len(drawing) < 3_000_000
    width, height = (float(number) for number in re.findall(r'<svg[^>]*width="(\d+)" height="(\d+)"', drawing)[0])
    assert width < 3200 and height < 3200
    corners = [(float(x), float(y)) for x, y in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', drawing)]
    assert max(x for x, _ in corners) < width and max(y for _, y in corners) < height


def test_without_an_error_there_is_no_confusion() -> None:
    matrix = Confusion(2)
    matrix.add(np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))
    assert "None: every pixel that counts is right." in heatmap(
        matrix, [ClassInfo(name=n, rgb=(0, 0, 0)) for n in "ab"]
    )


@pytest.mark.parametrize("pictures", [1, 2, 5, 12, 13, 40])
def test_no_picture_is_both_among_the_worst_and_the_best(pictures: int) -> None:
    tally, rates = Tally(1), np.random.default_rng(0).permutation(pictures)
    for rate in rates:
        tally.add(str(rate), np.array([[rate], [100], [rate]]), np.zeros((3, 1), np.int64))
    tally.add("void", np.zeros((3, 1), np.int64), np.zeros((3, 1), np.int64))
    worst, best = extremes(tally)
    assert len(worst) + len(best) == min(pictures, 2 * SHOWN) and len(worst) <= SHOWN and len(best) <= SHOWN
    assert [tally.names[index] for index in worst] == [str(rate) for rate in range(len(worst))]
    assert [tally.names[index] for index in best] == [str(pictures - 1 - place) for place in range(len(best))]


def test_a_mask_is_its_colours_and_void_is_clear() -> None:
    labels = np.array([[0, 1, VOID], [1, 0, 3]], np.uint8)
    colours = palette([ClassInfo(name=str(label), rgb=(10 * label, 20, 30)) for label in range(4)])
    address = mask_png(labels, colours)
    assert address.startswith("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA")
    seen = np.asarray(image)
    assert seen[..., 3].tolist() == [[255, 255, 0], [255, 255, 255]]
    assert seen[1, 2, :3].tolist() == [30, 20, 30] and seen[0, 0, :3].tolist() == [0, 20, 30]


def test_errors_are_what_is_wrong_and_void_is_striped() -> None:
    truth = np.full((20, 30), 1, np.uint8)
    truth[:, :10] = VOID
    answer = truth.copy()
    answer[5, 20], answer[:, :10], answer[7, 25] = 0, 0, VOID
    seen = errors(truth, answer)
    assert np.argwhere(seen == 1).tolist() == [[5, 20], [7, 25]]
    stripes = seen[:, :10]
    assert set(np.unique(stripes).tolist()) == {0, 2} and STRIPE < 10
    assert not seen[:, 10:][seen[:, 10:] == 2].size


def test_every_engine_that_is_here_is_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.reports.latency, "EACH", 0.01)
    monkeypatch.setattr(training.reports.latency, "BUDGET", 600.0)
    opened = open_bundle(tiny_bundle)
    found = measured(opened, [np.zeros((90, 120, 3), np.uint8)])
    assert {one.engine for one in found} >= set(ENGINES)
    assert all(one.ms is not None and one.ms > 0 for one in found)
    drawing = engines_section(opened, found, ("openvino", "f32"))
    assert "openvino <b>(this evaluation)</b>" in drawing and "model.onnx" in drawing and " MB" in drawing


def test_engines_that_were_not_reached_say_so(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.reports.latency, "BUDGET", -1.0)
    opened = open_bundle(tiny_bundle)
    found = measured(opened, [np.zeros((9, 9, 3), np.uint8)])
    assert found and all(one.ms is None and one.why for one in found)
    drawing = engines_section(opened, [*found, Speed("x", "y", why="<b>no</b>")], ("", ""))
    assert "the others took the time" in drawing and "&lt;b&gt;no" in drawing
    assert "maskserve bench" in engines_section(opened, [], ("", ""))
