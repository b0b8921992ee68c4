import io
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from models.errors import DataError
from models.spec import IGNORE_INDEX, ClassInfo
from training.data.dataset import Pair, SegmentationDataset
from training.data.mask_decoding import MaskEncoding
from training.data.scan.label_stats import LabelLookup, compute_label_stats
from training.data.scan.sample_stats import compute_sample_stats
from training.data.scan.scanner import SampleStats
from training.data.synthetic import generate_dataset
from training.lint import Finding, LintReport, lint, print_lint_report
from training.lint.dataset_rules import check_dataset
from training.lint.findings import ADVICE
from training.lint.sample_rules import check_sample, label_step
from training.lint.stats import dataset_stats, print_stats

ROOT = Path(__file__).parents[3]
CAMVID = ROOT / ".." / "shared" / "data" / "camvid"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "shapes", counts={"train": 12, "val": 6, "test": 6})
    return tmp_path / "shapes"


def set_exif_orientation(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(file).copy().save(file, exif=exif)


def finding_details(report: LintReport, kind: str, level: str) -> list[str]:
    return [finding.detail for finding in report.findings if (finding.kind, finding.level) == (kind, level)]


def error_details(root: Path) -> dict[str, str]:
    return {finding.kind: finding.detail for finding in lint(root).errors}


def test_a_good_data_set_has_no_errors_and_exact_counts(shapes: Path) -> None:
    report = lint(shapes)
    assert report.errors == []
    assert report.image_counts == {"train": 12, "val": 6, "test": 6}
    masks = [np.asarray(Image.open(path)) for path in sorted((shapes / "masks" / "train").iterdir())]
    assert report.pixel_counts["train"].tolist() == np.bincount(np.stack(masks).ravel(), minlength=256).tolist()
    assert report.train_image_sizes == [(144, 192)] * 12


def test_a_label_out_of_range_names_the_file_and_the_values(shapes: Path) -> None:
    mask = np.zeros((144, 192), np.uint8)
    mask[0, 0], mask[0, 1], mask[0, 2] = 6, 200, 255
    Image.fromarray(mask).save(shapes / "masks/train/train_0003.png")
    detail = error_details(shapes)["label out of range"]
    assert "train_0003.png" in detail
    assert "the labels 6, 200 on" in detail


def test_a_size_mismatch_names_both_sizes(shapes: Path) -> None:
    Image.new("L", (100, 90)).save(shapes / "masks/val/val_0001.png")
    detail = error_details(shapes)["size mismatch"]
    assert "192 x 144" in detail
    assert "100 x 90" in detail


def test_an_unreadable_file_is_named(shapes: Path) -> None:
    image = shapes / "images/test/test_0002.jpg"
    image.write_bytes(image.read_bytes()[:500])
    assert "test_0002.jpg" in error_details(shapes)["unreadable file"]


def test_a_mask_in_a_colour_of_no_class_is_an_error(shapes: Path) -> None:
    Image.new("RGB", (192, 144), (1, 2, 3)).save(shapes / "masks/train/train_0000.png")
    assert "1,2,3" in error_details(shapes)["colour without meaning"]


def test_an_image_without_mask_is_an_error(shapes: Path) -> None:
    (shapes / "masks/train/train_0004.png").unlink()
    assert "train_0004.jpg" in error_details(shapes)["image without mask"]


def test_a_class_that_never_occurs_is_a_warning(shapes: Path) -> None:
    with (shapes / "classes.csv").open("a") as file:
        file.write("unicorn,1,1,1\n")
    report = lint(shapes)
    assert report.errors == []
    assert any("unicorn" in finding.detail and finding.level == "warning" for finding in report.findings)


def test_an_all_void_mask_is_a_warning(shapes: Path) -> None:
    Image.new("L", (192, 144), 255).save(shapes / "masks/train/train_0000.png")
    assert "all void" in {finding.kind for finding in lint(shapes).findings}


def test_progress_is_told(shapes: Path) -> None:
    told: list[tuple[int, int]] = []
    lint(shapes, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (24, 24)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the folder ../shared/data/camvid is not there")
def test_camvid_is_clean() -> None:
    report = lint(CAMVID)
    assert report.errors == []
    assert report.image_counts == {"train": 367, "val": 101, "test": 233}


def test_a_split_laid_out_wrongly_is_not_passed_over(shapes: Path) -> None:
    for mask in (shapes / "masks/val").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="val holds no image with a mask"):
        lint(shapes)


def test_an_unreadable_mask_is_a_finding_also_where_the_classes_are_counted(shapes: Path) -> None:
    (shapes / "classes.csv").unlink()
    (shapes / "masks/train/train_0000.png").write_bytes(b"nothing")
    assert "train_0000.png" in error_details(shapes)["unreadable file"]


def test_a_lonely_image_is_reported_once(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 40, "val": 1, "test": 1})
    flat = tmp_path / "flat"
    flat.mkdir()
    for kind in ("images", "masks"):
        (tmp_path / "s" / kind / "train").rename(flat / kind)
    (flat / "masks/train_0007.png").unlink()
    assert len(lint(flat).errors) == 1


