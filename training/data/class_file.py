"""The class file of a data set, `classes.csv`: one class per line, `name` or `name,r,g,b` (0 to 255), in label order.

A header line and a byte order mark are skipped; semicolons and tabs also work as delimiters. In a data set, a line named
`void` or `ignore` is not a class: its label and color are ignored, and the following classes move up.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from models.errors import DataError
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding, pack_rgb

CLASS_FILE = "classes.csv"
IGNORED_NAMES = ("void", "ignore")


class ClassRow(NamedTuple):
    """One line of the file; `rgb` is None if it has no color."""

    name: str
    rgb: tuple[int, int, int] | None


def read_class_file(file: Path) -> list[ClassInfo]:
    """The classes of a file, one per line; without colors they get those of PASCAL VOC. Raises: DataError."""
    return _to_class_infos(_read_class_rows(file), file)


def read_dataset_classes(root: Path) -> tuple[list[ClassInfo], MaskEncoding]:
    """The classes in a data set's class file and the mask encoding that it implies; no classes without a file.

    Raises: DataError.
    """
    file = root / CLASS_FILE
    if not file.is_file():
        return [], IDENTITY_ENCODING
    rows = _read_class_rows(file)
    kept = [row for row in rows if row.name.lower() not in IGNORED_NAMES]
    classes = _to_class_infos(kept, file)
    label_by_name = {row.name: label for label, row in enumerate(kept)}
    labels = [label_by_name.get(row.name, IGNORE_INDEX) for row in rows]
    moved = tuple((index, label) for index, label in enumerate(labels) if index != label)
    colors = tuple((pack_rgb(row.rgb), label) for row, label in zip(rows, labels, strict=True) if row.rgb)
    return classes, MaskEncoding(moved, colors)


def class_table(classes: list[ClassInfo]) -> list[tuple[str | int, ...]]:
    """The rows of a class file, header first."""
    return [("name", "r", "g", "b"), *((entry.name, *entry.rgb) for entry in classes)]


def _to_class_infos(rows: list[ClassRow], file: Path) -> list[ClassInfo]:
    if not 2 <= len(rows) <= IGNORE_INDEX:
        raise DataError(f"{file} has {len(rows)} classes; expected 2 to {IGNORE_INDEX}, one per line.")
    return [ClassInfo(name=row.name, rgb=row.rgb or default_rgb(label)) for label, row in enumerate(rows)]


def _read_class_rows(file: Path) -> list[ClassRow]:
    """Raises: DataError if the file cannot be parsed, or two lines share a name or color."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error}); save it as UTF-8.") from error
    cells = _parse_csv(text, file)
    if cells and [cell.lower() for cell in cells[0][1][:2]] in (["name"], ["name", "r"]):
        cells = cells[1:]
    rows = [_parse_class_row(row, number, file) for number, row in cells]
    without_color = next((row.name for row in rows if row.rgb is None), None)
    if without_color and any(row.rgb for row in rows):
        raise DataError(
            f"{file}: {without_color!r} has no color, but other classes have one; write `name,r,g,b` on every line, or on none."
        )
    names: set[str] = set()
    name_by_color: dict[tuple[int, int, int], str] = {}
    for row in rows:
        if row.name in names:
            raise DataError(f"{file}: the class name {row.name!r} occurs twice; give each class its own name.")
        if row.rgb and row.rgb in name_by_color:
            raise DataError(
                f"{file}: {row.name!r} and {name_by_color[row.rgb]!r} have the same color {','.join(map(str, row.rgb))}; "
                "give each class its own color."
            )
        names.add(row.name)
        if row.rgb:
            name_by_color[row.rgb] = row.name
    return rows


def _parse_csv(text: str, file: Path) -> list[tuple[int, list[str]]]:
    """The non-empty lines as (line number, stripped cells)."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: invalid CSV ({error}).") from error


def _parse_class_row(row: list[str], number: int, file: Path) -> ClassRow:
    while len(row) > 1 and not row[-1]:
        row = row[:-1]  # spreadsheets pad short lines
    text = ",".join(row)
    if not row[0]:
        raise DataError(f"{file}, line {number}: {text!r} has no name; expected `name` or `name,r,g,b`.")
    if len(row) == 1:
        return ClassRow(row[0], None)
    if len(row) != 4:
        raise DataError(f"{file}, line {number}: {text!r} has {len(row)} columns; expected `name` or `name,r,g,b`.")
    channels = [int(cell) if cell.isascii() and cell.isdigit() else -1 for cell in row[1:]]
    if not all(0 <= channel <= 255 for channel in channels):
        raise DataError(f"{file}, line {number}: {text!r} has no valid color; expected `name,r,g,b` with 0 to 255.")
    red, green, blue = channels
    return ClassRow(row[0], (red, green, blue))
