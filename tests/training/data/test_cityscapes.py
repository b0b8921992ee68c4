from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from models.spec import IGNORE_INDEX
from tests.training.make_layouts import DIAGONAL, make_cityscapes, write_image, write_mask
from training.data import has_split, load_split
from training.data.formats.cityscapes import CLASSES


def test_ids_become_the_classes_that_are_evaluated(tmp_path: Path) -> None:
    ids = np.zeros((6, 8), np.uint8)
    # unlabeled, out of roi, road, parking, traffic light, car, caravan, bicycle; the license plate's -1
    ids[0] = [0, 3, 7, 9, 19, 26, 29, 33]
    ids[1] = 255
    make_cityscapes(tmp_path, ids)
    samples = load_split(tmp_path, "train")
    assert samples.labels(0)[0].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 0, IGNORE_INDEX, 6, 13, IGNORE_INDEX, 18]
    assert (samples.labels(0)[1] == IGNORE_INDEX).all()
    assert len(CLASSES) == 19
    assert (samples.classes[13].name, samples.classes[13].rgb) == ("car", (0, 0, 142))
    assert samples.pairs[0].name == "ulm/ulm_train_000019"


def test_an_id_that_cityscapes_does_not_know_stays_to_be_told_by_the_lint(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, DIAGONAL * 77)
    assert load_split(tmp_path, "train").labels(0)[0, 0] == 77


def test_train_ids_are_read_where_every_image_has_them(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, DIAGONAL * 7)
    make_cityscapes(tmp_path, DIAGONAL * 5, "labelTrainIds")
    assert load_split(tmp_path, "val").labels(0).max() == 5
    next((tmp_path / "gtFine" / "train").rglob("*labelTrainIds.png")).unlink()
    assert set(load_split(tmp_path, "val").labels(0).ravel()) == {0, IGNORE_INDEX}


def test_an_image_without_mask_is_unpaired(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    lonely = write_image(tmp_path / "leftImg8bit" / "train" / "aachen" / "aachen_000001_000019_leftImg8bit.png")
    assert load_split(tmp_path, "train").unmatched_images == (lonely,)


def test_coarse_masks_are_read_where_there_are_no_fine_ones(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, masks="gtCoarse")
    assert load_split(tmp_path, "train").pairs[0].mask.name == "ulm_train_000019_gtCoarse_labelIds.png"


@pytest.mark.parametrize("dummy", [0, 3])
def test_the_dummy_masks_of_test_make_no_split(dummy: int, tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    assert has_split(tmp_path, "test")
    write_mask(next((tmp_path / "gtFine" / "test").rglob("*.png")), np.full((6, 8), dummy, np.uint8))
    assert not has_split(tmp_path, "test")
    with pytest.raises(DataError, match="no split test; it has train, val"):
        load_split(tmp_path, "test")


def test_a_split_without_masks_says_which_are_wanted(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    for path in (tmp_path / "gtFine" / "val").rglob("*.png"):
        path.rename(path.with_name("renamed.png"))
    with pytest.raises(DataError, match=r"gtFine/val or .*gtCoarse/val holds no mask.*_labelIds\.png"):
        load_split(tmp_path, "val")


def test_images_outside_of_splits_are_told(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    (tmp_path / "leftImg8bit" / "train").rename(tmp_path / "leftImg8bit" / "training")
    with pytest.raises(DataError, match="no train"):
        load_split(tmp_path, "val")
    for split in ("val", "test"):
        (tmp_path / "leftImg8bit" / split).rename(tmp_path / "leftImg8bit" / f"{split}_images")
    assert not has_split(tmp_path, "train")
    with pytest.raises(DataError, match="has no folder train"):
        load_split(tmp_path, "train")
