from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from models.spec import IGNORE_INDEX
from tests.training.make_layouts import DIAGONAL, make_cityscapes, write_image, write_mask
from training.data import has_split, load_split
from training.data.formats.cityscapes import CLASSES


def test_ids_become_the_19_evaluated_classes(tmp_path: Path) -> None:
    ids = np.zeros((6, 8), np.uint8)
    # unlabeled, out of roi, road, parking, traffic light, car, caravan, bicycle; -1 of the license plate
    ids[0] = [0, 3, 7, 9, 19, 26, 29, 33]
    ids[1] = 255
    make_cityscapes(tmp_path, ids)
    dataset = load_split(tmp_path, "train")
    assert dataset.labels(0)[0].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 0, IGNORE_INDEX, 6, 13, IGNORE_INDEX, 18]
    assert (dataset.labels(0)[1] == IGNORE_INDEX).all()
    assert len(CLASSES) == 19
    assert (dataset.classes[13].name, dataset.classes[13].rgb) == ("car", (0, 0, 142))
    assert dataset.pairs[0].name == "ulm/ulm_train_000019"


def test_a_class_file_replaces_the_classes_and_ignores_other_ids(tmp_path: Path) -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[0] = [0, 3, 7, 8, 11, 26, 29, 33]
    make_cityscapes(tmp_path, ids)
    (tmp_path / "classes.csv").write_text("name,value\nground,7\npath,8\nvehicle,26\n")
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["ground", "path", "vehicle"]
    assert dataset.labels(0)[0].tolist() == [255, 255, 0, 1, 255, 2, 255, 255]


def test_an_unknown_id_is_kept_for_the_lint(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, DIAGONAL * 77)
    assert load_split(tmp_path, "train").labels(0)[0, 0] == 77


def test_train_ids_are_read_if_every_image_has_them(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, DIAGONAL * 7)
    make_cityscapes(tmp_path, DIAGONAL * 5, "labelTrainIds")
    assert load_split(tmp_path, "val").labels(0).max() == 5
    next((tmp_path / "gtFine" / "train").rglob("*labelTrainIds.png")).unlink()
    assert set(load_split(tmp_path, "val").labels(0).ravel()) == {0, IGNORE_INDEX}


def test_an_image_without_a_mask_is_unmatched(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    unmatched = write_image(tmp_path / "leftImg8bit" / "train" / "aachen" / "aachen_000001_000019_leftImg8bit.png")
    assert load_split(tmp_path, "train").unmatched_images == (unmatched,)


def test_coarse_masks_are_read_without_fine_ones(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, masks="gtCoarse")
    assert load_split(tmp_path, "train").pairs[0].mask.name == "ulm_train_000019_gtCoarse_labelIds.png"


@pytest.mark.parametrize("dummy", [0, 3])
def test_the_dummy_masks_of_test_give_no_split(dummy: int, tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    assert has_split(tmp_path, "test")
    write_mask(next((tmp_path / "gtFine" / "test").rglob("*.png")), np.full((6, 8), dummy, np.uint8))
    assert not has_split(tmp_path, "test")
    with pytest.raises(DataError, match="no split test; it has train, val"):
        load_split(tmp_path, "test")


def test_a_split_without_masks_is_an_error(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    for path in (tmp_path / "gtFine" / "val").rglob("*.png"):
        path.rename(path.with_name("renamed.png"))
    with pytest.raises(DataError, match=r"No image has a mask in .*gtFine/val or .*gtCoarse/val.*_labelIds\.png"):
        load_split(tmp_path, "val")


def test_images_outside_of_splits_are_an_error(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    (tmp_path / "leftImg8bit" / "train").rename(tmp_path / "leftImg8bit" / "training")
    assert len(load_split(tmp_path, "val")) > 0  # enough for an evaluation
    with pytest.raises(DataError, match="no train"):
        load_split(tmp_path, "train")
    for split in ("val", "test"):
        (tmp_path / "leftImg8bit" / split).rename(tmp_path / "leftImg8bit" / f"{split}_images")
    assert not has_split(tmp_path, "train")
    with pytest.raises(DataError, match="has no folder train"):
        load_split(tmp_path, "train")
