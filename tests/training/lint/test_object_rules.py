"""Masks of other images, values that lie only at borders, images without objects, objects that the images cut."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.scan.alignment import gradient_map, mask_alignment
from training.data.scan.pixel_stats import count_border_runs
from training.lint import LintReport, lint

SIZE = (96, 128)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs on noise: an image and its mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    labels = np.zeros(SIZE, np.uint8)
    for label in (1, 2):
        for _ in range(2):
            row, column, radius = rng.integers(15, 80), rng.integers(15, 110), rng.integers(8, 16)
            labels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = label
    colors = np.array([[90, 110, 80], [200, 60, 50], [60, 80, 200]])
    return (colors[labels] + rng.normal(0, 10, (*SIZE, 3))).clip(0, 255).astype(np.uint8), labels


def make_dataset(root: Path, masks: list[np.ndarray] | None = None) -> Path:
    """Twelve images, with their own masks or others."""
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for index in range(12):
        image, labels = draw(index)
        Image.fromarray(image).save(root / f"images/train/{index:02d}.png")
        Image.fromarray(masks[index] if masks else labels).save(root / f"masks/train/{index:02d}.png")
    (root / "classes.csv").write_text("ground\nred\nblue\n")
    return root


def details(report: LintReport, kind: str) -> list[str]:
    return [finding.detail for finding in report.findings if finding.kind == kind]


def test_masks_of_their_own_images_are_no_finding(tmp_path: Path) -> None:
    report = lint(make_dataset(tmp_path))
    assert details(report, "masks of other images") == details(report, "values only at borders") == []


def test_masks_of_the_next_image_are_found(tmp_path: Path) -> None:
    masks = [draw((index + 1) % 12)[1] for index in range(12)]
    (detail,) = details(lint(make_dataset(tmp_path, masks)), "masks of other images")
    assert detail.startswith("The masks of train do not lie on the edges of their images")


def test_a_single_mask_that_was_moved_is_found(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    Image.fromarray(np.roll(draw(3)[1], 10, axis=1)).save(tmp_path / "masks/train/03.png")
    (detail,) = details(lint(tmp_path), "masks of other images")
    assert "03.png lies better" in detail


def test_alignment_is_highest_in_place_and_unknown_without_borders() -> None:
    image, labels = draw(0)
    gradients = gradient_map(image)
    assert mask_alignment(gradients, labels) > 1.15
    assert mask_alignment(gradients, np.roll(labels, 10, axis=1)) < 0.9
    assert mask_alignment(gradients, np.zeros_like(labels)) == 0
    assert mask_alignment(gradient_map(np.zeros_like(image)), labels) == 0
    assert mask_alignment(gradient_map(image[:5]), labels[:5]) == 0


def test_masks_that_were_jpegs_have_values_only_at_borders(tmp_path: Path) -> None:
    masks = []
    for index in range(12):
        buffer = io.BytesIO()
        Image.fromarray(draw(index)[1] * np.uint8(100)).save(buffer, "JPEG", quality=75)
        masks.append(np.asarray(Image.open(buffer)))
    report = lint(make_dataset(tmp_path, masks))
    (detail,) = details(report, "values only at borders")
    assert detail.startswith("12 of 12 masks have values that lie only at the borders of others")
    assert report.errors  # the values are no classes


def test_images_without_objects_are_counted(tmp_path: Path) -> None:
    masks = [draw(index)[1] * np.uint8(index >= 3) for index in range(12)]
    assert details(lint(make_dataset(tmp_path, masks)), "images without objects") == [
        "3 of the 10 images of train have only ground (label 0)."
    ]


def test_objects_that_the_images_cut_are_counted(tmp_path: Path) -> None:
    masks = [draw(index)[1] for index in range(12)]
    for labels in masks:
        labels[:2] = labels[-2:] = 0
        labels[:, :2] = labels[:, -2:] = 0
    masks[0][:3, 10:20] = masks[0][:3, 30:40] = masks[4][50:60, -3:] = 1
    (detail,) = details(lint(make_dataset(tmp_path, masks)), "objects cut at borders")
    assert detail.startswith("Objects at the border of an image: red 3 (in 2 of its ")


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        (np.zeros((4, 5), np.uint8), [1, 0, 0]),
        (np.uint8([[1, 1, 0], [1, 0, 0], [0, 0, 2]]), [2, 1, 1]),  # an object in a corner is one run
        (np.uint8([[1]]), [0, 1, 0]),
        (np.uint8([[1, 2, 1]]), [0, 1, 1]),
    ],
)
def test_border_runs(mask: np.ndarray, runs: list[int]) -> None:
    assert count_border_runs(mask, np.arange(3)).tolist() == runs
