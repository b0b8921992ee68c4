"""The class file of a data set: the names of its classes, in label order, and possibly their colors and pixel values.

`classes.csv` has one class per line, `name` or `name,r,g,b` (0 to 255). A header line may name the columns and add others
(`class_dict.csv`, Roboflow's `Pixel Value, Class`). Tabs, semicolons and a byte order mark are accepted. Other files that tools
write: one name per line (`classes.txt`, labelme's `class_names.txt`), `r g b name` (`label_colors.txt`), `name:r,g,b:parts:actions`
(CVAT's `labelmap.txt`), JSON of ids and names (`id2label.json`). A class named `void` or `ignore` is none: its label and
color are ignored, and the following classes move up.
"""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.errors import DataError, quoted
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding, pack_rgb
from training.data.tree import CLASS_FILE, CLASS_FILES, FileTree

LABELMAP_FILE = "labelmap.txt"
INVALID_LABEL = IGNORE_INDEX - 1  # above every class: the lint reports it
IGNORED_NAMES = ("void", "ignore", "__ignore__")
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
ADE20K_FILE = "objectinfo150.txt"
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
_COLOR_LINE = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\S.*)|(\S.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")
_NUMBERED_LINE = re.compile(r"(\d+)\s*[:,;\s]\s*(\S.*)")
# Four words or more and a full stop, or ten words: longer than any class name without a comma.
_SENTENCE = re.compile(r"(\S+\s+){3,}\S*[a-zA-Z)][.!?:]|([^\s,;]+\s+){9,}[^\s,;]+")
MAX_PROSE_BYTES = 10_000
_LABELMAP_LINE = re.compile(r"[^:]*:\s*(\d*\s*,\s*\d*\s*,\s*\d*|):.*")


class ClassRow(NamedTuple):
    """One class of the file."""

    name: str
    rgb: tuple[int, int, int] | None  # None if it has no color
    value: int | None = None  # its value in the masks; None for its position in the file


def read_class_file(file: Path) -> list[ClassInfo]:
    """The classes of a file, in label order; without colors they get those of PASCAL VOC. Raises: DataError."""
    return _to_class_infos(read_class_rows(file), file)


def find_class_file(tree: FileTree, folders: Sequence[str] = ("",)) -> str | None:
    """The first class file in one of the folders, ignoring case; text files of sentences are none."""
    for folder in folders:
        for name in CLASS_FILES:
            file = tree.find_file(folder, (name,))
            if file and not (name.endswith(".txt") and _is_prose(tree.path(file))):
                return file
    return None


def _is_prose(file: Path) -> bool:
    """Whether a line of a text file is a sentence, and no class: `labels.txt` may as well be notes about the labels."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            lines = [line.strip() for line in stream.readlines(MAX_PROSE_BYTES) if not line.startswith("#")]
    except OSError:
        return False
    return any(_SENTENCE.fullmatch(line) for line in lines)


def read_dataset_classes(
    tree: FileTree, folders: Sequence[str] = ("",)
) -> tuple[list[ClassInfo], MaskEncoding, tuple[Path, ...]]:
    """The classes in a data set's class file, the mask encoding that it implies, and the file with its copies.

    Nothing without a file. Some tools write the file into the folder of every split.
    Raises: DataError; also if two of these files of one name differ.
    """
    found = find_class_file(tree, folders)
    if found is None:
        return [], IDENTITY_ENCODING, ()
    file = tree.path(found)
    rows = read_class_rows(file)
    name = Path(found).name.lower()
    copies = [tree.path(path) for folder in folders if (path := tree.find_file(folder, (name,)))]
    for copy in copies:
        if copy != file and read_class_rows(copy) != rows:
            raise DataError(f"{file} and {copy} have different classes; correct one, and copy it over the other.")
    return *classes_and_encoding(rows, file), tuple(dict.fromkeys([file, *copies]))


def classes_and_encoding(rows: list[ClassRow], file: Path) -> tuple[list[ClassInfo], MaskEncoding]:
    """The classes of the rows, and the labels of their values and colors. Raises: DataError."""
    kept = [row for row in rows if row.name.lower() not in IGNORED_NAMES]
    classes = _to_class_infos(kept, file)
    label_by_name = {row.name: label for label, row in enumerate(kept)}
    labels = [label_by_name.get(row.name, IGNORE_INDEX) for row in rows]
    values = [index if row.value is None else row.value for index, row in enumerate(rows)]
    moved = [(value, label) for value, label in zip(values, labels, strict=True) if value != label]
    # A value that the file skips must not be read as the label that has this number.
    moved += [(value, INVALID_LABEL) for value in range(len(kept)) if value not in values and len(kept) < INVALID_LABEL]
    colors = tuple((pack_rgb(row.rgb), label) for row, label in zip(rows, labels, strict=True) if row.rgb)
    return classes, MaskEncoding(tuple(moved), colors)


def class_line(files: Sequence[Path], rgb: str) -> str:
    """What to write for a class of the color `r,g,b`: the line, and the class file that was read."""
    file = next((file for file in files if file.name.lower() in CLASS_FILES), None)
    name = (file or Path(CLASS_FILE)).name
    forms = {LABELMAP_FILE: f"name:{rgb}::", "label_colors.txt": f"{rgb.replace(',', ' ')} name"}
    return f"a line `{forms.get(name.lower(), f'name,{rgb}')}` to {file or name}"


def class_table(classes: list[ClassInfo]) -> list[tuple[str | int, ...]]:
    """The rows of a class file, header first."""
    return [("name", "r", "g", "b"), *((entry.name, *entry.rgb) for entry in classes)]


def _to_class_infos(rows: list[ClassRow], file: Path) -> list[ClassInfo]:
    if not 2 <= len(rows) <= IGNORE_INDEX:
        raise DataError(f"{file} has {len(rows)} classes; expected 2 to {IGNORE_INDEX}, one per line.")
    return [ClassInfo(name=row.name, rgb=row.rgb or default_rgb(label)) for label, row in enumerate(rows)]


def read_class_rows(file: Path) -> list[ClassRow]:
    """The classes by value. Raises: DataError if the file cannot be parsed, or two classes share a name, color or value."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a class file in UTF-8 ({error}); save it as UTF-8.") from error
    if file.name.lower() == ADE20K_FILE:
        rows = [ClassRow(IGNORED_NAMES[0], None, 0), *_parse_table(text, file)]  # 0 is no class there
    elif file.suffix.lower() == ".json":
        rows = _parse_json(text, file)
    elif file.suffix.lower() in (".csv", ".tsv"):
        rows = _parse_table(text, file)
    else:
        rows = _parse_lines(text, file)
    _check_rows(rows, file)
    return sorted(rows, key=lambda row: row.value or 0) if rows and rows[0].value is not None else rows


