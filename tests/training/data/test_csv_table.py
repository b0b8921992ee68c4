from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from training.data import has_split, load_split, resolve_format
from training.lint import lint

CRACKS = Path(__file__).parents[3] / ".." / "shared" / "data" / "crackforest"
LABELS = np.eye(6, 8, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images and their masks, in no supported layout but for a table."""
    for kind in ("photos", "drawn"):
        (tmp_path / kind).mkdir()
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"photos/p{index:02}.png")
        Image.fromarray(LABELS).save(tmp_path / f"drawn/m{index:02}.png")
    return tmp_path


def write_table(root: Path, *lines: str, name: str = "list.csv") -> Path:
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


def table_row(split: str, index: int) -> str:
    return f"{split},photos/p{index:02}.png,drawn/m{index:02}.png"


HEADER = "split,image,mask"
VALID_LINES = (HEADER, table_row("train", 0), table_row("train", 1), table_row("val", 2), table_row("test", 3))


def test_a_data_set_is_a_table_or_its_folder(root: Path) -> None:
    file = write_table(root, *VALID_LINES)
    for data in (file, root):
        assert resolve_format(data) == "table"
        assert [pair.name for pair in load_split(data, "train").pairs] == ["photos/p00", "photos/p01"]
        assert [pair.mask.name for pair in load_split(data, "test", "table").pairs] == ["m03.png"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_delimiters_column_orders_and_byte_order_marks(delimiter: str, bom: str, root: Path) -> None:
    table = [["Mask", "note", "Image", "split"]]
    table += [
        [f"drawn/m0{index}.png", '"a, b; c"', f"photos/p0{index}.png", split]
        for index, split in enumerate(["train", "Validation", "TEST"])
    ]
    write_table(root, bom + delimiter.join(table[0]), *(delimiter.join(cells) for cells in table[1:]))
    if delimiter == "\t":
        (root / "list.csv").rename(root / "list.tsv")
    assert [len(load_split(root, split)) for split in ("train", "val", "test")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("word", "split"),
    [("training", "train"), ("valid", "val"), ("validation", "val"), ("dev", "val"), ("Test", "test")],
)
def test_split_aliases(word: str, split: str, root: Path) -> None:
    write_table(root, HEADER, table_row("train", 0), table_row("val", 1), table_row(word, 2))
    assert any(pair.name == "photos/p02" for pair in load_split(root, split).pairs)


def test_windows_paths_are_read(root: Path) -> None:
    write_table(root, HEADER, r"train,photos\p00.png,drawn\m00.png", table_row("val", 1))
    assert len(load_split(root, "train")) == 1


def test_without_splits_the_hash_assigns_them(root: Path) -> None:
    write_table(root, "image,mask", *(table_row("", index)[1:] for index in range(12)))
    names = [pair.name for split in ("train", "val", "test") for pair in load_split(root, split).pairs]
    assert sorted(names) == [f"photos/p{index:02}" for index in range(12)]
    assert all(has_split(root, split) for split in ("train", "val", "test"))


def test_without_val_a_part_of_train_is_held_out(root: Path) -> None:
    write_table(root, HEADER, *(table_row("train", index) for index in range(11)), table_row("test", 11))
    assert len(load_split(root, "train")) + len(load_split(root, "val")) == 11
    assert has_split(root, "val")
    assert [pair.name for pair in load_split(root, "test").pairs] == ["photos/p11"]


def test_a_missing_split_is_an_error(root: Path) -> None:
    write_table(root, *VALID_LINES[:-1])
    assert not has_split(root, "test")
    with pytest.raises(DataError, match="no split test; it has train, val"):
        load_split(root, "test")


def test_an_image_without_a_mask_is_reported(root: Path) -> None:
    write_table(root, *VALID_LINES, "train,photos/p09.png,")
    assert [path.name for path in load_split(root, "train").unmatched_images] == ["p09.png"]
    assert [finding.kind for finding in lint(root).errors] == ["image without mask"]


def test_the_class_file_is_in_the_folder_of_the_table(root: Path) -> None:
    file = write_table(root, *VALID_LINES)
    (root / "classes.csv").write_text("name,r,g,b\nroad,1,2,3\ncrack,4,5,6\n")
    assert [entry.name for entry in load_split(file, "val").classes] == ["road", "crack"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train,photos/none.png,drawn/m04.png", r"line 6: .*none\.png does not exist"),
        ("train,photos/p04.png,drawn/none.png", r"line 6: .*none\.png does not exist"),
        (table_row("train", 1), r"lines 3 and 6: both list photos/p01"),
        (table_row("tune", 4), r"line 6: unknown split 'tune'; choose from train, val, test"),
        (table_row("", 4), r"line 6: unknown split ''"),
        ("train,,drawn/m04.png", r"line 6: no image"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_invalid_line_is_an_error_for_every_split(line: str, message: str, split: str, root: Path) -> None:
    write_table(root, *VALID_LINES, line)
    with pytest.raises(DataError, match=message):
        load_split(root, split)


def test_two_tables_are_an_error(root: Path) -> None:
    write_table(root, *VALID_LINES, name="a.csv")
    file = write_table(root, *VALID_LINES, name="b.tsv")
    with pytest.raises(DataError, match=r"a\.csv and b\.tsv; give the path of one"):
        load_split(root, "train")
    file.write_text("\n".join(VALID_LINES).replace(",", "\t"))
    assert len(load_split(file, "train")) == 2


def test_invalid_tables(root: Path) -> None:
    file = write_table(root, "image,labels", "a,b")
    with pytest.raises(DataError, match="has no table"):
        load_split(file, "train")
    with pytest.raises(DataError, match="no supported layout"):
        load_split(root, "train")
    file.write_text(HEADER + "\n")
    with pytest.raises(DataError, match="lists no image"):
        load_split(root, "train")
    file.write_bytes((HEADER + "\ntrain,Stra\xdfe.png,b.png\n").encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        load_split(root, "train")


def test_a_table_of_one_image(root: Path) -> None:
    write_table(root, "image,mask", "photos/p00.png,drawn/m00.png")
    assert len(load_split(root, "train")) == 1
    with pytest.raises(DataError, match="one image with a mask; expected at least two"):
        load_split(root, "val")


@pytest.mark.skipif(not CRACKS.is_dir(), reason="the folder ../shared/data/crackforest is missing")
def test_crackforest_is_a_table() -> None:
    assert resolve_format(CRACKS) == "table"
    sizes = {split: len(load_split(CRACKS, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 83, "val": 12, "test": 23}
    assert len(load_split(CRACKS, "test").classes) == 4


def test_a_table_of_class_names_is_not_one_of_masks(tmp_path: Path) -> None:
    """Kaggle's train.csv of a classification task beside a folder of masks."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for index in range(3):
            Image.fromarray(LABELS).save(tmp_path / f"{kind}/a{index}.png")
    (tmp_path / "train.csv").write_text("image,label\na0.png,cat\n")
    assert resolve_format(tmp_path) == "folder"
    (tmp_path / "train.csv").write_text(
        "Image_Path;Label_Path\nimages/a0.png;masks/a0.png\nimages/a1.png;masks/a1.png\n"
    )
    assert resolve_format(tmp_path) == "table"
    assert len(load_split(tmp_path, "train")) == 1
