"""labelme, YOLO, Label Studio and CVAT: what is drawn, and what is said about broken files."""

import base64
import contextlib
import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from tests.fixtures_images import make_png
from tests.training import make_layouts
from tests.training.make_layouts import (
    CVAT_POLYGON,
    HEIGHT,
    SQUARE,
    SQUARE_MASK,
    WIDTH,
    label_studio_region,
    write_cvat,
    write_image,
    write_json,
)
from training.data import load_available_splits, load_split
from training.data.formats.label_studio import decode_brush
from training.data.formats.shapes import Shape, decode_run_lengths, ellipse, paint, thick_line
from training.lint import lint

SQUARE_RLE = "=3300000;"  # of pycocotools
CORNERS = list(zip(SQUARE[::2], SQUARE[1::2], strict=True))


def errors_of(root: Path) -> list[str]:
    """The errors of the lint about single files."""
    return [finding.detail for finding in lint(root).errors if finding.kind == "unreadable file"]


def png_base64(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


HUGE_PNG = base64.b64encode(make_png((20_000, 20_000), 1, 0, b"")).decode()


def write_labelme(root: Path, *shapes: dict[str, Any], name: str = "broken", **more: Any) -> Path:
    write_image(root / f"{name}.jpg")
    content = {
        "version": "5",
        "shapes": list(shapes),
        "imagePath": f"{name}.jpg",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    return write_json(root / f"{name}.json", content | more)


@pytest.fixture
def labelme(tmp_path: Path) -> Path:
    make_layouts.make_labelme(tmp_path)
    return tmp_path


def labels_named(root: Path, name: str) -> np.ndarray:
    for dataset in load_available_splits(root).values():
        for index, pair in enumerate(dataset.pairs):
            if pair.name.endswith(name):
                return dataset.labels(index)
    raise AssertionError(name)


def test_labelme_rectangles_and_masks_are_drawn_to_the_pixel(labelme: Path) -> None:
    bitmap = {
        "label": "cat",
        "shape_type": "mask",
        "points": [[2, 1], [5, 3]],
        "mask": png_base64(SQUARE_MASK[1:4, 2:6] * 255),
    }
    write_labelme(labelme, bitmap)
    assert (labels_named(labelme, "broken") == SQUARE_MASK).all()
    assert (labels_named(labelme, "shot0") == SQUARE_MASK).all()


def test_labelme_polygons_have_their_outline_as_in_labelmes_own_export(labelme: Path) -> None:
    write_labelme(labelme, {"label": "cat", "points": CORNERS, "shape_type": "polygon"})
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:5, 2:7] = 1  # PIL draws both ends of an edge
    assert (labels_named(labelme, "broken") == expected).all()


def test_labelme_shapes_to_ignore_are_no_class(labelme: Path) -> None:
    square = {"label": "__ignore__", "points": [[2, 1], [6, 4]], "shape_type": "rectangle"}
    write_labelme(labelme, square)
    (labelme / "labels.txt").write_text("__ignore__\ndog\ncat\n")
    assert (labels_named(labelme, "broken") == 255 * SQUARE_MASK).all()
    assert [entry.name for entry in load_split(labelme, "train").classes] == ["background", "dog", "cat"]


def test_labelme_files_that_are_all_broken_name_the_first(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"a{index}.json").write_text('{"version": "5", "shapes": [{"label": "a", "poi')
    with pytest.raises(DataError, match=r"a0\.json: invalid JSON at line 1"):
        load_split(tmp_path, "train")


def test_later_labelme_shapes_lie_over_earlier_ones(labelme: Path) -> None:
    whole = {"label": "dog", "points": [[0, 0], [WIDTH, HEIGHT]], "shape_type": "rectangle"}
    write_labelme(labelme, whole, {"label": "cat", "points": [[2, 1], [6, 4]], "shape_type": "rectangle"})
    assert [entry.name for entry in load_split(labelme, "train").classes] == ["background", "cat", "dog"]
    assert (labels_named(labelme, "broken") == np.where(SQUARE_MASK, 1, 2)).all()


def test_labelme_points_and_missing_images_are_left_out_with_a_note(labelme: Path) -> None:
    write_labelme(labelme, {"label": "nose", "points": [[1, 1]], "shape_type": "point"})
    (labelme / "shot3.jpg").unlink()
    notes = " ".join(load_split(labelme, "train").notes)
    assert "1 points of labelme have no area" in notes
    assert "1 labelme files have no image beside them" in notes


def test_labelme_files_beside_folders_of_images_find_the_image_of_their_split(tmp_path: Path) -> None:
    for split, label in (("train", "cat"), ("valid", "dog")):
        shape = {"label": label, "points": [[2, 1], [6, 4]], "shape_type": "rectangle"}
        for index in range(2):
            write_labelme(tmp_path / split / "labels", shape, name=f"{index}")
            (tmp_path / split / f"labels/{index}.jpg").rename(write_image(tmp_path / split / f"images/{index}.jpg"))
    for split, label in (("train", 1), ("val", 2)):
        dataset = load_split(tmp_path, split)
        assert [pair.image.parent.parent.name for pair in dataset.pairs] == [
            {"train": "train", "val": "valid"}[split]
        ] * 2
        assert (dataset.labels(0) == label * SQUARE_MASK).all()


def test_yolo_files_beside_their_images_and_names_in_a_file_of_another_name(tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path, "obj_{}_data", "obj_{}_data")
    (tmp_path / "data.yaml").rename(tmp_path / "pets-seg.yaml")
    names = [f"obj_{split}_data/{split}_1" for split in ("train", "val", "test")]
    opened = load_available_splits(tmp_path)
    assert sorted(pair.name for dataset in opened.values() for pair in dataset.pairs) == sorted(names)
    assert [entry.name for entry in opened["train"].classes] == ["background", "dog", "cat"]
    assert (opened["train"].labels(0) == 2 * SQUARE_MASK).all()


def test_boxes_of_a_detector_do_not_hide_masks(tmp_path: Path) -> None:
    for index in range(4):
        make_layouts.write_pair(tmp_path, f"a{index}")
        make_layouts.write_lines(tmp_path / f"labels/a{index}.txt", "0 0.5 0.5 0.2 0.2")
    assert load_split(tmp_path, "train").pairs[0].mask.parent.name == "masks"


POLYGON = {"label": "cat", "shape_type": "polygon"}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (POLYGON | {"points": [[1, 1], [2, 2]]}, r"shapes\[0\] \(cat\): a polygon has 2 points"),
        (POLYGON | {"points": [[1, 1], [2, 2], [3]]}, "points that are not pairs of numbers"),
        (POLYGON | {"points": [[1, 1], [2, "x"], [3, 3]]}, "points that are not pairs of numbers"),
        (POLYGON | {"points": [[1, 1], [1e300, 2], [3, 3]]}, "coordinate that is not a number or above"),
        (POLYGON | {"points": [[1, 1], [float("nan"), 2], [3, 3]]}, "coordinate that is not a number or above"),
        (POLYGON | {"label": None, "points": CORNERS}, r"shapes\[0\]: the class name is missing or empty"),
        (POLYGON | {"label": ["cat"], "points": CORNERS}, "the class name is '.*'; expected a text"),
        (
            {"label": "cat", "shape_type": "rectangle", "points": [[1, 1]]},
            "a rectangle is not as labelme writes it: expected `points` of two or four corners",
        ),
        ({"label": "cat", "shape_type": "blob", "points": [[1, 1]]}, "the shape type 'blob' is unknown"),
        (
            {"label": "cat", "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": "AAAA"},
            "the bitmap of a mask: ",
        ),
        (
            {"label": "cat", "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": HUGE_PNG},
            "the limit is 100,000,000",
        ),
    ],
)
def test_a_broken_labelme_shape_is_a_finding_with_the_file(shape: dict[str, Any], message: str, labelme: Path) -> None:
    write_labelme(labelme, shape)
    (detail,) = errors_of(labelme)
    assert "broken.json" in detail
    assert [entry.name for entry in load_split(labelme, "train").classes] == ["background", "cat"]
    with pytest.raises(DataError, match=message):
        labels_named(labelme, "broken")


