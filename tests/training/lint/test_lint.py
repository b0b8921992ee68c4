import io
import shutil
from dataclasses import replace
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
from tests.training.make_layouts import write_image, write_mask
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


def set_exif_orientation(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(file).copy().save(file, exif=exif)


def finding_details(report: LintReport, kind: str, level: str) -> list[str]:
    return [finding.detail for finding in report.findings if (finding.kind, finding.level) == (kind, level)]


def error_details(root: Path) -> dict[str, str]:
    return {finding.kind: finding.detail for finding in lint(root).errors}


def test_a_valid_data_set_has_no_errors_and_exact_counts(dataset: Path) -> None:
    report = lint(dataset)
    assert report.errors == []
    assert report.image_counts == {"train": 12, "val": 6, "test": 6}
    masks = [np.asarray(Image.open(path)) for path in sorted((dataset / "masks" / "train").iterdir())]
    assert report.pixel_counts["train"].tolist() == np.bincount(np.stack(masks).ravel(), minlength=256).tolist()
    assert report.train_image_sizes == [(144, 192)] * 12


def test_a_label_out_of_range_is_an_error_with_file_and_values(dataset: Path) -> None:
    mask = np.zeros((144, 192), np.uint8)
    mask[0, 0], mask[0, 1], mask[0, 2] = 6, 200, 255
    Image.fromarray(mask).save(dataset / "masks/train/train_0003.png")
    detail = error_details(dataset)["label out of range"]
    assert "train_0003.png" in detail
    assert "the labels 6, 200 on" in detail


def test_a_size_mismatch_is_an_error_with_both_sizes(dataset: Path) -> None:
    Image.new("L", (100, 90)).save(dataset / "masks/val/val_0001.png")
    detail = error_details(dataset)["size mismatch"]
    assert "192 x 144" in detail
    assert "100 x 90" in detail


def test_an_unreadable_file_is_an_error(dataset: Path) -> None:
    image = dataset / "images/test/test_0002.jpg"
    image.write_bytes(image.read_bytes()[:500])
    assert "test_0002.jpg" in error_details(dataset)["unreadable file"]


def test_a_color_without_a_class_is_an_error(dataset: Path) -> None:
    Image.new("RGB", (192, 144), (1, 2, 3)).save(dataset / "masks/train/train_0000.png")
    assert "1,2,3" in error_details(dataset)["color not in class list"]


def test_masks_in_other_colors_do_not_look_empty(tmp_path: Path) -> None:
    """The class list has green, the masks red: that nothing but the background is left is no finding of its own."""
    for index in range(8):
        write_image(tmp_path / f"images/{index}.png", (64, 48))
        mask = np.zeros((48, 64, 3), np.uint8)
        mask[8:24, 8 + index : 30] = (255, 0, 0)
        write_mask(tmp_path / f"masks/{index}.png", mask)
    (tmp_path / "classes.csv").write_text("soil,0,0,0\ncrop,0,255,0\n")
    kinds = {finding.kind for finding in lint(tmp_path).findings}
    assert "color not in class list" in kinds
    assert kinds.isdisjoint({"single class", "absent class", "images without objects"})


def test_an_image_without_mask_is_an_error(dataset: Path) -> None:
    (dataset / "masks/train/train_0004.png").unlink()
    assert "train_0004.jpg" in error_details(dataset)["image without mask"]


def test_an_absent_class_is_a_warning(dataset: Path) -> None:
    with (dataset / "classes.csv").open("a") as file:
        file.write("unicorn,1,1,1\n")
    report = lint(dataset)
    assert report.errors == []
    assert any("unicorn" in finding.detail and finding.level == "warning" for finding in report.findings)


def test_an_unlabeled_mask_is_a_warning(dataset: Path) -> None:
    Image.new("L", (192, 144), 255).save(dataset / "masks/train/train_0000.png")
    assert "unlabeled mask" in {finding.kind for finding in lint(dataset).findings}


def test_the_statistics_of_some_splits_are_those_without_the_others(dataset: Path) -> None:
    (dataset / "images/test/test_0002.jpg").write_bytes(b"")
    selected, alone = lint(dataset).select_splits(("train", "val")), lint(dataset, splits=("train", "val"))
    assert selected.image_counts == alone.image_counts == {"train": 12, "val": 6}
    assert selected.all_image_sizes() == alone.all_image_sizes()
    assert len(selected.errors) == 1  # also that of test: `train` refuses what `lint` does


def test_progress_counts_all_pairs(dataset: Path) -> None:
    calls: list[tuple[int, int]] = []
    lint(dataset, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (24, 24)


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="the folder ../shared/data/camvid is missing")
def test_camvid_has_no_errors() -> None:
    report = lint(CAMVID)
    assert report.errors == []
    assert report.image_counts == {"train": 367, "val": 101, "test": 233}


def test_a_split_with_a_wrong_layout_is_not_skipped(dataset: Path) -> None:
    for mask in (dataset / "masks/val").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="val has no image with a mask"):
        lint(dataset)


