import html
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from models.errors import DataError
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import RawMask
from training.data.synthetic import CLASSES, generate_dataset
from training.lint import LintReport, lint
from training.lint.html_report import write_html_report
from training.lint.stats import dataset_stats, print_stats
from training.lint.thumbnails import THUMBNAIL_SIDE, UNKNOWN_LABEL, thumbnail_labels

Tag = tuple[str, dict[str, str | None]]
HTML_INJECTION = '<img src=x onerror=alert(1)>&"'


@pytest.fixture(scope="module")
def broken_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a file for most kinds of finding."""
    root = tmp_path_factory.mktemp("broken") / "set"
    generate_dataset(root, counts={"train": 10, "val": 4})
    images, masks = root / "images/train", root / "masks/train"
    (images / "train_0000.jpg").write_bytes(b"broken")
    (masks / "train_0001.png").write_bytes(b"")
    Image.new("L", (70, 30), 1).save(masks / "train_0002.png")
    (masks / "train_0003.png").unlink()
    (images / "train_0004.jpg").rename(images / f"{HTML_INJECTION}.jpg")
    (masks / "train_0004.png").unlink()
    Image.new("L", (192, 144), 77).save(masks / f"{HTML_INJECTION}.png")
    Image.open(images / "train_0005.jpg").save(root / "images/val/val_0001.jpg", quality=60)
    with (root / "classes.csv").open("a") as file:
        file.write("<b>bold</b>,1,2,3\n")
    return root


@pytest.fixture(scope="module")
def report(broken_dataset: Path) -> LintReport:
    return lint(broken_dataset)


class TagCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[Tag] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(report: LintReport, broken_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("page") / "page.html"
    write_html_report(target, report, broken_dataset)
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tags(page: str) -> list[Tag]:
    parser = TagCollector()
    parser.feed(page)
    return parser.tags


def test_names_of_files_and_classes_are_escaped(page: str, tags: list[Tag]) -> None:
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in tags)
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page
    assert "<code>maskserve data remap</code>" in page


def test_the_page_needs_no_network(page: str, tags: list[Tag]) -> None:
    addresses = [
        attributes.get("src") or attributes.get("href") or "" for tag, attributes in tags if tag in ("img", "a", "link")
    ]
    assert addresses and all(address.startswith(("data:image/", "#")) for address in addresses)
    assert all(address.startswith("data:image/") for address in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


def test_every_finding_is_on_the_page_and_linked(report: LintReport, page: str, tags: list[Tag]) -> None:
    for _, kind, findings in report.findings_by_kind():
        assert f"</b> {kind}: {len(findings)}</h3>" in page
        assert all(html.escape(finding.detail).replace("&quot;", "&#34;") in page for finding in findings[:6])
    anchors = {attributes.get("id") for _, attributes in tags}
    links = [str(attributes["href"])[1:] for tag, attributes in tags if tag == "a"]
    assert set(links) <= anchors
    assert len(links) == len(report.findings_by_kind()) + 2


def test_files_that_were_not_read_are_on_the_page(broken_dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    generate_dataset(root, counts={"train": 3, "val": 1})
    (root / "notes.md").touch()
    for index in range(2):
        (root / f"masks/train/<b>{index}.npz").touch()
    write_html_report(tmp_path / "page.html", lint(root), root)
    page = (tmp_path / "page.html").read_text()
    assert re.findall('id="not-read">(.*?)</p>', page) == ["not read: masks/train/: 2 .npz; notes.md"]


def test_duplicates_are_shown_side_by_side(page: str) -> None:
    card = page[page.index("near duplicates in two splits: 1") :].split("</figure>")[0]
    assert card.count('class="photo"') == 2
    assert "train_0005 (train)" in card and "val_0001 (val)" in card


def test_a_page_without_findings(report: LintReport, broken_dataset: Path, tmp_path: Path) -> None:
    write_html_report(tmp_path / "page.html", replace(report, findings=[]), broken_dataset)
    assert "No problems found." in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_an_error(report: LintReport, broken_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_html_report(tmp_path / "none/page.html", report, broken_dataset)


def test_thumbnail_labels_are_classes_ignored_or_unknown() -> None:
    array = np.zeros((3, THUMBNAIL_SIDE * 2), np.uint8)
    array[:, THUMBNAIL_SIDE:] = 9
    array[0] = 255
    labels = thumbnail_labels(RawMask(array), SegmentationDataset([], CLASSES))
    assert labels.shape == (2, THUMBNAIL_SIDE)
    assert np.unique(labels).tolist() == [0, UNKNOWN_LABEL, 255]


def test_statistics_of_sizes_formats_and_classes(tmp_path: Path) -> None:
    for index, size in enumerate([(60, 40), (80, 40), (200, 100)]):
        for split, kind in itertools.product(("train", "val"), ("images", "masks")):
            (tmp_path / "s" / split / kind).mkdir(parents=True, exist_ok=True)
            labels = np.zeros(size[::-1], np.uint8)
            labels[:, 8:12] = 1  # a stripe, 4 wide
            array = labels if kind == "masks" else np.repeat(labels[:, :, None] * 50, 3, axis=2)
            Image.fromarray(array).save(tmp_path / "s" / split / kind / f"{index}.png")
    (tmp_path / "s/classes.csv").write_text("ground\nstripe\n")
    stats = dataset_stats(lint(tmp_path / "s", splits=("train",)))
    train = stats["splits"]["train"]
    assert train["sizes"] == {"smallest": [40, 60], "median": [40, 80], "largest": [100, 200], "distinct": 3}
    assert train["formats"] == {"PNG": 3} and train["masks"] == {"PNG gray": 3}
    stripe = stats["classes"][1]
    assert stripe["width"] == 4.0
    assert stripe["images"] == {"train": 3}
    assert stripe["fraction"]["train"] == pytest.approx(4 * 180 / (2400 + 3200 + 20000), abs=1e-6)
    assert json.loads(json.dumps(stats)) == stats
    console = Console(file=io.StringIO(), width=80)
    print_stats(stats, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "80 x 40" in output and "stripe" in output
