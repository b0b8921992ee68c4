"""Parsers of class files: tables, lines of text, CVAT's label map, JSON and YAML; see `class_file.py`."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from models.errors import DataError, first_line, quoted
from models.spec import default_rgb

LABELMAP_FILE = "labelmap.txt"
NAME_COLUMNS = (
    "name",
    "class_name",
    "classname",
    "class",
    "label_name",
    "category",
    "label",
    "classes",
    "names",
    "labels",
)
VALUE_COLUMNS = (
    "idx",
    "pixel value",
    "pixel_value",
    "value",
    "id",
    "index",
    "class_id",
    "label_id",
    "train_id",
    "label",
)
COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
JSON_NAMES, JSON_COLORS = ("name", "class_name", "class", "label", "title", "readable"), ("color", "colour", "rgb")
HASTY_NUMBER = "png_index"  # values of Hasty and CloudFactory, where 0 is the background and not listed
JSON_NUMBERS = (HASTY_NUMBER, "pixel_value", "value", "class_id", "label_id", "index", "id")
HEX_COLOR = re.compile("#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?")  # the opacity is not read
JSON_LISTS = ("labels", "id2label", "names", "classes", "categories")  # keys that hold the classes
_COLOR_LINE = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\S.*)|(\S.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")
_NUMBERED_LINE = re.compile(r"(\d+)\s*[:,;\s]\s*(\S.*)")
_LABELMAP_LINE = re.compile(r"[^:]*:\s*(\d*\s*,\s*\d*\s*,\s*\d*|):.*")


class ClassRow(NamedTuple):
    """One class of the file."""

    name: str
    rgb: tuple[int, int, int] | None  # None if it has no color
    value: int | None = None  # its value in the masks; None for its position in the file


def parse_table(text: str, file: Path) -> list[ClassRow]:
    """A table, `name` or `name,r,g,b` per line, or with a header. Raises: DataError for an invalid line."""
    cells = _parse_csv(text, file)
    columns = _find_columns(cells[0][1]) if cells else None
    if columns is None:
        return [_parse_class_row(row, number, file) for number, row in cells]
    name, color, value = columns
    rows = []
    for number, row in cells[1:]:
        padded = [*row, *[""] * len(cells[0][1])]
        fields = [padded[name], *(padded[index] for index in color)]
        parsed = _parse_class_row(fields if any(fields[1:]) else fields[:1], number, file)
        rows.append(parsed._replace(value=_parse_value(padded[value], number, file)) if value is not None else parsed)
    return rows


def _find_columns(header: list[str]) -> tuple[int, list[int], int | None] | None:
    """The columns of the name, the color and the value; None if the line is no header."""
    words = [cell.lower() for cell in header]
    color = next(([words.index(word) for word in group] for group in COLOR_COLUMNS if set(group) <= set(words)), [])
    name = next((words.index(word) for word in NAME_COLUMNS if word in words), None)
    value = next((words.index(word) for word in VALUE_COLUMNS if word in words and words.index(word) != name), None)
    if name is None or (len(words) > 1 and not color and value is None):
        return None
    return name, color, value


def _parse_value(cell: str, number: int, file: Path) -> int:
    if not (cell.isascii() and cell.isdigit() and int(cell) < 1 << 16):
        raise DataError(f"{file}, line {number}: {quoted(cell)} is no pixel value; expected a whole number from 0.")
    return int(cell)


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
        raise DataError(f"{file}, line {number}: {quoted(text)} has no name; expected `name` or `name,r,g,b`.")
    if len(row) == 1:
        return ClassRow(row[0], None)
    if len(row) != 4:
        raise DataError(
            f"{file}, line {number}: {quoted(text)} has {len(row)} columns; expected `name` or `name,r,g,b`, "
            "or a header line that names the columns: name,r,g,b."
        )
    return ClassRow(row[0], _parse_color(row[1:], text, f"{file}, line {number}"))


def _parse_color(cells: Sequence[str], text: str, where: str) -> tuple[int, int, int]:
    channels = [int(cell) if cell.isascii() and cell.isdigit() else -1 for cell in map(str.strip, cells)]
    if not all(0 <= channel <= 255 for channel in channels):
        raise DataError(f"{where}: {quoted(text)} has no valid color; expected `name,r,g,b` with 0 to 255.")
    red, green, blue = channels
    return red, green, blue


def parse_lines(text: str, file: Path) -> list[ClassRow]:
    """A text file: CVAT's label map, `r g b name`, `name r g b`, `id name`, or one name per line."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if lines and (file.name.lower() == LABELMAP_FILE or all(_LABELMAP_LINE.fullmatch(line) for _, line in lines)):
        return parse_labelmap([line for _, line in lines], file)
    colored = [_COLOR_LINE.fullmatch(line) for _, line in lines]
    if lines and all(colored):
        rows = []
        for (number, line), match in zip(lines, colored, strict=True):
            groups = match.groups() if match else ()
            name, cells = (groups[3], groups[:3]) if groups[3] else (groups[4], groups[5:])
            rows.append(ClassRow(name, _parse_color(cells, line, f"{file}, line {number}")))
        return rows
    numbered = [_NUMBERED_LINE.fullmatch(line) for _, line in lines]
    if lines and all(numbered):
        return [ClassRow(match[2], None, int(match[1])) for match in numbered if match]
    if lines and lines[0][1].lower() in NAME_COLUMNS:
        lines = lines[1:]
    # labelme's label list starts with `__ignore__`, whose value is -1, so it is no label.
    return [ClassRow(line.strip('"'), None) for _, line in lines if line != "__ignore__"]


