from pathlib import Path

import numpy as np
from PIL import Image

from tests.training import make_layouts
from tests.training.make_layouts import SQUARE_MASK, write_image, write_mask
from training.data import load_split
from training.lint.inspection import LINE, MARGIN, inspect_dataset, overlay


def test_the_lines_name_layout_evidence_splits_classes_and_the_rest(tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path)
    (tmp_path / "notes.md").touch()
    lines = inspect_dataset(tmp_path)
    assert lines[0] == "format: yolo (3 of 3 images have a YOLO file in labels)"
    assert "images: train 1, val 1, test 1" in lines
    assert "classes: 0 background, 1 dog, 2 cat" in lines
    assert "pair: images/train/train_1.jpg with labels/train/train_1.txt" in lines
    assert "not read: notes.md" in lines


def test_masks_without_known_classes_are_described_all_the_same(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"images/a{index}.png")
        write_mask(tmp_path / f"masks/a{index}.png", np.zeros((6, 8), np.uint8))
    (line,) = [line for line in inspect_dataset(tmp_path) if line.startswith("classes")]
    assert line.startswith("classes: unknown. The masks of")
    assert "single class" in line


def test_masks_of_many_grays_are_described(tmp_path: Path) -> None:
    """Sparse labels, and masks saved as JPEG, which are 0 and 255 with mixtures between."""
    for index in range(3):
        write_image(tmp_path / f"images/a{index}.png", (64, 48))
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 8:40] = 255
        mask[0, :] = np.arange(0, 256, 4)
        write_mask(tmp_path / f"masks/a{index}.png", mask)
    assert "classes: 0 background, 1 foreground" in inspect_dataset(tmp_path)


def test_problems_of_the_sampled_images_are_lines(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"images/a{index}.png")
        write_mask(tmp_path / f"masks/a{index}.png", SQUARE_MASK * np.uint8(4))
    (tmp_path / "classes.txt").write_text("soil\ncrop\n")
    (line,) = [line for line in inspect_dataset(tmp_path) if line.startswith("problem")]
    assert line.startswith("problem: 3 of 3 images that were read, such as: ")
    assert line.endswith("masks/a0.png has the labels 4, but there are 2 classes")
    write_image(tmp_path / "images/a0.png", (16, 12))
    assert any("a0.png has 16 x 12 pixels, its mask 8 x 6" in line for line in inspect_dataset(tmp_path))


def test_the_sheet_shows_masks_over_images(tmp_path: Path) -> None:
    for index in range(10):
        write_image(tmp_path / f"images/a{index}.png", (300, 200))
        write_mask(
            tmp_path / f"masks/a{index}.png", np.kron(SQUARE_MASK, np.ones((34, 38), np.uint8))[:200, :300] * 255
        )
    (tmp_path / "masks/a3.png").write_bytes(b"broken")
    inspect_dataset(tmp_path, sheet=tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    tile = sheet[MARGIN + LINE : MARGIN + LINE + 200, MARGIN : MARGIN + 300]
    assert tile[80, 150].tolist() == [128, 64, 64]  # half of gray and half of the class color (128, 0, 0)
    assert tile[5, 5].max() < 128  # the background, darkened a little


def test_an_overlay_has_the_size_of_a_tile_and_the_colors_of_the_classes(tmp_path: Path) -> None:
    make_layouts.make_labelme(tmp_path)
    shown = overlay(load_split(tmp_path, "train"), 0)
    assert max(shown.shape[:2]) == 300
    middle, corner = shown[shown.shape[0] // 3, 150], shown[2, 2]
    assert int(middle[0]) > int(middle[1])
    assert corner[0] == corner[1] == corner[2]