@pytest.mark.parametrize("text", ["{", "[]", '{"shapes": 3}', '{"shapes": [{"label": "x"}]}', "[" * 5000])
def test_a_labelme_file_that_cannot_be_parsed_is_a_finding(text: str, labelme: Path) -> None:
    (labelme / "shot1.json").write_text(text)
    (detail,) = errors_of(labelme)
    assert "shot1.json" in detail


def test_negative_coordinates_are_cut_at_the_border(labelme: Path) -> None:
    write_labelme(labelme, POLYGON | {"points": [[-50, -50], [4, -50], [4, 99999], [-50, 99999]]})
    assert labels_named(labelme, "broken")[:, :4].all()
    assert not labels_named(labelme, "broken")[:, 6:].any()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7 0.1 0.1 0.5 0.1 0.5 0.5", "line 2: the class 7 is not one of the 2 classes"),
        ("x 0.1 0.1 0.5 0.1 0.5 0.5", "line 2: the class x is not one"),
        ("0 0.5 0.5 0.2 0.2", "line 2: a box without an outline"),
        ("0 0.1 0.1 0.5 0.1 0.5", "line 2: 5 coordinates; expected pairs"),
        ("0 0.1 0.1", "line 2: a polygon has 1 points"),
        ("0 0.1 0.1 0.5 abc 0.5 0.5", "line 2: not a row of numbers"),
        ("0 10 10 200 10 200 100", "line 2: coordinates up to 200; expected fractions"),
        ("0 0.1 0.1 nan 0.2 0.5 0.5", "line 2: a polygon has a coordinate that is not a number"),
    ],
)
def test_a_broken_yolo_row_is_a_finding_with_file_and_line(row: str, message: str, tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path)
    file = tmp_path / "labels/train/train_1.txt"
    file.write_text(f"{file.read_text()}{row}\n")
    (detail,) = errors_of(tmp_path)
    assert "train_1.txt" in detail
    assert message in detail