def parse_labelmap(lines: Sequence[str], file: Path) -> list[ClassRow]:
    """CVAT's classes, `name:red,green,blue:parts:actions`. Raises: DataError for an invalid line."""
    rows: list[ClassRow] = []
    for line in lines:
        if line.startswith("#"):
            continue
        name, *fields = (field.strip() for field in line.split(":"))
        try:
            color = (
                [np.uint8(int(channel)).item() for channel in fields[0].split(",")] if fields and fields[0] else None
            )
            red, green, blue = color or default_rgb(len(rows))
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{file}: invalid class {quoted(line)}; expected `name:red,green,blue::` with 0 to 255."
            ) from error
        twin = next((other.name for other in rows if other.name == name or other.rgb == (red, green, blue)), None)
        if twin:
            raise DataError(
                f"{file}: {quoted(name)} and {quoted(twin)} have the same name or color; change or delete one."
            )
        rows.append(ClassRow(name, (red, green, blue)))
    return rows


def parse_json(text: str, file: Path) -> list[ClassRow]:
    """Ids and names in JSON or YAML.

    {"0": "road"}, {"road": 0}, {"road": [r, g, b]}, ["road", ...], or [{"name": "road", "id": 0, "color": [r, g, b]}, ...].
    """
    try:
        content: Any = json.loads(text) if file.suffix.lower() == ".json" else yaml.safe_load(text)
        nested = [
            content[key]
            for key in JSON_LISTS
            if isinstance(content, dict) and isinstance(content.get(key), dict | list)
        ]
        content = nested[0] if nested else content
        if isinstance(content, list):
            rows = [_json_row(entry) for entry in content]
            if any(HASTY_NUMBER in entry for entry in content) and all(row.value for row in rows):
                rows.insert(0, ClassRow("background", rows[0].rgb and (0, 0, 0), 0))
            return rows
        rows = []
        for key, value in content.items():
            if isinstance(value, list) or (isinstance(value, str) and HEX_COLOR.fullmatch(value)):
                rows.append(ClassRow(str(key), _json_color(value)))
                continue
            if isinstance(value, dict):
                rows.append(_json_row({"id": int(key), **value} if str(key).isdigit() else {"name": key, **value}))
                continue
            name, number = (value, key) if str(key).isdigit() else (key, value)
            if not isinstance(name, str) or not 0 <= int(number) < 1 << 16:
                raise ValueError
            rows.append(ClassRow(name, None, int(number)))
        return rows
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: invalid JSON at line {error.lineno} ({error.msg}); export it again.") from error
    except yaml.YAMLError as error:
        raise DataError(f"{file}: invalid YAML ({first_line(error)}); export it again.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f'{file}: not a list of classes; expected {{"0": "name", "1": "name"}} or ["name", "name"].'
        ) from error


def _json_color(value: Any) -> tuple[int, int, int] | None:
    """A color as [r, g, b] or "#rrggbb"; None for the name of a color. Raises: ValueError, TypeError."""
    if isinstance(value, str) and not HEX_COLOR.fullmatch(value):
        return None
    channels = bytes.fromhex(value.removeprefix("#")[:6]) if isinstance(value, str) else value
    red, green, blue = (int(channel) for channel in channels)
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError
    return red, green, blue


def _json_row(entry: Any) -> ClassRow:
    if isinstance(entry, str):
        return ClassRow(entry, None)
    color = next((entry[key] for key in JSON_COLORS if entry.get(key) is not None), None)
    number = next((entry[key] for key in JSON_NUMBERS if isinstance(entry.get(key), int)), None)
    name = next((entry[key] for key in JSON_NAMES if entry.get(key)), None)
    if not isinstance(name, str | int):
        raise TypeError
    value = None if number is None or number < 0 else int(number)
    return ClassRow(str(name).strip(), None if color is None else _json_color(color), value)
