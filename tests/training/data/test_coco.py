import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import DataError
from models.spec import IGNORE_INDEX, default_rgb
from tests.training.make_layouts import (
    DIAGONAL,
    FULL_IMAGE,
    HEIGHT,
    SQUARE,
    SQUARE_MASK,
    WIDTH,
    coco_content,
    load_coco_annotations,
    make_coco,
    make_coco_below_images,
    make_panoptic,
    make_roboflow,
    write_image,
    write_json,
    write_mask,
)
from training.data import load_split
from training.data.formats.coco_parser import read_categories
from training.data.scan.scanner import scan_split


def test_uncovered_pixels_are_background_and_labels_follow_the_order_of_ids(tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, {"category_id": 90, "segmentation": [SQUARE]})
    assert [entry.name for entry in dataset.classes] == ["background", "person", "toothbrush"]
    assert [entry.rgb for entry in dataset.classes] == [default_rgb(label) for label in range(3)]
    assert (dataset.labels(0) == 2 * SQUARE_MASK).all()


def test_a_category_named_background_is_the_background(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "Background"}]
    dataset = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, categories=categories)
    assert [entry.name for entry in dataset.classes] == ["Background", "person"]
    assert (dataset.labels(0) == SQUARE_MASK).all()


def test_colors_of_categories_are_kept(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "person", "color": [220, 20, 60]},
        {"id": 2, "name": "dog", "color": "#ff0000"},
        {"id": 3, "name": "cat", "color": [1, 2, 300]},
    ]
    classes = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, categories=categories).classes
    assert [entry.rgb for entry in classes[1:]] == [(220, 20, 60), default_rgb(2), default_rgb(3)]


@pytest.mark.parametrize("with_area", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_smaller_regions_are_painted_over_larger_ones_in_any_file_order(
    with_area: bool, order: int, tmp_path: Path
) -> None:
    regions = [{"category_id": 90, "segmentation": [FULL_IMAGE]}, {"category_id": 1, "segmentation": [SQUARE]}]
    if with_area:
        regions = [{**region, "area": area} for region, area in zip(regions, (48, 12.0), strict=True)]
    assert (load_coco_annotations(tmp_path, *regions[::order]).labels(0) == 2 - SQUARE_MASK).all()


def test_the_outlines_of_one_region_are_joined(tmp_path: Path) -> None:
    labels = load_coco_annotations(tmp_path, {"segmentation": [SQUARE, [6, 0, 8, 0, 8, 6, 6, 6], [1, 1, 2, 2]]}).labels(
        0
    )
    expected = SQUARE_MASK.copy()
    expected[:, 6:] = 1
    assert (labels == expected).all()


def test_an_outline_that_is_not_in_a_list_is_read(tmp_path: Path) -> None:
    assert (load_coco_annotations(tmp_path, {"segmentation": SQUARE}).labels(0) == SQUARE_MASK).all()


@pytest.mark.parametrize("counts", [[13, 3, 3, 3, 3, 3, 3, 3, 14], "=3300000;"])
def test_plain_and_compressed_run_lengths_are_read(counts: Any, tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}})
    assert (dataset.labels(0) == SQUARE_MASK).all()


def test_a_crowd_is_ignored_and_painted_below_single_objects(tmp_path: Path) -> None:
    crowd = {"iscrowd": 1, "area": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 48]}}
    dataset = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, crowd)
    assert (dataset.labels(0) == np.where(SQUARE_MASK, 1, IGNORE_INDEX)).all()
    assert any("1 regions marked `iscrowd` are ignored" in note for note in dataset.notes)


def test_a_crowd_of_cvat_is_a_brush_mask(tmp_path: Path) -> None:
    brush_mask = {
        "iscrowd": 1,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 48]},
        "attributes": {"occluded": 0},
    }
    dataset = load_coco_annotations(tmp_path, brush_mask)
    assert (dataset.labels(0) == 1).all()
    assert dataset.notes == ()


def test_a_box_without_an_outline_is_ignored_with_a_note(tmp_path: Path) -> None:
    dataset = load_coco_annotations(
        tmp_path,
        {"segmentation": [], "bbox": [0, 0, 8, 2]},
        {"segmentation": [SQUARE]},
        {"segmentation": [FULL_IMAGE[:4]]},
    )
    expected = SQUARE_MASK.copy()
    expected[:2] = IGNORE_INDEX
    expected[1, 2:6] = 1
    assert (dataset.labels(0) == expected).all()
    assert any("1 boxes without an outline" in note for note in dataset.notes)


def test_an_image_without_annotations_is_background_with_a_note(tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "b.jpg"))
    assert [pair.name for pair in dataset.pairs] == ["a", "b"]
    assert (dataset.labels(1) == 0).all()
    assert any("1 of 2 images have no annotation" in note for note in dataset.notes)


def test_masks_have_the_size_in_the_file(tmp_path: Path) -> None:
    images = [{"id": 100, "file_name": "a.jpg", "height": 20, "width": 10}]
    assert load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, images=images).labels(0).shape == (20, 10)


def test_the_group_category_of_roboflow_is_not_a_class(tmp_path: Path) -> None:
    make_roboflow(tmp_path)
    dataset = load_split(tmp_path, "val")
    assert [entry.name for entry in dataset.classes] == ["background", "person", "dog"]
    assert dataset.pairs[0].image.parent.name == "valid"
    assert (dataset.labels(0) == SQUARE_MASK).all()


def test_pixels_without_stuff_are_ignored(tmp_path: Path) -> None:
    make_coco_below_images(tmp_path)
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["person", "toothbrush"]
    assert (dataset.labels(0) == np.where(SQUARE_MASK, 0, IGNORE_INDEX)).all()


