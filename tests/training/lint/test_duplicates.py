import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.synthetic import generate_dataset
from training.lint import LintReport, lint
from training.lint.duplicates import MAX_HAMMING_DISTANCE, near_pairs


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    generate_dataset(tmp_path / "shapes", counts={"train": 12, "val": 6, "test": 6})
    return tmp_path / "shapes"


def finding_details(report: LintReport, kind: str) -> list[str]:
    return [finding.detail for finding in report.findings if finding.kind == kind]


DUPLICATE_KINDS = (
    "same image in two splits",
    "near duplicates in two splits",
    "same image twice",
    "same image, other masks",
)


def test_images_that_differ_are_no_twins(shapes: Path) -> None:
    report = lint(shapes)
    assert [finding_details(report, kind) for kind in DUPLICATE_KINDS] == [[], [], [], []]


def test_the_same_pixels_in_two_splits_are_told_whatever_the_file(shapes: Path) -> None:
    Image.open(shapes / "images/train/train_0003.jpg").save(shapes / "images/val/val_0002.png")
    (shapes / "images/val/val_0002.jpg").unlink()
    report = lint(shapes)
    (detail,) = finding_details(report, "same image in two splits")
    assert "train_0003.jpg (train)" in detail and "val_0002.png (val)" in detail
    assert finding_details(report, "near duplicates in two splits") == []  # told once


def test_an_image_saved_anew_in_another_split_is_near(shapes: Path) -> None:
    image = Image.open(shapes / "images/train/train_0005.jpg").resize((150, 112))
    image.save(shapes / "images/test/test_0001.jpg", quality=50)
    Image.new("L", (150, 112)).save(shapes / "masks/test/test_0001.png")
    (detail,) = finding_details(lint(shapes), "near duplicates in two splits")
    assert "train_0005.jpg (train)" in detail and "test_0001.jpg (test)" in detail


def test_copies_within_train_are_told_with_masks_that_differ(shapes: Path) -> None:
    for copy, mask in (("copy", "train_0001"), ("other", "train_0007")):
        shutil.copy(shapes / "images/train/train_0001.jpg", shapes / f"images/train/{copy}.jpg")
        shutil.copy(shapes / f"masks/train/{mask}.png", shapes / f"masks/train/{copy}.png")
    report = lint(shapes)
    assert len(finding_details(report, "same image, other masks")) == 1
    (shapes / "images/train/other.jpg").unlink()
    (shapes / "masks/train/other.png").unlink()
    assert len(finding_details(lint(shapes), "same image twice")) == 1


def test_flat_images_are_not_all_alike(shapes: Path) -> None:
    for place, file in enumerate([*(shapes / "images/train").iterdir(), *(shapes / "images/val").iterdir()]):
        Image.new("RGB", (192, 144), (place, place, place)).save(file)
    report = lint(shapes)
    assert finding_details(report, "near duplicates in two splits") == []
    assert finding_details(report, "near duplicates within a split") == []


def test_frames_of_a_video_within_a_split_are_one_note(shapes: Path) -> None:
    for index in (1, 2, 3):
        image = np.asarray(Image.open(shapes / "images/train/train_0000.jpg"))
        Image.fromarray(np.roll(image, index, axis=1)).save(shapes / f"images/train/train_{index:04d}.jpg", quality=95)
    (detail,) = finding_details(lint(shapes), "near duplicates within a split")
    assert detail.startswith("4 of the 12 images of train")


def test_near_pairs_are_all_pairs_within_the_distance() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 1 << 63, 800, dtype=np.uint64)
    flipped = values.copy()
    for place in range(len(values)):
        for bit in random.choice(64, random.integers(1, 10), replace=False):
            flipped[place] ^= np.uint64(1 << int(bit))
    values = np.unique(np.concatenate([values, flipped]))
    apart = np.bitwise_count(values[:, None] ^ values[None])
    one, two = np.nonzero(np.triu(apart <= MAX_HAMMING_DISTANCE, 1))
    pairs, bits = near_pairs(values)
    assert pairs.tolist() == np.stack([one, two], axis=1).tolist()
    assert bits.tolist() == apart[one, two].tolist()
    assert len(pairs) > 300


def test_a_hundred_thousand_that_are_all_alike_end() -> None:
    random = np.random.default_rng(0)
    values = np.unique(
        np.uint64(0x0F0F) ^ (np.uint64(1) << random.integers(0, 64, (100_000, 3), dtype=np.uint64)).sum(axis=1)
    )
    pairs, _ = near_pairs(values, max_pairs=1000)
    assert 1000 <= len(pairs) < 500_000