def test_yolo_rows_are_drawn_in_fractions_and_images_without_a_file_are_background(tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path)
    write_image(tmp_path / "images/train/empty.jpg")
    dataset = load_split(tmp_path, "train")
    assert [np.unique(dataset.labels(index)).tolist() for index in range(2)] == [[0], [0, 2]]
    assert (dataset.labels(1) == 2 * SQUARE_MASK).all()
    assert any("1 of 4 images have no YOLO file" in note for note in dataset.notes)


def test_yolo_run_lengths_are_read_to_the_pixel(tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path)
    file = tmp_path / "labels/train/train_1.txt"
    file.write_text(f"0 rle {HEIGHT} {WIDTH} {SQUARE_RLE}\n")  # the first row decides whether this is YOLO
    dataset = load_split(tmp_path, "train")
    assert (dataset.labels(0) == SQUARE_MASK).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"0 rle {WIDTH} {HEIGHT} 0", "line 1: the run lengths are for 6 x 8 pixels, but the image has 8 x 6"),
        (f"0 rle {HEIGHT} {WIDTH} 1", "line 1: run lengths cover 1 pixels, but the mask has 8 x 6"),
        (f"0 rle {HEIGHT} {WIDTH} oooo", "line 1: compressed run lengths have invalid letters or are truncated"),
        (f"0 rle {HEIGHT} {WIDTH}", "line 1: expected `class rle height width counts`"),
        (f"9 rle {HEIGHT} {WIDTH} {'1'}", "line 1: the class 9 is not one of the 2 classes"),
    ],
)
def test_broken_yolo_run_lengths_are_a_finding(row: str, message: str, tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path)
    (tmp_path / "labels/train/train_1.txt").write_text(row)
    (detail,) = errors_of(tmp_path)
    assert message in detail and "train_1.txt" in detail


