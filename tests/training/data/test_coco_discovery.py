import json
from pathlib import Path

import pytest

from models.errors import DataError
from tests.training.make_layouts import (
    DIAGONAL,
    SPLITS,
    SQUARE,
    SQUARE_MASK,
    UNSPLIT_COUNT,
    coco_content,
    load_coco_annotations,
    make_coco,
    make_cvat_coco,
    make_label_studio,
    make_panoptic,
    write_image,
    write_json,
    write_mask,
)
from training.data import has_split, load_split
from training.data.formats.coco import detect
from training.data.splits import assign_split
from training.data.tree import list_tree


def test_missing_images_are_skipped_with_a_note(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "b.jpg"))
    (tmp_path / "images" / "b.jpg").unlink()
    dataset = load_split(tmp_path, "train")
    assert [pair.name for pair in dataset.pairs] == ["a"]
    assert any("lists 1 images that are not in" in note and "b.jpg" in note for note in dataset.notes)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"lists 2 images, but none of them is in .*; put them into"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    "written",
    ["b c.jpg", "images/b c.jpg", "..\\..\\media\\upload\\4\\b c.jpg", "/data/local-files/b%20c.jpg", "./b c.jpg"],
)
def test_an_image_is_found_by_the_end_of_its_path(written: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "b c.jpg")
    write_json(tmp_path / "result.json", coco_content([written]))
    (pair,) = load_split(tmp_path, assign_split("b c")).pairs
    assert pair.image == tmp_path / "images" / "b c.jpg"


def test_a_file_in_utf_16_is_found(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels.json").write_text(json.dumps(coco_content(["a.jpg"])), encoding="utf-16")
    assert len(load_split(tmp_path, assign_split("a"))) == 1


def test_images_are_found_in_either_unicode_form(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "Stra\u00dfe_a\u0308.jpg")
    for split in ("train", "val"):
        write_json(tmp_path / "annotations" / f"instances_{split}.json", coco_content(["Stra\u00dfe_\u00e4.jpg"]))
    assert len(load_split(tmp_path, "train")) == 1


def test_the_folder_distinguishes_images_of_the_same_name(tmp_path: Path) -> None:
    for folder in ("day", "night"):
        write_image(tmp_path / "images" / folder / "1.jpg")
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("night/1.jpg", "day/1.jpg"))
    dataset = load_split(tmp_path, "train")
    assert [(pair.name, pair.image.parent.name) for pair in dataset.pairs] == [("day/1", "day"), ("night/1", "night")]
    assert dataset.labels(0).max() == 0
    assert dataset.labels(1).max() == 1
    write_json(tmp_path / "annotations" / "instances_train.json", coco_content(["1.jpg"]))
    with pytest.raises(DataError, match=r"lists 1\.jpg, which could be .*1\.jpg or .*1\.jpg"):
        load_split(tmp_path, "train")


def test_two_entries_for_one_image_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lists x/a\.jpg and y/a\.jpg, but there is only .*a\.jpg"):
        write_image(tmp_path / "images" / "a.jpg")
        write_json(tmp_path / "annotations" / "instances_train.json", coco_content(["x/a.jpg", "y/a.jpg"]))
        load_split(tmp_path, "train")


def test_an_image_of_another_split_does_not_replace_a_missing_one(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / split / "1.jpg")
        write_json(tmp_path / "annotations" / f"instances_{split}.json", coco_content(["1.jpg"]))
    assert load_split(tmp_path, "val").pairs[0].image == tmp_path / "val" / "1.jpg"
    (tmp_path / "val" / "1.jpg").unlink()
    with pytest.raises(DataError, match="none of them is in"):
        load_split(tmp_path, "val")


def test_names_that_differ_only_in_suffix_keep_it(tmp_path: Path) -> None:
    dataset = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "a.png", "b.png"))
    assert [pair.name for pair in dataset.pairs] == ["a.jpg", "a.png", "b"]


def test_a_single_file_is_split_by_the_hash(tmp_path: Path) -> None:
    make_cvat_coco(tmp_path)
    names = [{pair.name for pair in load_split(tmp_path, split).pairs} for split in SPLITS]
    assert sum(map(len, names)) == len(set.union(*names)) == UNSPLIT_COUNT
    assert "frame_000000" in set.union(*names)


def test_panoptic_comes_before_instances_with_a_note(tmp_path: Path) -> None:
    make_panoptic(tmp_path)
    make_coco(tmp_path)
    dataset = load_split(tmp_path, "train")
    assert len(dataset.classes) == 2
    (note,) = dataset.notes
    assert "panoptic is used and annotations/instances_test2017.json" in note
    assert "captions" not in note and "keypoints" not in note
    for split in ("train", "test"):
        (tmp_path / "annotations" / f"panoptic_{split}2017.json").unlink()
    assert len(load_split(tmp_path, "train").classes) == 3  # a panoptic file for val alone does not hide the instances


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(20)]
    for name in names:
        write_image(tmp_path / "train2017" / name)
    write_json(tmp_path / "annotations" / "instances_train2017.json", coco_content(names))
    train, val = (load_split(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 20
    assert 0 < len(val) < 8
    assert [has_split(tmp_path, split) for split in SPLITS] == [True, True, False]


def test_two_files_for_one_split_are_an_error(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]})
    write_json(tmp_path / "annotations" / "instances_train2014.json", coco_content(["a.jpg"]))
    with pytest.raises(
        DataError, match=r"instances_train\.json and .*instances_train2014\.json are both for the split train"
    ):
        load_split(tmp_path, "train")


def test_two_files_without_splits_are_an_error(tmp_path: Path) -> None:
    make_label_studio(tmp_path)
    write_json(tmp_path / "more.json", coco_content(["a.jpg"]))
    with pytest.raises(DataError, match=r"more\.json and .*result\.json are both for the whole"):
        load_split(tmp_path, "train")


def test_other_json_files_are_not_coco(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "annotations" / "a.png", DIAGONAL)
    write_json(tmp_path / "annotations" / "a.json", {"version": "5.0", "shapes": [], "imagePath": "a.jpg"})  # Labelme
    write_json(tmp_path / "result.json", [{"id": 1, "annotations": []}])  # Label Studio's own
    write_json(tmp_path / "package.json", {"name": "x", "images": "none"})
    write_json(tmp_path / "sa_1.json", {"image": {"image_id": 1}, "annotations": [{"id": 1, "bbox": [1, 2, 3, 4]}]})
    assert not detect(list_tree(tmp_path))


@pytest.mark.parametrize("key", ["annotations", "images", "categories"])
def test_a_coco_file_is_detected_by_its_first_keys(key: str, tmp_path: Path) -> None:
    value = coco_content(["a.jpg"])
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "anything.json", {"info": {"contributor": "someone"}, key: value[key], **value})
    assert detect(list_tree(tmp_path))


def test_a_masks_folder_takes_precedence_unless_coco_is_requested(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]})
    write_mask(tmp_path / "masks" / "a.png", DIAGONAL)
    assert not detect(list_tree(tmp_path))
    assert (load_split(tmp_path, "train", "coco").labels(0) == SQUARE_MASK).all()


def test_two_images_are_enough_for_training_and_validation(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images" / name)
    write_json(tmp_path / "result.json", coco_content(["a.jpg", "b.jpg"]))
    assert [len(load_split(tmp_path, split)) for split in ("train", "val")] == [1, 1]
