"""Hugging Face: tables with images, and folders with lists of masks."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from tests.training.make_layouts import DIAGONAL, HEIGHT, WIDTH, write_image, write_mask
from training.data import load_available_splits, load_split, recognize_dataset
from training.data.formats import hugging_face
from training.lint import lint

SPLITS = {"train": 5, "validation": 2}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int, image: str = "image", mask: str = "label") -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    photo = png(np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    return pyarrow.table({
        image: [{"bytes": photo, "path": f"shot{index}.jpg"} for index in range(count)],
        mask: [{"bytes": png(DIAGONAL * (1 + index % 2)), "path": None} for index in range(count)],
        "caption": ["text"] * count,
    })  # fmt: skip


def write_parquet(root: Path, **columns: str) -> Path:
    rows = {split: table(count, **columns) for split, count in SPLITS.items()}
    import pyarrow.parquet

    (root / "data").mkdir(parents=True)
    for split, content in rows.items():
        pyarrow.parquet.write_table(content, root / "data" / f"{split}-00000-of-00001.parquet")
    (root / "id2label.json").write_text(json.dumps({"0": "ground", "1": "ball", "2": "box"}))
    return root


def write_arrow(root: Path) -> Path:
    """As `save_to_disk` of `datasets`."""
    rows = {split: table(count) for split, count in SPLITS.items()}
    import pyarrow

    for split, content in rows.items():
        (root / split).mkdir(parents=True)
        file = str(root / split / "data-00000-of-00001.arrow")
        with pyarrow.OSFile(file, "wb") as sink, pyarrow.ipc.new_stream(sink, content.schema) as stream:
            stream.write_table(content)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    (root / "id2label.json").write_text(json.dumps({"0": "ground", "1": "ball", "2": "box"}))
    return root


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_tables_are_unpacked_and_keep_every_pixel(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "set")
    recognition = recognize_dataset(tmp_path / "set")
    assert (recognition.format, recognition.evidence.images) == ("hugging-face", 7)
    opened = load_available_splits(tmp_path / "set")
    assert {split: len(dataset) for split, dataset in opened.items()} == {"train": 5, "val": 2}
    assert [entry.name for entry in opened["train"].classes] == ["ground", "ball", "box"]
    for index in range(5):
        assert (opened["train"].labels(index) == DIAGONAL * (1 + index % 2)).all()
    report = lint(tmp_path / "set")
    assert report.errors == [] and ".parquet" not in report.not_read and ".arrow" not in report.not_read


def test_columns_of_other_names_are_found(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", image="pixel_values", mask="my_masks")
    assert len(load_split(tmp_path / "set", "train")) == 5


@pytest.mark.parametrize("cut", [0, 200])
def test_a_broken_table_is_an_error_with_its_name(cut: int, tmp_path: Path) -> None:
    write_parquet(tmp_path / "set")
    file = tmp_path / "set/data/train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: not a table"):
        load_available_splits(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MAX_ROWS", 4, r"5 rows .* the limits are 4 and"),
        ("MIN_BYTES", 3, r"the limits are 1,000,000 and"),  # by the footer
        ("_stated_bytes", lambda file, columns: 0, r"the limits are 1,000,000 and"),  # a footer that lies
    ],
)
def test_a_table_states_how_many_images_it_has(name: str, value: Any, words: str, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cell = {"bytes": bytes(200_000), "path": None}  # one cell, which the table repeats
    (tmp_path / "set/data").mkdir(parents=True)
    content = pyarrow.table({"image": [cell] * 5, "label": [cell] * 5})
    parquet.write_table(content, tmp_path / "set/data/train-0.parquet", compression="zstd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hugging_face, "MIN_BYTES", 3 if name == "_stated_bytes" else 1 << 30)
        patch.setattr(hugging_face, name, value)
        with pytest.raises(DataError, match=words):
            load_available_splits(tmp_path / "set")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"\[batch\]"):
        load_available_splits(tmp_path / "set")


def write_metadata(root: Path, name: str = "metadata.jsonl") -> Path:
    for split, count in SPLITS.items():
        lines = ["file_name,mask_file_name"] if name.endswith(".csv") else []
        for index in range(count):
            write_image(root / split / f"{index}.jpg")
            write_mask(root / split / f"gt/{index}_seg.png", DIAGONAL)
            row = (f"{index}.jpg", f"gt/{index}_seg.png")
            lines.append(
                ",".join(row) if name.endswith(".csv") else json.dumps({"file_name": row[0], "mask_file_name": row[1]})
            )
        (root / split / name).write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_lists_of_masks_are_read(name: str, tmp_path: Path) -> None:
    write_metadata(tmp_path, name)
    recognition = recognize_dataset(tmp_path)
    assert (recognition.format, recognition.notes) == ("hugging-face", ())
    opened = load_available_splits(tmp_path)
    assert {split: len(dataset) for split, dataset in opened.items()} == {"train": 5, "val": 2}
    assert (opened["val"].labels(0) == DIAGONAL).all()


def test_a_list_that_names_a_missing_mask_is_an_error_with_the_line(tmp_path: Path) -> None:
    write_metadata(tmp_path)
    (tmp_path / "train/gt/1_seg.png").unlink()
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2: .*1_seg\.png does not exist"):
        load_available_splits(tmp_path)