def test_yolo_without_names_numbers_the_classes_and_broken_names_are_an_error(tmp_path: Path) -> None:
    make_layouts.make_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: cat, 0: dog}")
    assert [entry.name for entry in load_split(tmp_path, "train").classes] == ["background", "dog", "cat"]
    (tmp_path / "data.yaml").write_text("nc: 2")
    with pytest.raises(DataError, match=r"data\.yaml: no list `names`"):
        load_split(tmp_path, "train")
    aliases = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 30))
    (tmp_path / "data.yaml").write_text(f"a0: &a0 [x]\n{aliases}names: *a29\n")  # billion laughs
    with pytest.raises(DataError, match=r"data\.yaml: no list `names`"):
        load_split(tmp_path, "train")
    (tmp_path / "data.yaml").unlink()
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["background", "class0", "class1"]
    assert any("no data.yaml" in note for note in dataset.notes)


def encode_brush(mask: np.ndarray, literal: bool = False) -> list[int]:
    """A brush stroke as Label Studio writes it: runs, or one literal block."""
    words = np.repeat(mask.reshape(-1) * np.uint8(255), 4).tolist()
    bits = f"{len(words):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    if literal:
        bits += f"0{3:02b}{len(words) - 1:016b}" + "".join(f"{word:08b}" for word in words)
    else:
        start = 0
        while start < len(words):
            stop = start
            while stop < len(words) and words[stop] == words[start]:
                stop += 1
            bits += f"1{3:02b}{stop - start - 1:016b}{words[start]:08b}"
            start = stop
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