def test_pytorch_194802_no_label_out_of_range_passes(shapes: Path) -> None:
    """cross_entropy on the CPU writes out of bounds by such a label: one pixel of one mask is enough."""
    file = shapes / "masks/val/val_0003.png"
    labels = np.asarray(Image.open(file)).copy()
    labels[-1, -1] = 6
    Image.fromarray(labels).save(file)
    (detail,) = finding_details(lint(shapes), "label out of range", "error")
    assert "val_0003.png" in detail and "under 0.1%" in detail


def test_mmseg_1609_masks_of_0_and_255_are_an_error_with_a_hint(shapes: Path) -> None:
    """There they gave an IoU of 0 and no word: 255 is void, so that one class is left."""
    for file in (shapes / "masks").rglob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(file)) > 0, 255, 0).astype(np.uint8)).save(file)
    report = lint(shapes)
    (detail,) = finding_details(report, "masks of 0 and 255", "error")
    assert "ground, disc" in detail
    assert "remap" in ADVICE["masks of 0 and 255"]


def test_what_was_understood_is_told_once(shapes: Path) -> None:
    report = lint(shapes)
    note = "The masks hold 0 and 255 alone; 255 was read as class 1."
    report.datasets = {split: replace(samples, notes=(note,)) for split, samples in report.datasets.items()}
    found = [finding for finding in check_dataset(report, ("train",)) if finding.kind == "understood as"]
    assert found == [Finding("warning", "understood as", note)]


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 7, 11, 12, 100, 254, 255])),
    st.integers(2, 255),
    st.dictionaries(st.sampled_from([0, 11, 100, 255]), st.sampled_from([0, 1, 254, 255]), max_size=3),
)
def test_the_lint_finds_an_error_just_where_a_label_is_out_of_range(
    tmp_path_factory: pytest.TempPathFactory, mask: NDArray[np.uint8], count: int, mapped: dict[int, int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    Image.new("RGB", (5, 3)).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    classes = [ClassInfo(name=f"c{label}", rgb=(0, 0, label)) for label in range(count)]
    pair = Pair("a", folder / "image.png", folder / "mask.png")
    samples = SegmentationDataset([pair], classes, MaskEncoding(tuple(mapped.items())))
    facts = compute_sample_stats(samples, 0)
    labelled = LabelLookup(samples.mask_encoding, count)(facts)
    errors = [each for each in check_sample(pair, facts, labelled, count, ("train", 0)) if each.level == "error"]
    labels = samples.labels(0)
    assert bool(errors) == bool(((labels >= count) & (labels != IGNORE_INDEX)).any())
    figures = compute_label_stats(facts, labelled)
    there, counts = np.unique(labels, return_counts=True)
    assert figures.labels.tolist() == there.tolist()
    assert figures.quarters.sum(axis=(1, 2)).tolist() == counts.tolist()


def test_16_bit_labels_past_255_are_an_error(shapes: Path) -> None:
    Image.fromarray(np.full((144, 192), 300, np.uint16)).save(shapes / "masks/train/train_0000.png")
    assert any("train_0000.png" in detail and "300" in detail for detail in error_details(shapes).values())


def test_a_mask_in_the_raw_frame_is_told_apart_from_a_wrong_size(shapes: Path) -> None:
    set_exif_orientation(shapes / "images/train/train_0000.jpg", 6)
    report = lint(shapes)
    (detail,) = finding_details(report, "mask in the raw frame", "error")
    assert "train_0000.jpg is 144 x 192" in detail and "192 x 144, as the camera held it" in detail
    assert finding_details(report, "size mismatch", "error") == []
    set_exif_orientation(shapes / "images/train/train_0000.jpg", 1)
    set_exif_orientation(shapes / "images/train/train_0001.jpg", 6)
    Image.new("L", (144, 192)).save(shapes / "masks/train/train_0001.png")  # upright: right
    set_exif_orientation(shapes / "images/train/train_0002.jpg", 3)
    report = lint(shapes)
    assert report.errors == []
    (detail,) = finding_details(report, "rotation that cannot be told", "warning")
    assert "train_0002.jpg" in detail


def test_a_lossy_mask_is_an_error_where_its_labels_broke_and_a_warning_where_not(shapes: Path) -> None:
    for index, labels in ((0, np.zeros((144, 192), np.uint8)), (1, np.tile(np.uint8([0, 5]), (144, 96)))):
        (shapes / f"masks/train/train_{index:04d}.png").unlink()
        Image.fromarray(labels).save(shapes / f"masks/train/train_{index:04d}.jpg", quality=30 if index else 100)
    noise = np.random.default_rng(0).choice(np.uint8([0, 5]), (144, 192))
    (shapes / "masks/train/train_0002.png").unlink()
    Image.fromarray(noise).save(shapes / "masks/train/train_0002.jpg", quality=90)
    report = lint(shapes)
    assert any("train_0000.jpg" in detail for detail in finding_details(report, "lossy mask", "warning"))
    assert any("train_0002.jpg" in detail for detail in finding_details(report, "lossy mask", "error"))


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0, 127, 255], 127),
        ([0, 50, 100, 150], 50),
        ([0, 50, 150, 255], 50),
        ([0, 36, 73, 109, 146, 182, 219, 255], 36),
        ([0, 128], 128),
        ([0, 9], None),
        ([0, 1, 2, 3], None),
        ([0, 1, 2, 9], None),
        ([5], None),
        ([0, 255], None),
    ],
)
def test_scaled_labels_are_known_by_their_step(values: list[int], step: int | None) -> None:
    assert label_step(values) == step