def test_an_unreadable_mask_is_a_finding_without_a_class_file(dataset: Path) -> None:
    (dataset / "classes.csv").unlink()
    (dataset / "masks/train/train_0000.png").write_bytes(b"nothing")
    assert "train_0000.png" in error_details(dataset)["unreadable file"]


def test_an_image_without_a_mask_is_reported_once_without_splits(valid_dataset: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(valid_dataset / kind / "train", tmp_path / kind)
    (tmp_path / "masks/train_0007.png").unlink()
    assert len(lint(tmp_path).errors) == 1


def test_pytorch_194802_a_single_pixel_out_of_range_is_an_error(dataset: Path) -> None:
    """cross_entropy on the CPU writes out of bounds for such a label."""
    file = dataset / "masks/val/val_0003.png"
    labels = np.asarray(Image.open(file)).copy()
    labels[-1, -1] = 6
    Image.fromarray(labels).save(file)
    (detail,) = finding_details(lint(dataset), "label out of range", "error")
    assert "val_0003.png" in detail and "under 0.1%" in detail


def test_mmseg_1609_masks_of_0_and_255_are_an_error(dataset: Path) -> None:
    """There they gave an IoU of 0 without a message: 255 is ignored, so one class is left."""
    for file in (dataset / "masks").rglob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(file)) > 0, 255, 0).astype(np.uint8)).save(file)
    report = lint(dataset)
    (detail,) = finding_details(report, "mask values 0 and 255", "error")
    assert "ground, disc" in detail
    assert "remap" in ADVICE["mask values 0 and 255"]