@pytest.mark.parametrize("literal", [False, True])
def test_brush_strokes_are_decoded(literal: bool) -> None:
    assert (decode_brush(encode_brush(SQUARE_MASK, literal), (HEIGHT, WIDTH)) == (SQUARE_MASK > 0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-3], "end too early"),
        (lambda content: content[:4], "end too early"),
        (lambda content: [0, 0, 0, 8, *content[4:]], "cover 2 pixels, but the image has 8 x 6"),
        (lambda content: [*content[:-1], "x"], "are not bytes"),
        (lambda content: [*content[:-1], 999], "are not bytes"),
    ],
)
def test_broken_brush_strokes(change: Callable[[list[int]], list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_brush(change(encode_brush(SQUARE_MASK)), (HEIGHT, WIDTH))


def write_tasks(root: Path, *annotations: dict[str, Any]) -> Path:
    make_layouts.make_label_studio_tasks(root)
    file = root / "project-1-at-2024-01-01.json"
    tasks = json.loads(file.read_text())
    tasks[0]["annotations"] = list(annotations)
    return write_json(file, tasks)


def brush_region(mask: np.ndarray, label: str = "dog") -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]}
    return {"type": "brushlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def test_the_ground_truth_is_read_or_else_the_newest_annotation(tmp_path: Path) -> None:
    old = {"id": 1, "updated_at": "2024-01-01", "result": [label_studio_region()]}
    new = {"id": 2, "updated_at": "2024-02-01", "result": [brush_region(1 - SQUARE_MASK)]}
    cancelled = {"id": 3, "updated_at": "2024-03-01", "was_cancelled": True, "result": []}
    write_tasks(tmp_path, old, new, cancelled)
    assert (labels_named(tmp_path, "shot0") == 2 * (1 - SQUARE_MASK)).all()
    write_tasks(tmp_path, old | {"ground_truth": True}, new, cancelled)
    assert (labels_named(tmp_path, "shot0") == SQUARE_MASK).all()
    assert any("1 tasks have several annotations" in note for note in load_split(tmp_path, "train").notes)


def test_key_points_of_label_studio_have_no_area(tmp_path: Path) -> None:
    point = {"id": "k", "value": {"x": 3, "y": 3, "width": 1, "keypointlabels": ["tip"]}}
    write_tasks(tmp_path, {"id": 1, "result": [label_studio_region(), point]})
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["background", "cat"]
    assert any("1 key points have no area" in note for note in dataset.notes)


def test_bitmasks_rectangles_and_ellipses_of_label_studio(tmp_path: Path) -> None:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    bitmask = {"imageDataURL": f"data:image/png;base64,{png_base64(SQUARE_MASK * 255)}", "bitmasklabels": ["cat"]}
    write_tasks(tmp_path, {"id": 1, "result": [{"value": bitmask, **size}]})
    assert (labels_named(tmp_path, "shot0") == SQUARE_MASK).all()
    box = {"x": 25, "y": 100 / 6, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
    write_tasks(tmp_path, {"id": 1, "result": [{"value": box, **size}]})
    assert (labels_named(tmp_path, "shot0") == SQUARE_MASK).all()
    round_ = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 50, "ellipselabels": ["cat"]}
    write_tasks(tmp_path, {"id": 1, "result": [{"value": round_, **size}]})
    assert labels_named(tmp_path, "shot0").sum() == pytest.approx(np.pi * 2 * 3, abs=3)


def test_regions_of_label_studio_without_a_class_are_noted(tmp_path: Path) -> None:
    """With a separate <Labels> tag a region is written twice under one id, the second time with its label."""
    alone = label_studio_region() | {"id": "a", "value": {"points": label_studio_region()["value"]["points"]}}
    null = label_studio_region() | {"id": "b", "value": alone["value"] | {"polygonlabels": [None]}}
    twice = [alone | {"id": "c"}, label_studio_region() | {"id": "c"}]
    write_tasks(tmp_path, {"id": 1, "result": [alone, null, *twice]})
    dataset = load_split(tmp_path, "train")
    assert any("2 regions have no class" in note for note in dataset.notes)
    assert [entry.name for entry in dataset.classes] == ["background", "cat"]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (brush_region(SQUARE_MASK) | {"original_width": 9}, "cover 48 pixels, but the image has 9 x 6"),
        (label_studio_region() | {"original_width": "wide"}, "a region is not as Label Studio writes it"),
        (label_studio_region() | {"original_height": 10**9}, "different or invalid sizes"),
        (
            {
                "value": {"points": [[1, 1], [2, 2]], "polygonlabels": ["cat"]},
                "original_width": 8,
                "original_height": 6,
            },
            "2 points",
        ),
        (
            {"value": {"brushlabels": ["cat"]}, "original_width": 8, "original_height": 6},
            "a region is not as Label Studio",
        ),
    ],
)
def test_a_broken_region_of_label_studio_is_a_finding(region: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_tasks(tmp_path, {"id": 1, "result": [region]})
    (detail,) = errors_of(tmp_path)
    assert "shot0.jpg" in detail
    assert message in detail


def test_label_studio_files_that_cannot_be_parsed_and_lost_images(tmp_path: Path) -> None:
    file = write_tasks(tmp_path, {"id": 1, "result": []})
    tasks = file.read_text()
    file.write_text(tasks[:-20])
    with pytest.raises(DataError, match="invalid JSON"):
        load_split(tmp_path, "train")
    file.write_text(tasks)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(DataError, match=r"lists 12 images, but none of them is in .*; looked for .*shot0\.jpg"):
        load_split(tmp_path, "train")


def test_pngs_of_label_studio_without_image_names_say_what_to_export(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_image(tmp_path / "masks/task-1-annotation-3-by-1-tag-ball-0.png")
    with pytest.raises(DataError, match=r"one per label.*Export the project again as JSON or COCO"):
        load_split(tmp_path, "train")


def test_cvat_masks_boxes_and_z_order(tmp_path: Path) -> None:
    mask = '<mask label="dog" rle="0, 3, 1, 4" left="2" top="1" width="4" height="2" z_order="1"></mask>'
    box = '<box label="cat" xtl="0" ytl="0" xbr="8" ybr="6" z_order="0"></box>'
    write_cvat(tmp_path, mask, box)
    expected = np.ones((HEIGHT, WIDTH), np.uint8)
    expected[1:3, 2:6] = [[2, 2, 2, 1], [2, 2, 2, 2]]
    dataset = load_split(tmp_path, "train")
    assert (dataset.labels(0) == expected).all()
    assert [(entry.name, entry.rgb) for entry in dataset.classes][1] == ("cat", (255, 0, 0))
    assert any("12 boxes are drawn as filled rectangles" in note for note in dataset.notes)
    assert any("'dog' (12 shapes) is not among the labels in <meta>" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            '<mask label="cat" rle="1, 2" left="0" top="0" width="4" height="2"></mask>',
            "cover 3 pixels, but the mask has 4 x 2",
        ),
        (
            '<mask label="cat" rle="8, x" left="0" top="0" width="4" height="2"></mask>',
            "`rle` is '8, x'; expected numbers",
        ),
        ('<box label="cat" xtl="0" ytl="0" xbr="8"></box>', "`ybr` is missing or empty; expected a number"),
        ('<box xtl="0" ytl="0" xbr="8" ybr="8"></box>', "the class name is missing or empty"),
        ('<mask label="cat" rle="-1, 9" left="0" top="0" width="4" height="2"></mask>', "cover 8 pixels"),
        ('<polygon label="cat" points="1,1;2,2"></polygon>', "a polygon has 2 points"),
        ('<polygon label="cat" points="1,1;2;3,3"></polygon>', "`points` has 5 numbers; expected pairs"),
        ('<polygon label="cat" points="1,1;2,nan;3,3"></polygon>', "`points` is '1,1;2,nan;3,3'; expected numbers"),
        ('<blob label="cat"></blob>', "the shape blob is unknown"),
    ],
)
def test_a_broken_cvat_shape_is_a_finding(shape: str, message: str, tmp_path: Path) -> None:
    write_cvat(tmp_path, shape)
    details = errors_of(tmp_path)
    assert len(details) == 12
    assert all("annotations.xml" in detail and "shot" in detail for detail in details)
    with pytest.raises(DataError, match=message):
        load_split(tmp_path, "train").labels(0)