def test_scaled_labels_get_a_hint(shapes: Path) -> None:
    for file in (shapes / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(40)).save(file)
    details = finding_details(lint(shapes), "label out of range", "error")
    assert any("They lie 40 apart" in detail for detail in details)


def test_numbered_classes_that_lie_far_apart_are_a_warning(shapes: Path) -> None:
    (shapes / "classes.csv").unlink()
    for file in (shapes / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(20)).save(file)
    report = lint(shapes)
    assert len(finding_details(report, "labels far apart", "warning")) == 1
    (detail,) = finding_details(report, "class that never occurs", "warning")  # one sentence, not 95
    assert detail.startswith("95 of 101 classes")


def test_one_class_alone_is_an_error(shapes: Path) -> None:
    for file in (shapes / "masks").rglob("*.png"):
        Image.new("L", (192, 144), 2).save(file)
    (detail,) = finding_details(lint(shapes), "one class alone", "error")
    assert "square (label 2)" in detail


def test_void_everywhere_is_an_error(shapes: Path) -> None:
    for file in (shapes / "masks").rglob("*.png"):
        Image.new("L", (192, 144), 255).save(file)
    report = lint(shapes)
    assert [finding.kind for finding in report.errors] == ["no labels"]
    assert len(finding_details(report, "much void", "warning")) == 3


def test_a_class_that_train_lacks_but_val_has(shapes: Path) -> None:
    for file in (shapes / "masks/train").iterdir():
        labels = np.asarray(Image.open(file)).copy()
        labels[labels == 4] = 0
        Image.fromarray(labels).save(file)
    (detail,) = finding_details(lint(shapes), "class only outside train", "warning")
    assert "star (label 4)" in detail and "val" in detail


def test_a_rare_class_is_a_warning(shapes: Path) -> None:
    with (shapes / "classes.csv").open("a") as file:
        file.write("needle,1,1,1\n")
    mask = shapes / "masks/train/train_0000.png"
    labels = np.asarray(Image.open(mask)).copy()
    labels[0, :9] = 6
    Image.fromarray(labels).save(mask)
    assert any(
        "needle (label 6) is in 1 of 12" in detail for detail in finding_details(lint(shapes), "rare class", "warning")
    )


