"""`data remap --separate`: a line of background between touching objects."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from tests.training import make_layouts
from tests.training.make_layouts import HEIGHT, WIDTH, write_image, write_mask
from training.data import load_split
from training.data.tools.remap import remap_dataset
from training.data.tools.separate import separate_touching

# Two objects of three columns each that touch, and one apart.
LEFT, RIGHT, APART = slice(0, 3), slice(3, 6), slice(7, 8)


def make_objects(root: Path) -> None:
    for index in range(12):
        write_image(root / f"id{index}/images/id{index}.png")
        for number, columns in enumerate((LEFT, RIGHT, APART)):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[:, columns] = 255
            write_mask(root / f"id{index}/masks/{number}.png", mask)


def make_yolo(root: Path) -> None:
    make_layouts.make_yolo(root)
    rows = [
        f"0 {columns.start / WIDTH} 0 {columns.stop / WIDTH} 0 {columns.stop / WIDTH} 1 {columns.start / WIDTH} 1"
        for columns in (LEFT, RIGHT, APART)
    ]
    for file in root.glob("labels/*/*.txt"):
        file.write_text("\n".join(rows))


def make_coco(root: Path) -> None:
    boxes = [(columns.start, 0, columns.stop - columns.start, HEIGHT) for columns in (LEFT, RIGHT, APART)]
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h,
         "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for number, (x, y, w, h) in enumerate(boxes, 1)
    ]  # fmt: skip
    for split in ("train", "val"):
        write_image(root / f"images/{split}2017/a.jpg")
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "cell"}],
        }
        make_layouts.write_json(root / f"annotations/instances_{split}2017.json", content)


@pytest.mark.parametrize("make", [make_objects, make_yolo, make_coco])
def test_touching_objects_become_two_regions(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "data")
    assert load_split(tmp_path / "data", "train").labels(0)[0].tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
    remap_dataset(tmp_path / "data", tmp_path / "out", separate=True)
    assert load_split(tmp_path / "out", "train").labels(0).tolist() == [[1, 1, 0, 0, 1, 1, 0, 1]] * HEIGHT


def test_objects_of_two_classes_and_corners() -> None:
    instances = np.uint32([[1, 1, 2], [0, 3, 2], [3, 0, 0]])
    labels = np.uint8([[1, 1, 2], [0, 1, 2], [1, 0, 0]])
    assert separate_touching(labels, instances).tolist() == [[0, 0, 2], [0, 0, 2], [1, 0, 0]]


def test_masks_without_objects_are_refused(tmp_path: Path) -> None:
    for index in range(12):
        make_layouts.write_pair(tmp_path / "data", f"a{index}")
    with pytest.raises(DataError, match="does not tell the objects of a class apart"):
        remap_dataset(tmp_path / "data", tmp_path / "out", separate=True)
    assert not (tmp_path / "out").exists()