def test_xml_with_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    write_cvat(tmp_path, CVAT_POLYGON, head=bomb)
    with pytest.raises(DataError, match=r"annotations\.xml: has a document type"):
        load_split(tmp_path, "train")
    file = tmp_path / "annotations.xml"
    file.write_bytes(file.read_text().encode("utf-16"))
    with pytest.raises(DataError, match="has a document type"):
        load_split(tmp_path, "train")
    file.write_text("<annotations><image>")
    with pytest.raises(DataError, match="invalid XML"):
        load_split(tmp_path, "train")


def test_an_annotation_file_is_a_data_set(tmp_path: Path) -> None:
    write_cvat(tmp_path, CVAT_POLYGON)
    make_layouts.make_label_studio_min(tmp_path)
    assert (load_split(tmp_path / "annotations.xml", "train").labels(0) == SQUARE_MASK).all()
    assert (load_split(tmp_path / "result.json", "train").labels(0) == SQUARE_MASK).all()


def test_lines_and_ellipses_have_their_area() -> None:
    size = (200, 200)
    assert paint(size, [make_shape(ellipse(100, 100, 60, 30))]).sum() == pytest.approx(np.pi * 60 * 30, rel=0.005)
    line = paint(size, [make_shape(*thick_line([(50, 50), (150, 50)], 10))])
    assert line.sum() == pytest.approx(100 * 10 + np.pi * 25, rel=0.02)


def make_shape(*outlines: np.ndarray) -> Shape:
    return Shape(1, outlines)


@pytest.mark.parametrize("counts", [[1, 2], [-1, 13], ["x"], [2**70]])
def test_run_lengths_of_a_wrong_sum_are_an_error(counts: list[Any]) -> None:
    with pytest.raises(DataError, match="run lengths"):
        decode_run_lengths(counts, (3, 4))
    assert decode_run_lengths([5, 2, 5], (3, 4)).sum() == 2