def test_notes_are_reported_once(dataset: Path) -> None:
    report = lint(dataset)
    note = "The masks have only 0 and 255; 255 is read as class 1."
    report.datasets = {split: replace(opened, notes=(note,)) for split, opened in report.datasets.items()}
    found = [finding for finding in check_dataset(report, ("train",)) if finding.kind == "assumption"]
    assert found == [Finding("warning", "assumption", note)]


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 7, 11, 12, 100, 254, 255])),
    st.integers(2, 255),
    st.dictionaries(st.sampled_from([0, 11, 100, 255]), st.sampled_from([0, 1, 254, 255]), max_size=3),
)
def test_a_mask_has_an_error_if_and_only_if_a_label_is_out_of_range(
    tmp_path_factory: pytest.TempPathFactory, mask: NDArray[np.uint8], count: int, mapped: dict[int, int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    Image.new("RGB", (5, 3)).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    classes = [ClassInfo(name=f"c{label}", rgb=(0, 0, label)) for label in range(count)]
    pair = Pair("a", folder / "image.png", folder / "mask.png")
    opened = SegmentationDataset([pair], classes, MaskEncoding(tuple(mapped.items())))
    stats = compute_sample_stats(opened, 0)
    value_labels = LabelLookup(opened.mask_encoding, count)(stats)
    findings = check_sample(pair, stats, value_labels, count, ("train", 0))
    errors = [finding for finding in findings if finding.level == "error"]
    labels = opened.labels(0)
    assert bool(errors) == bool(((labels >= count) & (labels != IGNORE_INDEX)).any())
    label_stats = compute_label_stats(stats, value_labels)
    present, counts = np.unique(labels, return_counts=True)
    assert label_stats.labels.tolist() == present.tolist()
    assert label_stats.quarters.sum(axis=(1, 2)).tolist() == counts.tolist()


def test_16_bit_labels_above_255_are_an_error(dataset: Path) -> None:
    Image.fromarray(np.full((144, 192), 300, np.uint16)).save(dataset / "masks/train/train_0000.png")
    assert any("train_0000.png" in detail and "300" in detail for detail in error_details(dataset).values())


def test_a_mask_without_the_exif_rotation_is_not_reported_as_a_size_mismatch(dataset: Path) -> None:
    set_exif_orientation(dataset / "images/train/train_0000.jpg", 6)
    report = lint(dataset)
    (detail,) = finding_details(report, "mask ignores EXIF rotation", "error")
    assert "train_0000.jpg has 144 x 192" in detail and "192 x 144, as the camera stored the image" in detail
    assert finding_details(report, "size mismatch", "error") == []
    set_exif_orientation(dataset / "images/train/train_0000.jpg", 1)
    set_exif_orientation(dataset / "images/train/train_0001.jpg", 6)
    Image.new("L", (144, 192)).save(dataset / "masks/train/train_0001.png")  # upright, as it should be
    set_exif_orientation(dataset / "images/train/train_0002.jpg", 3)
    report = lint(dataset)
    assert report.errors == []
    (detail,) = finding_details(report, "ambiguous EXIF rotation", "warning")
    assert "train_0002.jpg" in detail


def test_a_lossy_mask_is_an_error_with_invalid_labels_and_otherwise_a_warning(dataset: Path) -> None:
    for index, labels in ((0, np.zeros((144, 192), np.uint8)), (1, np.tile(np.uint8([0, 5]), (144, 96)))):
        (dataset / f"masks/train/train_{index:04d}.png").unlink()
        Image.fromarray(labels).save(dataset / f"masks/train/train_{index:04d}.jpg", quality=30 if index else 100)
    noise = np.random.default_rng(0).choice(np.uint8([0, 5]), (144, 192))
    (dataset / "masks/train/train_0002.png").unlink()
    Image.fromarray(noise).save(dataset / "masks/train/train_0002.jpg", quality=90)
    report = lint(dataset)
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
def test_step_of_scaled_labels(values: list[int], step: int | None) -> None:
    assert label_step(values) == step


def test_the_error_about_scaled_labels_has_a_hint(dataset: Path) -> None:
    for file in (dataset / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(40)).save(file)
    details = finding_details(lint(dataset), "label out of range", "error")
    assert any("The labels are 40 apart" in detail for detail in details)


def test_scaled_labels_without_a_class_file_are_a_warning(dataset: Path) -> None:
    (dataset / "classes.csv").unlink()
    for file in (dataset / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(20)).save(file)
    report = lint(dataset)
    assert len(finding_details(report, "labels look scaled", "warning")) == 1
    (detail,) = finding_details(report, "absent class", "warning")  # one finding, not 95
    assert detail.startswith("95 of 101 classes")


def test_a_single_class_is_an_error(dataset: Path) -> None:
    for file in (dataset / "masks").rglob("*.png"):
        Image.new("L", (192, 144), 2).save(file)
    (detail,) = finding_details(lint(dataset), "single class", "error")
    assert "square (label 2)" in detail


def test_a_data_set_without_labeled_pixels_is_an_error(dataset: Path) -> None:
    for file in (dataset / "masks").rglob("*.png"):
        Image.new("L", (192, 144), 255).save(file)
    report = lint(dataset)
    assert [finding.kind for finding in report.errors] == ["no labeled pixels"]
    assert len(finding_details(report, "mostly unlabeled", "warning")) == 3


def test_a_class_only_outside_train_is_a_warning(dataset: Path) -> None:
    for file in (dataset / "masks/train").iterdir():
        labels = np.asarray(Image.open(file)).copy()
        labels[labels == 4] = 0
        Image.fromarray(labels).save(file)
    (detail,) = finding_details(lint(dataset), "class only in val or test", "warning")
    assert "star (label 4)" in detail and "val" in detail


def test_a_rare_class_is_a_warning(dataset: Path) -> None:
    with (dataset / "classes.csv").open("a") as file:
        file.write("needle,1,1,1\n")
    mask = dataset / "masks/train/train_0000.png"
    labels = np.asarray(Image.open(mask)).copy()
    labels[0, :9] = 6
    Image.fromarray(labels).save(mask)
    assert any(
        "needle (label 6) is in 1 of 12" in detail for detail in finding_details(lint(dataset), "rare class", "warning")
    )


def test_tiny_and_long_images_are_warnings(dataset: Path) -> None:
    for index, size in ((0, (192, 20)), (1, (600, 40))):
        Image.new("RGB", size, "red").save(dataset / f"images/train/train_{index:04d}.jpg")
        Image.new("L", size).save(dataset / f"masks/train/train_{index:04d}.png")
    report = lint(dataset)
    assert (
        len(finding_details(report, "tiny image", "warning"))
        == len(finding_details(report, "extreme aspect ratio", "warning"))
        == 1
    )


def test_a_single_training_image_is_a_warning(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "s", counts={"train": 1, "val": 1})
    assert finding_details(lint(tmp_path / "s"), "few images", "warning") == ["train has 1 image."]


def test_label_statistics_are_those_of_training_images_without_errors(dataset: Path) -> None:
    (dataset / "images/train/train_0000.jpg").write_bytes(b"")
    Image.new("L", (192, 144), 9).save(dataset / "masks/train/train_0001.png")
    Image.new("L", (19, 14), 1).save(dataset / "masks/train/train_0002.png")
    report = lint(dataset)
    assert len(report.train_label_stats) == 9
    first = report.train_label_stats[0]
    labels = np.asarray(Image.open(dataset / "masks/train/train_0003.png"))
    assert first.size == (144, 192)
    assert first.labels.tolist() == np.unique(labels).tolist()
    assert first.quarters[0, 0, 1] == (labels[:72, 96:] == first.labels[0]).sum()
    assert (first.edges <= first.quarters.sum(axis=(1, 2))).all()


def test_a_cached_lint_has_the_same_result(dataset: Path) -> None:
    (dataset / "masks/train/train_0004.png").unlink()
    first, second, uncached = lint(dataset), lint(dataset), lint(dataset, use_cache=False)
    assert first.findings == second.findings == uncached.findings
    assert first.pixel_counts["train"].tolist() == second.pixel_counts["train"].tolist()


def render_report(report: LintReport, width: int, max_findings: int = 5) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_lint_report(report, console, max_findings)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_worst_files_come_first_and_the_advice_last(dataset: Path) -> None:
    for index, side in enumerate((30, 120, 190, 60, 10)):
        mask = np.zeros((144, 192), np.uint8)
        mask[:, :side] = 99
        Image.fromarray(mask).save(dataset / f"masks/train/train_{index:04d}.png")
    text = render_report(lint(dataset), 80, max_findings=2)
    assert text.index("train_0002.png") < text.index("train_0001.png")
    assert "train_0004.png" not in text and "and 3 more" in text
    assert "label out of range: 5" in text and "maskserve data remap" in text.replace("\n  ", " ")


def test_150_classes_do_not_hide_the_findings(dataset: Path) -> None:
    names = "".join(f"thing {label}\n" for label in range(150))
    (dataset / "classes.csv").write_text(names)
    (dataset / "masks/train/train_0004.png").unlink()
    lines = render_report(lint(dataset), 80).splitlines()
    assert len(lines) < 60
    assert any("126 more classes" in line for line in lines)
    assert max(len(line) for line in lines[:27]) <= 80


def test_file_names_are_not_interpreted_as_markup(dataset: Path) -> None:
    (dataset / "masks/train/[red]x[blue].png").write_bytes((dataset / "masks/train/train_0000.png").read_bytes())
    (dataset / "images/train/[red]x[blue].jpg").write_bytes(b"")
    assert "[red]x[blue].jpg" in render_report(lint(dataset), 80)


def test_every_kind_has_advice() -> None:
    for kind, advice in ADVICE.items():
        assert advice.endswith("."), kind
    with pytest.raises(KeyError):
        LintReport([], [Finding("error", "no such kind", "")]).findings_by_kind()


def test_sample_statistics_are_in_the_order_of_the_pairs(dataset: Path) -> None:
    report = lint(dataset)
    assert all(isinstance(stats, SampleStats) for stats in report.sample_stats["val"])
    assert len(report.sample_stats["val"]) == len(report.datasets["val"]) == 6


def test_stats_print_the_number_of_images_that_are_not_counted(dataset: Path) -> None:
    Image.new("L", (3, 3)).save(dataset / "masks/train/train_0001.png")
    output = io.StringIO()
    stats = dataset_stats(lint(dataset))
    print_stats(stats, Console(file=output, width=120))
    assert stats["splits"]["train"]["not_counted"] == 1
    assert "Not counted: 1 images" in output.getvalue()
