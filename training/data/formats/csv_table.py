"""A table of images and masks, CSV or TSV: a line an image, paths as seen from the table's folder.

    split,image,mask
    train,images/001.jpg,masks/001.png

The columns may come in any order and beside others, parted by commas, semicolons or tabs. Without `split` the hash of the name
does it, and without val a tenth of train is held out (`folder.py`). The data set is the table itself, or a folder that holds one
such table; `classes.csv` lies beside it.
"""

import csv
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from models.errors import DataError
from training.data.class_file import CLASS_FILE, read_dataset_classes
from training.data.dataset import SPLITS, Pair, SegmentationDataset
from training.data.formats.folder import check_not_empty
from training.data.splits import SPLIT_ALIASES, SplitSource, assign_splits, resolve_split_source

TABLE_SUFFIXES = (".csv", ".tsv")
IMAGE, MASK, SPLIT = "image", "mask", "split"


class CsvRow(NamedTuple):
    """A line: the split's name ("" without such a column), the image, and its mask, if it has one."""

    number: int
    split: str
    name: str
    image: Path
    mask: Path | None


def recognises(root: Path) -> bool:
    """Whether the file is such a table, or the folder holds one."""
    return bool(_list_tables(root))


def has_split(root: Path, split: str) -> bool:
    """Whether a line names the split; or it is cut by the hash."""
    rows = _read_rows(_find_table(root))
    there = {row.split for row in rows}
    if there == {""}:
        return split in assign_splits(row.name for row in rows if row.mask).values()
    return split in there or (split == "val" and sum(row.split == "train" for row in rows if row.mask) > 1)


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError, with the number of the line that is wrong, in whichever split that is."""
    file = _find_table(root)
    rows = _read_rows(file)
    there = {row.split for row in rows}
    chosen = SplitSource("", frozenset({split})) if there == {""} else resolve_split_source(file, there, split)
    rows = [row for row in rows if row.split == chosen.name]
    every = [Pair(row.name, row.image, row.mask) for row in rows if row.mask]
    kept = chosen.select(pair.name for pair in every)
    pairs = sorted((pair for pair in every if pair.name in kept), key=lambda pair: pair.name)
    check_not_empty(file, split, pairs, len(every))
    unpaired = tuple(row.image for row in rows if not row.mask and chosen.contains(row.name))
    return SegmentationDataset(pairs, *read_dataset_classes(file.parent), unmatched_images=unpaired)


def _find_table(root: Path) -> Path:
    """Raises: DataError where there is none, or more than one."""
    tables = _list_tables(root)
    if not tables:
        raise DataError(f"{root} holds no table; wanted is a CSV or TSV with the head line split,image,mask.")
    if len(tables) > 1:
        raise DataError(f"{root} holds the tables {tables[0].name} and {tables[1].name}; give the one that is meant.")
    return tables[0]


def _list_tables(root: Path) -> list[Path]:
    files = [root] if root.is_file() else sorted(root.iterdir()) if root.is_dir() else []
    return [
        file
        for file in files
        if file.suffix.lower() in TABLE_SUFFIXES
        and file.name != CLASS_FILE
        and file.is_file()
        and _parse_header(_first_line(file))
    ]


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            return stream.readline(10_000)
    except OSError:
        return ""


def _parse_header(line: str) -> tuple[str, list[str]] | None:
    """The delimiter and the columns of a head line; None where it names no image and mask."""
    for delimiter in ",\t;":
        columns = [column.strip().strip('"').lower() for column in line.strip("\r\n").split(delimiter)]
        if IMAGE in columns and MASK in columns:
            return delimiter, columns
    return None


def _read_rows(file: Path) -> list[CsvRow]:
    """Raises: DataError for the first line that is wrong."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no table in UTF-8 ({error}); save it as such.") from error
    lines = text.splitlines()
    head = _parse_header(lines[0]) if lines else None
    if head is None:
        raise DataError(f"{file}: the head line names no {IMAGE} and {MASK}; wanted is split,image,mask.")
    delimiter, columns = head
    reader = csv.reader(lines, delimiter=delimiter)
    next(reader)
    rows: list[CsvRow] = []
    lines_of: dict[str, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = _parse_row(dict(zip(columns, map(str.strip, cells), strict=False)), reader.line_num, file)
        if row.name in lines_of:
            raise DataError(f"{file}, lines {lines_of[row.name]} and {row.number}: both are {row.name}; leave one.")
        lines_of[row.name] = row.number
        rows.append(row)
    if not rows:
        raise DataError(f"{file} names no image; wanted is a line each: split,image,mask.")
    return rows


def _parse_row(cells: dict[str, str], number: int, file: Path) -> CsvRow:
    """Raises: DataError."""
    where = f"{file}, line {number}"
    image, mask = (cells.get(column, "").replace("\\", "/") for column in (IMAGE, MASK))
    split = SPLIT_ALIASES.get(cells.get(SPLIT, "").lower(), "") if SPLIT in cells else ""
    if SPLIT in cells and not split:
        raise DataError(f"{where}: the split {cells[SPLIT]!r} is not known; choose from {', '.join(SPLITS)}.")
    if not image:
        raise DataError(f"{where}: names no image.")
    for path in filter(None, (image, mask)):
        if not (file.parent / path).is_file():
            raise DataError(f"{where}: {file.parent / path} is not there; paths are as seen from the table's folder.")
    return CsvRow(number, split, _image_name(image), file.parent / image, file.parent / mask if mask else None)


def _image_name(path: str) -> str:
    """An image's name: its path without the suffix, and without what would lead out of a folder."""
    return "/".join(part for part in PurePosixPath(path).with_suffix("").parts if part not in ("..", "/"))