def test_panoptic_segments_are_read_by_color_and_other_pixels_are_ignored(tmp_path: Path) -> None:
    make_panoptic(tmp_path)
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["person", "toothbrush"]
    assert (dataset.labels(0) == np.where(DIAGONAL, 1, IGNORE_INDEX)).all()
    assert dataset.pairs[0].mask == tmp_path / "annotations" / "panoptic_train2017" / "train_1.png"


def test_a_panoptic_crowd_is_ignored(tmp_path: Path) -> None:
    make_panoptic(tmp_path)
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[:3, :, 0], ids[3:, :, 1] = 7, 1
    write_mask(tmp_path / "annotations" / "panoptic_train2017" / "train_1.png", ids)
    segments = [{"id": 7, "category_id": 1, "iscrowd": 0}, {"id": 256, "category_id": 90, "iscrowd": 1}]
    entry = {"image_id": 100, "file_name": "train_1.png", "segments_info": segments}
    write_json(tmp_path / "annotations" / "panoptic_train2017.json", coco_content(["train_1.jpg"], [entry]))
    labels = load_split(tmp_path, "train").labels(0)
    assert (labels[:3] == 0).all()
    assert (labels[3:] == IGNORE_INDEX).all()


def test_a_panoptic_image_without_png_is_unmatched_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    make_panoptic(tmp_path)
    unmatched = write_image(tmp_path / "train2017" / "train_2.jpg")
    file = tmp_path / "annotations" / "panoptic_train2017.json"
    entry = {"image_id": 100, "file_name": "train_1.png", "segments_info": [{"id": 7, "category_id": 1}]}
    write_json(
        file,
        coco_content(["train_1.jpg", "train_2.jpg"], [entry, {**entry, "image_id": 101, "file_name": "train_2.png"}]),
    )
    assert load_split(tmp_path, "train").unmatched_images == (unmatched,)
    (tmp_path / "annotations" / "panoptic_train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="panoptic_train2017 is missing"):
        load_split(tmp_path, "train")


def test_classes_are_merged_over_all_splits(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]})
    file = tmp_path / "annotations" / "instances_val.json"
    write_json(file, coco_content(["a.jpg"], categories=[{"id": 1, "name": "person"}, {"id": 44, "name": "dog"}]))
    names = ["background", "person", "dog", "toothbrush"]
    assert all([entry.name for entry in load_split(tmp_path, split).classes] == names for split in ("train", "val"))
    write_json(file, coco_content(["a.jpg"], categories=[{"id": 1, "name": "dog"}]))
    with pytest.raises(DataError, match="the category 1 is 'dog' here, but 'person' in another file"):
        load_split(tmp_path, "train")


def test_categories_are_read_without_parsing_the_regions(tmp_path: Path) -> None:
    categories = [{"id": id, "name": f"c\u00e4t{id}" * 400} for id in range(200)]
    odd = {"info": {"categories": ["none"], "description": 'two "categories"'}, "annotations": [], "images": []}
    file = write_json(tmp_path / "x.json", {**odd, "categories": categories})
    assert file.stat().st_size > 1 << 17
    file.write_text(file.read_text()[:-1] + ', "annotations": [broken')
    with pytest.raises(DataError, match="categories"):
        read_categories(file)
    odd["info"].pop("categories")
    file = write_json(tmp_path / "y.json", {**odd, "categories": categories})
    file.write_text(file.read_text()[:-1] + ', "annotations": [broken')
    assert read_categories(file) == categories


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    assert load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}).labels(0).max() == 1
    assert load_coco_annotations(tmp_path, {"segmentation": [FULL_IMAGE], "category_id": 90}).labels(0).min() == 2


def scanned_labels(root: Path) -> list[int]:
    """The labels in the statistics of the training split, from the cache if it has them."""
    for path in root.rglob("*.*"):
        os.utime(path, (1.7e9, 1.7e9))  # new files are not cached
    (stats,) = scan_split(load_split(root, "train"))
    assert not stats.errors
    return stats.values.tolist()


def test_cached_statistics_depend_on_the_categories_of_other_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_coco_annotations(tmp_path / "d", {"category_id": 90, "segmentation": [SQUARE]})
    assert scanned_labels(tmp_path / "d") == [0, 2]
    write_json(
        tmp_path / "d/annotations/instances_val.json", coco_content(["a.jpg"], categories=[{"id": 44, "name": "dog"}])
    )
    assert scanned_labels(tmp_path / "d") == [0, 3]


def test_cached_statistics_depend_on_the_panoptic_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_panoptic(tmp_path / "d")
    assert scanned_labels(tmp_path / "d") == [1, IGNORE_INDEX]
    file = tmp_path / "d/annotations/panoptic_train2017.json"
    file.write_text(file.read_text().replace('"category_id": 90', '"category_id": 1'))
    assert scanned_labels(tmp_path / "d") == [0, IGNORE_INDEX]


@pytest.mark.parametrize("layout", [make_coco, make_panoptic])
def test_mask_readers_can_be_pickled(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    dataset = load_split(tmp_path, "train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy.labels(0) == dataset.labels(0)).all()
    assert copy.pairs == dataset.pairs


def test_a_pickled_region_is_little_larger_than_its_corners(tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, *[{"segmentation": [SQUARE]}] * 500)
    few = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]})
    per_region = (len(pickle.dumps(dataset.mask_reader)) - len(pickle.dumps(few.mask_reader))) / 499
    assert per_region < 8 * 4 + 48  # eight numbers, and its row in the tables
