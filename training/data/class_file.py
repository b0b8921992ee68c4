"""The class file of a data set, `classes.csv`: a line a class, `name` or `name,r,g,b` (0..255), in the order of the labels.

A head line and a byte order mark are passed over; semicolons and tabs stand for commas. In a data set a line named `void` or
`ignore` is no class: its label and its colour are void, and the classes after it move up.
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
    """A line of the file; `rgb` is None where it gives no colour."""

    name: str
    rgb: tuple[int, int, int] | None


def read_class_file(file: Path) -> list[ClassInfo]:
    """The classes of a file, a line each; without colours they get VOC's. Raises: DataError."""
    return _to_class_infos(_read_class_rows(file), file)


def read_dataset_classes(root: Path) -> tuple[list[ClassInfo], MaskEncoding]:
    """The classes of the data set's file, none where there is no file, and what it says of the values in masks.

    Raises: DataError.
    """
    file = root / CLASS_FILE
    if not file.is_file():
        return [], IDENTITY_ENCODING
    lines = _read_class_rows(file)
    kept = [line for line in lines if line.name.lower() not in IGNORED_NAMES]
    classes = _to_class_infos(kept, file)
    label_of = {line.name: label for label, line in enumerate(kept)}
    labels = [label_of.get(line.name, IGNORE_INDEX) for line in lines]
    moved = tuple((place, label) for place, label in enumerate(labels) if place != label)
    colours = tuple((pack_rgb(line.rgb), label) for line, label in zip(lines, labels, strict=True) if line.rgb)
    return classes, MaskEncoding(moved, colours)


def _to_class_infos(lines: list[ClassRow], file: Path) -> list[ClassInfo]:
    if not 2 <= len(lines) <= IGNORE_INDEX:
        raise DataError(f"{file} names {len(lines)} classes; wanted are 2 to {IGNORE_INDEX}, a line each.")
    return [ClassInfo(name=line.name, rgb=line.rgb or default_rgb(label)) for label, line in enumerate(lines)]


def _read_class_rows(file: Path) -> list[ClassRow]:
    """Raises: DataError where the file is no such table, or two lines have one name or colour."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no CSV in UTF-8 ({error}); save it as such.") from error
    rows = _parse_csv_rows(text, file)
    if rows and [cell.lower() for cell in rows[0][1][:2]] in (["name"], ["name", "r"]):
        rows = rows[1:]
    lines = [_parse_class_row(row, number, file) for number, row in rows]
    bare = next((line.name for line in lines if line.rgb is None), None)
    if bare and any(line.rgb for line in lines):
        raise DataError(f"{file}: {bare!r} has no colour, but others have; write `name,r,g,b` on every line, or none.")
    for what in ("name", "rgb"):
        seen: dict[object, str] = {}
        for line in lines:
            value = getattr(line, what)
            if value is not None and value in seen:
                shared = "twice" if what == "name" else f"as {seen[value]!r} too: {','.join(map(str, value))}"
                raise DataError(
                    f"{file}: {line.name!r} has its {'name' if what == 'name' else 'colour'} {shared}; "
                    "each class needs its own."
                )
            seen[value] = line.name
    return lines


def _parse_csv_rows(text: str, file: Path) -> list[tuple[int, list[str]]]:
    """The lines that hold anything, cells stripped, each with its number in the file."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no line of a CSV ({error}).") from error


def _parse_class_row(row: list[str], number: int, file: Path) -> ClassRow:
    while len(row) > 1 and not row[-1]:
        row = row[:-1]  # a spreadsheet fills short lines up
    shown = ",".join(row)
    if not row[0]:
        raise DataError(f"{file}, line {number}: {shown!r} has no name; wanted is `name` or `name,r,g,b`.")
    if len(row) == 1:
        return ClassRow(row[0], None)
    if len(row) != 4:
        raise DataError(f"{file}, line {number}: {shown!r} has {len(row)} columns; wanted is `name` or `name,r,g,b`.")
    channels = [int(cell) if cell.isascii() and cell.isdigit() else -1 for cell in row[1:]]
    if not all(0 <= channel <= 255 for channel in channels):
        raise DataError(f"{file}, line {number}: {shown!r} has no colour; wanted is `name,r,g,b` with 0..255.")
    red, green, blue = channels
    return ClassRow(row[0], (red, green, blue))
