import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from training.lint import LintReport, lint
from training.lint.duplicates import MAX_HAMMING_DISTANCE, near_pairs


def finding_details(report: LintReport, kind: str) -> list[str]:
    return [finding.detail for finding in report.findings if finding.kind == kind]


DUPLICATE_KINDS = (
    "same image in two splits",
    "near duplicates in two splits",
    "same image twice",
    "same image, different masks",
)


def test_different_images_are_not_duplicates(dataset: Path) -> None:
    report = lint(dataset)
    assert [finding_details(report, kind) for kind in DUPLICATE_KINDS] == [[], [], [], []]


def test_equal_pixels_in_two_splits_are_found_in_any_file_format(dataset: Path) -> None:
    Image.open(dataset / "images/train/train_0003.jpg").save(dataset / "images/val/val_0002.png")
    (dataset / "images/val/val_0002.jpg").unlink()
    report = lint(dataset)
    (detail,) = finding_details(report, "same image in two splits")
    assert "train_0003.jpg (train)" in detail and "val_0002.png (val)" in detail
    assert finding_details(report, "near duplicates in two splits") == []  # reported once


def test_a_resized_image_in_another_split_is_a_near_duplicate(dataset: Path) -> None:
    image = Image.open(dataset / "images/train/train_0005.jpg").resize((150, 112))
    image.save(dataset / "images/test/test_0001.jpg", quality=50)
    Image.new("L", (150, 112)).save(dataset / "masks/test/test_0001.png")
    (detail,) = finding_details(lint(dataset), "near duplicates in two splits")
    assert "train_0005.jpg (train)" in detail and "test_0001.jpg (test)" in detail


def test_copies_within_train_are_reported_by_whether_their_masks_differ(dataset: Path) -> None:
    for copy, mask in (("copy", "train_0001"), ("other", "train_0007")):
        shutil.copy(dataset / "images/train/train_0001.jpg", dataset / f"images/train/{copy}.jpg")
        shutil.copy(dataset / f"masks/train/{mask}.png", dataset / f"masks/train/{copy}.png")
    report = lint(dataset)
    assert len(finding_details(report, "same image, different masks")) == 1
    (dataset / "images/train/other.jpg").unlink()
    (dataset / "masks/train/other.png").unlink()
    assert len(finding_details(lint(dataset), "same image twice")) == 1


def test_flat_images_are_not_duplicates(dataset: Path) -> None:
    for gray, file in enumerate([*(dataset / "images/train").iterdir(), *(dataset / "images/val").iterdir()]):
        Image.new("RGB", (192, 144), (gray, gray, gray)).save(file)
    report = lint(dataset)
    assert finding_details(report, "near duplicates in two splits") == []
    assert finding_details(report, "near duplicates within a split") == []


def test_similar_frames_within_a_split_are_one_note(dataset: Path) -> None:
    for index in (1, 2, 3):
        image = np.asarray(Image.open(dataset / "images/train/train_0000.jpg"))
        Image.fromarray(np.roll(image, index, axis=1)).save(dataset / f"images/train/train_{index:04d}.jpg", quality=95)
    (detail,) = finding_details(lint(dataset), "near duplicates within a split")
    assert detail.startswith("4 of the 12 images of train")


def test_near_pairs_are_all_pairs_within_the_distance() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 1 << 63, 600, dtype=np.uint64)
    flipped = values.copy()
    for index in range(len(values)):
        for bit in random.choice(64, random.integers(1, 10), replace=False):
            flipped[index] ^= np.uint64(1 << int(bit))
    values = np.unique(np.concatenate([values, flipped]))
    distances = np.bitwise_count(values[:, None] ^ values[None])
    one, two = np.nonzero(np.triu(distances <= MAX_HAMMING_DISTANCE, 1))
    pairs, bits = near_pairs(values)
    assert pairs.tolist() == np.stack([one, two], axis=1).tolist()
    assert bits.tolist() == distances[one, two].tolist()
    assert len(pairs) > 200


def test_the_search_stops_on_100_000_similar_values() -> None:
    random = np.random.default_rng(0)
    values = np.unique(
        np.uint64(0x0F0F) ^ (np.uint64(1) << random.integers(0, 64, (100_000, 3), dtype=np.uint64)).sum(axis=1)
    )
    pairs, _ = near_pairs(values, max_pairs=1000)
    assert 1000 <= len(pairs) < 500_000
