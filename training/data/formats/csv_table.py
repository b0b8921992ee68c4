"""A table of images and masks, CSV or TSV: one image per line, with paths relative to the table.

    split,image,mask
    train,images/001.jpg,masks/001.png

Columns may be in any order, with others, separated by commas, semicolons or tabs. Without `split` a hash of the name assigns
the splits, and without val a tenth of train is held out (`folder.py`). The data set is the table itself, or a folder with one
such table; `classes.csv` is in the same folder.
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
    """One line of the table."""

    number: int  # line number in the file
    split: str  # "" without the column
    name: str
    image: Path
    mask: Path | None


def detect(root: Path) -> bool:
    """Whether the file is such a table, or the folder has one."""
    return bool(_list_tables(root))


def has_split(root: Path, split: str) -> bool:
    """Whether a line has the split, or the hash assigns it."""
    rows = _read_rows(_find_table(root))
    existing = {row.split for row in rows}
    if existing == {""}:
        return split in assign_splits(row.name for row in rows if row.mask).values()
    return split in existing or (split == "val" and sum(row.split == "train" for row in rows if row.mask) > 1)


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError that names the first wrong line, in any split."""
    file = _find_table(root)
    rows = _read_rows(file)
    existing = {row.split for row in rows}
    source = SplitSource("", frozenset({split})) if existing == {""} else resolve_split_source(file, existing, split)
    rows = [row for row in rows if row.split == source.name]
    candidates = [Pair(row.name, row.image, row.mask) for row in rows if row.mask]
    selected = source.select(pair.name for pair in candidates)
    pairs = sorted((pair for pair in candidates if pair.name in selected), key=lambda pair: pair.name)
    check_not_empty(file, split, pairs, len(candidates))
    unmatched = tuple(row.image for row in rows if not row.mask and source.contains(row.name))
    return SegmentationDataset(pairs, *read_dataset_classes(file.parent), unmatched_images=unmatched)


def _find_table(root: Path) -> Path:
    """Raises: DataError if there is none, or more than one."""
    tables = _list_tables(root)
    if not tables:
        raise DataError(f"{root} has no table; expected a CSV or TSV with the header split,image,mask.")
    if len(tables) > 1:
        raise DataError(f"{root} has two tables, {tables[0].name} and {tables[1].name}; give the path of one.")
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
    """The delimiter and the columns of a header line; None if it lacks image or mask."""
    for delimiter in ",\t;":
        columns = [column.strip().strip('"').lower() for column in line.strip("\r\n").split(delimiter)]
        if IMAGE in columns and MASK in columns:
            return delimiter, columns
    return None


def _read_rows(file: Path) -> list[CsvRow]:
    """Raises: DataError for the first wrong line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a table in UTF-8 ({error}); save it as UTF-8.") from error
    lines = text.splitlines()
    header = _parse_header(lines[0]) if lines else None
    if header is None:
        raise DataError(f"{file}: the header has no columns {IMAGE} and {MASK}; expected split,image,mask.")
    delimiter, columns = header
    reader = csv.reader(lines, delimiter=delimiter)
    next(reader)
    rows: list[CsvRow] = []
    line_by_name: dict[str, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = _parse_row(dict(zip(columns, map(str.strip, cells), strict=False)), reader.line_num, file)
        if row.name in line_by_name:
            raise DataError(
                f"{file}, lines {line_by_name[row.name]} and {row.number}: both list {row.name}; delete one of them."
            )
        line_by_name[row.name] = row.number
        rows.append(row)
    if not rows:
        raise DataError(f"{file} lists no image; expected one per line: split,image,mask.")
    return rows


def _parse_row(cells: dict[str, str], number: int, file: Path) -> CsvRow:
    """Raises: DataError."""
    where = f"{file}, line {number}"
    image, mask = (cells.get(column, "").replace("\\", "/") for column in (IMAGE, MASK))
    split = SPLIT_ALIASES.get(cells.get(SPLIT, "").lower(), "") if SPLIT in cells else ""
    if SPLIT in cells and not split:
        raise DataError(f"{where}: unknown split {cells[SPLIT]!r}; choose from {', '.join(SPLITS)}.")
    if not image:
        raise DataError(f"{where}: no image; write its path in the column {IMAGE}.")
    for path in filter(None, (image, mask)):
        if not (file.parent / path).is_file():
            raise DataError(
                f"{where}: {file.parent / path} does not exist; paths are relative to the folder of the table."
            )
    return CsvRow(number, split, _image_name(image), file.parent / image, file.parent / mask if mask else None)


def _image_name(path: str) -> str:
    """The name of an image: its path without the suffix and without parts that leave the folder."""
    return "/".join(part for part in PurePosixPath(path).with_suffix("").parts if part not in ("..", "/"))
