from pathlib import Path

import pytest

from models.errors import DataError
from tests.training.make_layouts import (
    DIAGONAL,
    SPLITS,
    SQUARE,
    SQUARE_MASK,
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
from training.data.formats.coco import recognises
from training.data.splits import assign_split


def test_images_that_are_not_there_are_left_out_and_told(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "b.jpg"))
    (tmp_path / "images" / "b.jpg").unlink()
    samples = load_split(tmp_path, "train")
    assert [pair.name for pair in samples.pairs] == ["a"]
    assert any("lists 1 images that are not in" in note and "b.jpg" in note for note in samples.notes)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"lists 2 images, and none is in .*; put them into"):
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


def test_names_are_found_in_either_unicode_form(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "Stra\u00dfe_a\u0308.jpg")
    for split in ("train", "val"):
        write_json(tmp_path / "annotations" / f"instances_{split}.json", coco_content(["Stra\u00dfe_\u00e4.jpg"]))
    assert len(load_split(tmp_path, "train")) == 1


def test_of_two_images_of_a_name_the_folder_decides(tmp_path: Path) -> None:
    for folder in ("day", "night"):
        write_image(tmp_path / "images" / folder / "1.jpg")
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("night/1.jpg", "day/1.jpg"))
    samples = load_split(tmp_path, "train")
    assert [(pair.name, pair.image.parent.name) for pair in samples.pairs] == [("day/1", "day"), ("night/1", "night")]
    assert samples.labels(0).max() == 0
    assert samples.labels(1).max() == 1
    write_json(tmp_path / "annotations" / "instances_train.json", coco_content(["1.jpg"]))
    with pytest.raises(DataError, match=r"lists 1\.jpg, which may be .*1\.jpg or .*1\.jpg"):
        load_split(tmp_path, "train")


def test_two_entries_for_one_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lists x/a\.jpg and y/a\.jpg, but .*a\.jpg alone is there"):
        write_image(tmp_path / "images" / "a.jpg")
        write_json(tmp_path / "annotations" / "instances_train.json", coco_content(["x/a.jpg", "y/a.jpg"]))
        load_split(tmp_path, "train")


def test_an_image_of_another_split_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / split / "1.jpg")
        write_json(tmp_path / "annotations" / f"instances_{split}.json", coco_content(["1.jpg"]))
    assert load_split(tmp_path, "val").pairs[0].image == tmp_path / "val" / "1.jpg"
    (tmp_path / "val" / "1.jpg").unlink()
    with pytest.raises(DataError, match="none is in"):
        load_split(tmp_path, "val")


def test_images_that_differ_by_suffix_alone_keep_it(tmp_path: Path) -> None:
    samples = load_coco_annotations(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "a.png", "b.png"))
    assert [pair.name for pair in samples.pairs] == ["a.jpg", "a.png", "b"]


def test_one_file_is_split_by_the_hash_of_the_names(tmp_path: Path) -> None:
    make_cvat_coco(tmp_path)
    names = [{pair.name for pair in load_split(tmp_path, split).pairs} for split in SPLITS]
    assert sum(map(len, names)) == len(set.union(*names)) == 60
    assert "frame_000000" in set.union(*names)


def test_panoptic_comes_before_instances_and_what_is_left_is_told(tmp_path: Path) -> None:
    make_panoptic(tmp_path)
    make_coco(tmp_path)
    samples = load_split(tmp_path, "train")
    assert len(samples.classes) == 2
    (note,) = samples.notes
    assert "read are those of panoptic, and not annotations/instances_test2017.json" in note
    assert "captions" not in note and "keypoints" not in note
    for split in ("train", "test"):
        (tmp_path / "annotations" / f"panoptic_{split}2017.json").unlink()
    assert len(load_split(tmp_path, "train").classes) == 3  # the panoptic file of val alone hides nothing


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(60)]
    for name in names:
        write_image(tmp_path / "train2017" / name)
    write_json(tmp_path / "annotations" / "instances_train2017.json", coco_content(names))
    train, val = (load_split(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert 0 < len(val) < 20
    assert [has_split(tmp_path, split) for split in SPLITS] == [True, True, False]


def test_two_files_that_claim_one_split_are_refused(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]})
    write_json(tmp_path / "annotations" / "instances_train2014.json", coco_content(["a.jpg"]))
    with pytest.raises(DataError, match=r"instances_train\.json and .*instances_train2014\.json both claim"):
        load_split(tmp_path, "train")


def test_two_files_without_splits_are_refused(tmp_path: Path) -> None:
    make_label_studio(tmp_path)
    write_json(tmp_path / "more.json", coco_content(["a.jpg"]))
    with pytest.raises(DataError, match=r"more\.json and .*result\.json both claim to be the whole"):
        load_split(tmp_path, "train")


def test_other_files_in_json_make_no_coco(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "annotations" / "a.png", DIAGONAL)
    write_json(tmp_path / "annotations" / "a.json", {"version": "5.0", "shapes": [], "imagePath": "a.jpg"})  # Labelme's
    write_json(tmp_path / "result.json", [{"id": 1, "annotations": []}])  # Label Studio's own
    write_json(tmp_path / "package.json", {"name": "x", "images": "none"})
    write_json(tmp_path / "sa_1.json", {"image": {"image_id": 1}, "annotations": [{"id": 1, "bbox": [1, 2, 3, 4]}]})
    assert not recognises(tmp_path)


@pytest.mark.parametrize("key", ["annotations", "images", "categories"])
def test_a_coco_file_of_any_name_is_known_by_how_it_begins(key: str, tmp_path: Path) -> None:
    value = coco_content(["a.jpg"])
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "anything.json", {"info": {"contributor": "someone"}, key: value[key], **value})
    assert recognises(tmp_path)


def test_masks_beside_a_coco_file_are_read_unless_it_is_asked_for(tmp_path: Path) -> None:
    load_coco_annotations(tmp_path, {"segmentation": [SQUARE]})
    write_mask(tmp_path / "masks" / "a.png", DIAGONAL)
    assert not recognises(tmp_path)
    assert (load_split(tmp_path, "train", "coco").labels(0) == SQUARE_MASK).all()


def test_two_images_are_enough_to_train_and_to_validate_on(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "images" / name)
    write_json(tmp_path / "result.json", coco_content(["a.jpg", "b.jpg"]))
    assert [len(load_split(tmp_path, split)) for split in ("train", "val")] == [1, 1]
