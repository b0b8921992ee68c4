from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from models.spec import IGNORE_INDEX
from tests.training.make_layouts import (
    DIAGONAL,
    HEIGHT,
    SPLITS,
    UNSPLIT_COUNT,
    WIDTH,
    make_cvat_voc,
    make_voc,
    write_image,
    write_lines,
    write_mask,
)
from training.data import has_split, load_split
from training.data.formats.voc import CLASSES
from training.data.splits import assign_split

LISTS = Path("ImageSets") / "Segmentation"


def write_labelmap(root: Path, *rows: str) -> None:
    write_lines(root / "labelmap.txt", "# label:color_rgb:parts:actions", *rows)


def test_the_classes_are_those_of_voc_and_the_border_is_ignored(tmp_path: Path) -> None:
    make_voc(tmp_path)
    values = DIAGONAL * 15
    values[0] = 255
    write_mask(tmp_path / "SegmentationClass" / "train_1.png", values)
    dataset = load_split(tmp_path, "train")
    assert len(CLASSES) == 21
    assert {entry.name: entry.rgb for entry in dataset.classes}["person"] == (192, 128, 128)
    assert dataset.labels(0)[1, 1] == 15
    assert (dataset.labels(0)[0] == IGNORE_INDEX).all()
    assert dict(dataset.mask_encoding.color_to_label)[0xE0E0C0] == IGNORE_INDEX


def test_a_palette_mask_has_labels(tmp_path: Path) -> None:
    make_voc(tmp_path)
    image = Image.fromarray(DIAGONAL * 20, "P")
    image.putpalette([channel for entry in CLASSES for channel in entry.rgb])
    image.save(tmp_path / "SegmentationClass" / "train_1.png")
    assert (load_split(tmp_path, "train").labels(0) == DIAGONAL * 20).all()


def test_images_without_a_mask_are_reported_only_if_a_list_names_them(tmp_path: Path) -> None:
    make_voc(tmp_path)
    write_image(tmp_path / "JPEGImages" / "box_only.jpg")
    assert load_split(tmp_path, "train").unmatched_images == ()
    write_lines(tmp_path / LISTS / "train.txt", "train_1", "box_only")
    assert load_split(tmp_path, "train").unmatched_images == (tmp_path / "JPEGImages" / "box_only.jpg",)


def test_a_test_list_without_masks_gives_no_split(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "SegmentationClass" / "test_1.png").unlink()
    assert [has_split(tmp_path, split) for split in ("train", "val", "test")] == [True, True, False]
    with pytest.raises(DataError, match="no split test; it has train, val"):
        load_split(tmp_path, "test")


def test_a_listed_name_without_an_image_is_an_error(tmp_path: Path) -> None:
    make_voc(tmp_path)
    write_lines(tmp_path / LISTS / "train.txt", "train_1", "2008_000001")
    with pytest.raises(DataError, match=r"train\.txt lists 1 images that are not in .*JPEGImages, such as 2008_000001"):
        load_split(tmp_path, "train")


def test_names_may_have_folders_and_spaces(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for name in ("day 1/a b", "day 2/a b"):
        write_image(tmp_path / "JPEGImages" / f"{name}.png")
        write_mask(tmp_path / "SegmentationClass" / f"{name}.png", DIAGONAL)
    write_lines(tmp_path / LISTS / "train.txt", '"day 1/a b"', "day 2/a b", "")
    assert [pair.name for pair in load_split(tmp_path, "train").pairs] == ["day 1/a b", "day 2/a b"]


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    names = [f"p{index}" for index in range(20)]
    for name in names:
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_mask(tmp_path / "SegmentationClass" / f"{name}.png", DIAGONAL)
    write_lines(tmp_path / LISTS / "train.txt", *names)
    write_lines(tmp_path / LISTS / "trainval.txt", *names)
    train, val = ({pair.name for pair in load_split(tmp_path, split).pairs} for split in ("train", "val"))
    assert val == {name for name in names if assign_split(name) == "val"}
    assert train == set(names) - val
    assert not has_split(tmp_path, "test")


def test_a_val_without_train_can_be_evaluated(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / LISTS / "train.txt").unlink()
    assert len(load_split(tmp_path, "val")) > 0
    with pytest.raises(DataError, match="the splits val, test but no train"):
        load_split(tmp_path, "train")


def test_the_last_of_several_years_is_used_with_a_note(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2007")
    make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    dataset = load_split(tmp_path, "train")
    assert dataset.pairs[0].image.is_relative_to(tmp_path / "VOCdevkit" / "VOC2012")
    assert "2 years; VOC2012 is used" in dataset.notes[0]
    assert load_split(tmp_path / "VOCdevkit", "train").pairs == dataset.pairs


def test_classes_and_colors_of_cvat_come_from_the_labelmap(tmp_path: Path) -> None:
    make_cvat_voc(tmp_path)
    dataset = load_split(tmp_path, "train")
    assert [(entry.name, entry.rgb) for entry in dataset.classes] == [
        ("background", (0, 0, 0)),
        ("road", (128, 64, 128)),
    ]
    assert (dataset.labels(0) == DIAGONAL).all()
    splits = [{pair.name for pair in load_split(tmp_path, split).pairs} for split in SPLITS]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits)) == UNSPLIT_COUNT


def test_a_labelmap_without_colors_gets_those_of_voc(tmp_path: Path) -> None:
    make_voc(tmp_path)
    write_labelmap(tmp_path, "ground", "tool:::", "hand:10,20,30:finger,thumb:waving")
    assert [entry.rgb for entry in load_split(tmp_path, "train").classes] == [(0, 0, 0), (128, 0, 0), (10, 20, 30)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["road:1,2::", "car:4,5,6::"], "invalid class 'road:1,2::'"),
        (["road:1,2,256::", "car:4,5,6::"], "invalid class"),
        (["road:1,2,3::", "car:1,2,3::"], "'car' and 'road' have the same name or color"),
        (["road:1,2,3::"], "has 1 classes"),
    ],
)
def test_invalid_labelmaps(rows: list[str], message: str, tmp_path: Path) -> None:
    make_voc(tmp_path)
    write_labelmap(tmp_path, *rows)
    with pytest.raises(DataError, match=rf"labelmap\.txt.*{message}"):
        load_split(tmp_path, "train")


def test_an_export_without_images_is_an_error(tmp_path: Path) -> None:
    write_mask(tmp_path / "SegmentationClass" / "a.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    write_labelmap(tmp_path, "background:0,0,0::", "road:1,2,3::")
    with pytest.raises(DataError, match=r"The folder .*JPEGImages is missing"):
        load_split(tmp_path, "train")


def test_two_images_are_enough_for_training_and_validation(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_mask(tmp_path / "SegmentationClass" / f"{name}.png", DIAGONAL)
    write_lines(tmp_path / LISTS / "default.txt", "a", "b")
    assert [len(load_split(tmp_path, split)) for split in ("train", "val")] == [1, 1]
