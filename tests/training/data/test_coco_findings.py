import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import DataError
from tests.training.make_layouts import (
    HEIGHT,
    SQUARE,
    WIDTH,
    coco_content,
    load_coco_annotations,
    make_panoptic,
    write_image,
    write_json,
)
from training.data import load_split


def test_boxes_without_any_region_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only bounding boxes"):
        load_coco_annotations(tmp_path, {"segmentation": [], "bbox": [0, 0, 8, 2]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "invalid JSON at line 1, column 13"),
        ("", "invalid JSON at line 1"),
        ("[]", "not a list"),
        ('{"images": [], "annotations": []}', "the list `categories` is missing"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "the list `images` is missing"),
        ('{"categories": [{"id": 1}], "images": [], "annotations": []}', r"categories\[0\] needs"),
        ('{"categories": [{"id": -1, "name": "a"}], "images": [], "annotations": []}', r"categories\[0\] needs"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": []}', "the list `annotations` is missing"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": [{"id": 1}], "annotations": []}', r"images\[0\] needs"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 0, "width": 9}], "annotations": []}', r"images\[0\] needs"),
        (
            '{"images": [{"id": 1, "file_name": "a", "height": 1e6, "width": 1e6}], "annotations": []}',
            "100,000,000 pixels",
        ),
    ],
)
def test_invalid_coco_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(DataError, match=rf"instances_train\.json: .*{message}"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 7, "segmentation": [SQUARE]}, "needs the `image_id` of an image"),
        ({"segmentation": ["abcdef"]}, "needs .* a `segmentation`"),
        ({"segmentation": "x"}, "the `segmentation` is text"),
        ({"segmentation": [SQUARE[:-1]]}, "odd number"),
        ({"segmentation": [[*SQUARE[:-1], 1e30]]}, "coordinate above 10,000,000"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "needs .* a `segmentation`"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 49]}}, "needs .* a `segmentation`"),
        (
            {"segmentation": {"size": [WIDTH, HEIGHT], "counts": [48]}},
            r"for \[height, width\] \[8, 6\], but the image has \[6, 8\]",
        ),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [47]}}, "cover 47 pixels"),
        (3, "needs"),
    ],
)
def test_invalid_annotations_are_an_error_with_their_index(annotation: Any, message: str, tmp_path: Path) -> None:
    valid = {"image_id": 100, "category_id": 1, "segmentation": [SQUARE]}
    write_image(tmp_path / "a.jpg")
    invalid = {**valid, **annotation} if isinstance(annotation, dict) else annotation
    value = coco_content(["a.jpg"], [valid])
    write_json(tmp_path / "annotations" / "instances_train.json", {**value, "annotations": [valid, invalid]})
    with pytest.raises(DataError, match=rf"annotations\[1\].*{message}"):
        load_split(tmp_path, "train")


def test_an_invalid_region_found_while_drawing_names_file_and_image(tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, {"area": 9, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [40]}})
    with pytest.raises(DataError, match=r"instances_train\.json: the mask of a\.jpg: run lengths cover 40"):
        dataset.labels(0)


def test_an_unknown_category_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the category 5, which is not in `categories`"):
        load_coco_annotations(tmp_path, {"category_id": 5, "segmentation": [SQUARE]})


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "1 classes; expected 2 to 255"),
        ([{"id": id, "name": str(id)} for id in range(1203)], "1204 classes"),
        ([{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}], "two categories of the same name"),
        ([{"id": 1, "name": "dog"}, {"id": 1, "name": "cat"}], "the category id 1 occurs twice.*'dog' and 'cat'"),
    ],
)
def test_invalid_categories(categories: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, categories=categories)


def test_polygons_of_two_points_are_noted(tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, {"segmentation": [SQUARE, SQUARE[:4]]})
    assert any("1 polygons of fewer than three points" in note for note in dataset.notes)


JUNK = [None, True, -1, 10**30, 1e300, float("nan"), "", "\u00e9", [], {}, [1], [None], [["a"] * 6], {"counts": 5}]


def nested_keys(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (list or object, key) within a value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from nested_keys(value[key])


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_random_junk_in_a_coco_file_loads_or_is_a_data_error(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    make_panoptic(tmp_path)
    regions: list[dict[str, Any]] = [
        {"segmentation": [SQUARE], "bbox": [1, 1, 2, 2], "area": 3},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [13, 3, 32]}, "iscrowd": 1},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "=3300000;"}},
    ]
    segments = [{"file_name": "train_1.png", "segments_info": [{"id": 197121, "category_id": 90, "iscrowd": 0}]}]
    entries = [{"image_id": 100, "category_id": 1, **entry} for entry in (regions if kind == "instances" else segments)]
    errors = 0
    for number in range(120):
        folder = tmp_path if kind == "panoptic" else tmp_path / "instances"
        value = json.loads(json.dumps(coco_content(["train_1.jpg"], entries)))
        keys = list(nested_keys(value))
        container, key = keys[random.integers(len(keys))]
        container[key] = JUNK[random.integers(len(JUNK))]
        write_json(folder / "annotations" / f"{kind}_train2017.json", [number, value] if number == 0 else value)
        write_image(folder / "train2017" / "train_1.jpg")
        try:
            load_split(folder, "train", "coco").labels(0)
        except DataError:
            errors += 1
    assert 30 < errors < 120