def test_supervisely_bitmaps_and_polygons_with_holes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(SQUARE_MASK[1:4, 2:6] * 255).save(buffer, "PNG")
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    ring = {"exterior": [[0, 0], [7, 0], [7, 5], [0, 5]], "interior": [[[1, 1], [6, 1], [6, 4], [1, 4]]]}
    make_layouts.write_supervisely(
        tmp_path,
        {"classTitle": "dog", "geometryType": "polygon", "points": ring},
        {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [2, 1]}},
    )
    expected = np.full((HEIGHT, WIDTH), 2, np.uint8)
    expected[1:5, 1:7] = 0
    assert (load_split(tmp_path, "train").labels(0) == np.where(SQUARE_MASK, 1, expected)).all()


@pytest.mark.parametrize(
    ("kind", "points", "rows", "columns"),
    [
        ("rectangle", [[2, 1], [5, 3]], (1, 4), (2, 6)),
        ("rectangle", [[5, 3], [2, 1]], (1, 4), (2, 6)),
        ("rectangle", [[2.69, 3.7], [5.29, 5.31]], (4, 6), (2, 5)),  # a part of a pixel counts from 0.3 on
        ("rectangle", [[1.74, 1.55], [3.76, 4.63]], (1, 5), (2, 4)),
        ("rectangle", [[2.1, 1.2], [2.9, 1.4]], (1, 2), (2, 3)),
        ("rectangle", [[-3, -2], [1, 0]], (0, 1), (0, 2)),
        ("polygon", [[2, 1], [5.9, 1.9], [5.5, 3.9], [2.9, 3]], (1, 4), (2, 6)),
        ("polygon", [[4, 2], [8, 2], [8, 6], [4, 6]], (2, 6), (4, 8)),
        ("polygon", [[20, 1], [30, 1], [30, 3]], (0, 0), (0, 0)),
        ("line", [[2, 1], [5, 1]], (1, 2), (2, 6)),
    ],
)
def test_shapes_of_supervisely_include_the_pixels_that_they_name(
    kind: str, points: list[list[float]], rows: tuple[int, int], columns: tuple[int, int], tmp_path: Path
) -> None:
    entry = {"classTitle": "cat", "geometryType": kind, "points": {"exterior": points, "interior": []}}
    make_layouts.write_supervisely(tmp_path, entry)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[slice(*rows), slice(*columns)] = 1
    assert (load_split(tmp_path, "train").labels(0) == expected).all()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"classTitle": "cow", "geometryType": "polygon"}, "the class 'cow' is not in meta.json"),
        ({"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 1]]}}, "'point' has no area"),
        (
            {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": "AAAA", "origin": [0, 0]}},
            "not as Supervisely",
        ),
        ({"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": [[1, 1]]}}, "has 1 points"),
    ],
)
def test_a_broken_object_of_supervisely_is_a_finding(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_layouts.write_supervisely(tmp_path, entry)
    details = errors_of(tmp_path)
    assert len(details) == 3
    assert "train.jpg.json" in details[0]
    assert message in details[0]


@pytest.mark.parametrize(
    ("make", "pattern", "value"),
    [
        (make_layouts.make_label_studio_tasks, r'"original_height": \d+', '"original_height": 1e999'),
        (make_layouts.make_supervisely, r'"height": \d+', '"height": 1e999'),
        (make_layouts.make_nnunet, r'"cat": 1', '"cat": 1e999'),
        (make_layouts.make_nnunet, r"^\[\{.*\}\]", '["train"]'),
    ],
)
def test_values_of_another_kind_are_findings(make: Any, pattern: str, value: str, tmp_path: Path) -> None:
    make(tmp_path)
    before = {file: file.read_text() for file in tmp_path.rglob("*.json")}
    for file, text in before.items():
        file.write_text(re.sub(pattern, value, text, flags=re.DOTALL))
    assert any(file.read_text() != text for file, text in before.items())
    with contextlib.suppress(DataError):
        assert lint(tmp_path, use_cache=False).errors
