"""The folder of a data set: its images are segmented, not its masks."""

import os
from pathlib import Path

import pytest

from maskserve.predict.inputs import find_images
from maskserve.predict.unread import UnreadFiles
from tests.maskserve.predict_helpers import write_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")


PAIRS = {
    "folder": (["images/a.jpg", "images/b.jpg", "images/no mask.jpg"], ["masks/a.png", "masks/b.png"]),
    "split folders": (
        ["train/images/a.jpg", "train/images/b.jpg", "val/images/c.jpg", "test/images/d.jpg", "more/e.jpg"],
        ["train/masks/a.png", "train/masks/b.png", "val/masks/c.png"],
    ),
    "voc": (
        ["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg"],
        ["SegmentationClass/a.png", "SegmentationClass/b.png", "SegmentationObject/a.png"],
    ),
    "cityscapes": (
        ["leftImg8bit/train/x/x_0_0_leftImg8bit.png", "leftImg8bit/test/y/y_0_0_leftImg8bit.png"],
        ["gtFine/train/x/x_0_0_gtFine_labelIds.png", "gtFine/train/x/x_0_0_gtFine_color.png"],
    ),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_the_images_of_a_data_set(layout: str, tmp_path: Path) -> None:
    images, masks = PAIRS[layout]
    touch(tmp_path, *images, *masks)
    if layout == "voc":
        touch(tmp_path, "ImageSets/Segmentation/train.txt")
        (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    unread = UnreadFiles()
    assert sorted(image.name for image in find_images([str(tmp_path)], "", unread)) == sorted(images)
    assert unread.messages() == [
        f"{tmp_path} is a data set ({layout.split()[-1].replace('folders', 'folder')}): its {len(images)} images are "
        f"segmented, not its {len(masks)} masks"
    ]


def test_a_folder_of_masks_that_is_named_is_segmented(tmp_path: Path) -> None:
    images, masks = PAIRS["folder"]
    touch(tmp_path, *images, *masks)
    assert [image.name for image in find_images([str(tmp_path / "masks")])] == ["a.png", "b.png"]


def test_another_folder_is_read_as_a_whole(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    touch(tmp_path, "labels/on bottles.jpg")
    unread = UnreadFiles()
    assert len(list(find_images([str(tmp_path)], "", unread))) == 5 and unread.messages() == []


def test_a_pipe_among_the_annotations_does_not_block(tmp_path: Path) -> None:
    images, masks = PAIRS["folder"]
    touch(tmp_path, *images, *masks)
    for name in ("coco.json", "list.csv", "labels.xml", "a.txt"):
        os.mkfifo(tmp_path / name)
    assert len(list(find_images([str(tmp_path)]))) == len(images)


def test_names_that_may_mean_something_else_are_all_segmented(tmp_path: Path) -> None:
    """`_mask` says what a file is; `_edit` does not."""
    touch(tmp_path, *(f"IMG_{index}{ending}.jpg" for index in range(4) for ending in ("", "_edit")))
    assert len(list(find_images([str(tmp_path)]))) == 8
    touch(tmp_path / "pairs", *(f"IMG_{index}{ending}.png" for index in range(4) for ending in ("", "_mask")))
    assert len(list(find_images([str(tmp_path / "pairs")]))) == 4
