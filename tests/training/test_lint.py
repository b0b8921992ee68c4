from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from training.data.shapes import draw
from training.lint import lint

ROOT = Path(__file__).parents[2]
CAMVID = ROOT / ".." / "shared" / "data" / "camvid"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    draw(tmp_path / "shapes", counts={"train": 12, "val": 6, "test": 6})
    return tmp_path / "shapes"


def kinds(root: Path) -> dict[str, str]:
    return {finding.kind: finding.detail for finding in lint(root).errors}


def test_a_good_data_set_has_no_errors_and_exact_counts(shapes: Path) -> None:
    report = lint(shapes)
    assert report.errors == []
    assert report.pictures == {"train": 12, "val": 6, "test": 6}
    masks = [np.asarray(Image.open(path)) for path in sorted((shapes / "masks" / "train").iterdir())]
    assert report.pixels["train"].tolist() == np.bincount(np.stack(masks).ravel(), minlength=256).tolist()
    assert report.sizes == [(144, 192)] * 12


def test_a_label_out_of_range_names_the_file_and_the_values(shapes: Path) -> None:
    mask = np.zeros((144, 192), np.uint8)
    mask[0, 0], mask[0, 1], mask[0, 2] = 6, 200, 255
    Image.fromarray(mask).save(shapes / "masks/train/train_0003.png")
    detail = kinds(shapes)["label out of range"]
    assert "train_0003.png" in detail
    assert "the labels 6, 200 on" in detail


def test_a_size_mismatch_names_both_sizes(shapes: Path) -> None:
    Image.new("L", (100, 90)).save(shapes / "masks/val/val_0001.png")
    detail = kinds(shapes)["size mismatch"]
    assert "192 x 144" in detail
    assert "100 x 90" in detail


def test_an_unreadable_file_is_named(shapes: Path) -> None:
    picture = shapes / "images/test/test_0002.jpg"
    picture.write_bytes(picture.read_bytes()[:500])
    assert "test_0002.jpg" in kinds(shapes)["unreadable file"]


def test_a_colour_mask_is_an_error(shapes: Path) -> None:
    Image.new("RGB", (192, 144), (1, 2, 3)).save(shapes / "masks/train/train_0000.png")
    assert "1,2,3" in kinds(shapes)["colour without meaning"]


def test_a_picture_without_mask_is_an_error(shapes: Path) -> None:
    (shapes / "masks/train/train_0004.png").unlink()
    assert "train_0004.jpg" in kinds(shapes)["picture without mask"]


def test_a_class_that_never_occurs_is_a_warning(shapes: Path) -> None:
    with (shapes / "classes.csv").open("a") as file:
        file.write("unicorn,1,1,1\n")
    report = lint(shapes)
    assert report.errors == []
    assert any("unicorn" in finding.detail and finding.level == "warning" for finding in report.findings)


def test_an_all_void_mask_is_a_warning(shapes: Path) -> None:
    Image.new("L", (192, 144), 255).save(shapes / "masks/train/train_0000.png")
    assert "all void" in {finding.kind for finding in lint(shapes).findings}


def test_progress_is_told(shapes: Path) -> None:
    told: list[tuple[int, int]] = []
    lint(shapes, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (24, 24)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the folder ../shared/data/camvid is not there")
def test_camvid_is_clean() -> None:
    report = lint(CAMVID)
    assert report.errors == []
    assert report.pictures == {"train": 367, "val": 101, "test": 233}


def test_a_split_laid_out_wrongly_is_not_passed_over(shapes: Path) -> None:
    for mask in (shapes / "masks/val").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="val holds no picture with a mask"):
        lint(shapes)


def test_an_unreadable_mask_is_a_finding_also_where_the_classes_are_counted(shapes: Path) -> None:
    (shapes / "classes.csv").unlink()
    (shapes / "masks/train/train_0000.png").write_bytes(b"nothing")
    assert "train_0000.png" in kinds(shapes)["unreadable file"]


def test_a_lonely_picture_is_reported_once(tmp_path: Path) -> None:
    draw(tmp_path / "s", counts={"train": 40, "val": 1, "test": 1})
    flat = tmp_path / "flat"
    flat.mkdir()
    for kind in ("images", "masks"):
        (tmp_path / "s" / kind / "train").rename(flat / kind)
    (flat / "masks/train_0007.png").unlink()
    assert len(lint(flat).errors) == 1