def _check_rows(rows: list[ClassRow], file: Path) -> None:
    without_color = next((row.name for row in rows if row.rgb is None), None)
    if without_color and any(row.rgb for row in rows):
        raise DataError(
            f"{file}: {quoted(without_color)} has no color, but other classes have one; write `name,r,g,b` on every line, "
            "or on none."
        )
    names: set[str] = set()
    values: set[int] = set()
    name_by_color: dict[tuple[int, int, int], str] = {}
    for row in rows:
        if row.name in names:
            raise DataError(f"{file}: the class name {quoted(row.name)} occurs twice; give each class its own name.")
        if row.rgb and row.rgb in name_by_color:
            raise DataError(
                f"{file}: {quoted(row.name)} and {quoted(name_by_color[row.rgb])} have the same color "
                f"{','.join(map(str, row.rgb))}; give each class its own color."
            )
        if row.value is not None and row.value in values:
            raise DataError(f"{file}: two classes have the value {row.value}; give each class its own.")
        names.add(row.name)
        if row.value is not None:
            values.add(row.value)
        if row.rgb:
            name_by_color[row.rgb] = row.name


def _parse_table(text: str, file: Path) -> list[ClassRow]:
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


def _parse_lines(text: str, file: Path) -> list[ClassRow]:
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


def _parse_json(text: str, file: Path) -> list[ClassRow]:
    """Ids and names: {"0": "road"}, {"road": 0}, ["road", ...] or [{"name": "road", "id": 0, "color": [r, g, b]}, ...]."""
    try:
        content: Any = json.loads(text)
        if isinstance(content, dict) and isinstance(
            nested := content.get("labels", content.get("id2label")), dict | list
        ):
            content = nested
        if isinstance(content, list):
            return [_json_row(entry) for entry in content]
        rows = []
        for key, value in content.items():
            name, number = (value, key) if str(key).isdigit() else (key, value)
            if not isinstance(name, str) or not 0 <= int(number) < 1 << 16:
                raise ValueError
            rows.append(ClassRow(name, None, int(number)))
        return rows
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: invalid JSON at line {error.lineno} ({error.msg}); export it again.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f'{file}: not a list of classes; expected {{"0": "name", "1": "name"}} or ["name", "name"].'
        ) from error


def _json_row(entry: Any) -> ClassRow:
    if isinstance(entry, str):
        return ClassRow(entry, None)
    color, number = entry.get("color"), entry.get("id")
    red, green, blue = (int(np.uint8(channel)) for channel in color) if isinstance(color, list) else (None,) * 3
    rgb = None if red is None or green is None or blue is None else (red, green, blue)
    return ClassRow(str(entry["name"]), rgb, int(number) if isinstance(number, int) and number >= 0 else None)