def test_tiny_and_long_images_are_warnings(shapes: Path) -> None:
    for index, size in ((0, (192, 20)), (1, (600, 40))):
        Image.new("RGB", size, "red").save(shapes / f"images/train/train_{index:04d}.jpg")
        Image.new("L", size).save(shapes / f"masks/train/train_{index:04d}.png")
    report = lint(shapes)
    assert (
        len(finding_details(report, "tiny image", "warning"))
        == len(finding_details(report, "extreme shape", "warning"))
        == 1
    )


def test_one_image_is_too_few(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 1, "val": 1})
    assert finding_details(lint(tmp_path / "s"), "few images", "warning") == ["train has 1 image."]


def test_the_measures_are_those_of_the_good_training_images(shapes: Path) -> None:
    (shapes / "images/train/train_0000.jpg").write_bytes(b"")
    Image.new("L", (192, 144), 9).save(shapes / "masks/train/train_0001.png")
    Image.new("L", (19, 14), 1).save(shapes / "masks/train/train_0002.png")
    report = lint(shapes)
    assert len(report.train_label_stats) == 9
    first = report.train_label_stats[0]
    labels = np.asarray(Image.open(shapes / "masks/train/train_0003.png"))
    assert first.size == (144, 192)
    assert first.labels.tolist() == np.unique(labels).tolist()
    assert first.quarters[0, 0, 1] == (labels[:72, 96:] == first.labels[0]).sum()
    assert (first.edges <= first.quarters.sum(axis=(1, 2))).all()


def test_a_second_lint_says_the_same(shapes: Path) -> None:
    (shapes / "masks/train/train_0004.png").unlink()
    first, second, anew = lint(shapes), lint(shapes), lint(shapes, use_cache=False)
    assert first.findings == second.findings == anew.findings
    assert first.pixel_counts["train"].tolist() == second.pixel_counts["train"].tolist()


def render_report(report: LintReport, width: int, most: int = 5) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_lint_report(report, console, most)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_worst_files_stand_first_with_what_to_do(shapes: Path) -> None:
    for index, side in enumerate((30, 120, 190, 60, 10)):
        mask = np.zeros((144, 192), np.uint8)
        mask[:, :side] = 99
        Image.fromarray(mask).save(shapes / f"masks/train/train_{index:04d}.png")
    text = render_report(lint(shapes), 80, most=2)
    assert text.index("train_0002.png") < text.index("train_0001.png")
    assert "train_0004.png" not in text and "and 3 more" in text
    assert "label out of range: 5" in text and "maskserve data remap" in text.replace("\n  ", " ")


def test_a_hundred_and_fifty_classes_do_not_hide_the_findings(shapes: Path) -> None:
    names = "".join(f"thing {label}\n" for label in range(150))
    (shapes / "classes.csv").write_text(names)
    (shapes / "masks/train/train_0004.png").unlink()
    lines = render_report(lint(shapes), 80).splitlines()
    assert len(lines) < 60
    assert any("126 more classes" in line for line in lines)
    assert max(len(line) for line in lines[:27]) <= 80


def test_names_of_files_are_no_markup(shapes: Path) -> None:
    (shapes / "masks/train/[red]x[blue].png").write_bytes((shapes / "masks/train/train_0000.png").read_bytes())
    (shapes / "images/train/[red]x[blue].jpg").write_bytes(b"")
    assert "[red]x[blue].jpg" in render_report(lint(shapes), 80)


def test_every_kind_says_what_to_do() -> None:
    for kind, advice in ADVICE.items():
        assert advice.endswith("."), kind
    with pytest.raises(KeyError):
        LintReport([], [Finding("error", "no such kind", "")]).findings_by_kind()


def test_the_facts_of_a_report_are_in_order(shapes: Path) -> None:
    report = lint(shapes)
    assert all(isinstance(each, SampleStats) for each in report.sample_stats["val"])
    assert len(report.sample_stats["val"]) == len(report.datasets["val"]) == 6


def test_stats_say_what_they_leave_out(shapes: Path) -> None:
    Image.new("L", (3, 3)).save(shapes / "masks/train/train_0001.png")
    said = StringIO()
    told = dataset_stats(lint(shapes))
    print_stats(told, Console(file=said, width=120))
    assert told["splits"]["train"]["not_counted"] == 1
    assert "Not counted: 1 images" in said.getvalue()
