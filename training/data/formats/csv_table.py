"""A table of images and masks, CSV, TSV or text: one image per line, with paths relative to the table.

    split,image,mask
    train,images/001.jpg,masks/001.png

Columns may be in any order, with others, separated by commas, semicolons or tabs. Without `split` a hash of the name assigns
the splits, and without val a tenth of train is held out (`folder.py`). The data set is the table itself, or a folder with one
such table; `classes.csv` is in the same folder. Without a header line a table has two columns, image and mask; such lists may
be separated by blanks, and be named after their splits: `train.txt` with `images/001.jpg masks/001.png`.
"""

import csv
from pathlib import Path, PurePosixPath

from models.errors import DataError, quoted
from training.data.class_file import read_dataset_classes
from training.data.dataset import SPLITS
from training.data.listing import Entry, Evidence, Listing
from training.data.splits import SPLIT_ALIASES
from training.data.text_file import text_encoding
from training.data.tree import CLASS_FILES, MASK_SUFFIXES, TABLE_SUFFIXES, FileTree, suffix_of

LIST_SUFFIXES = (".txt", ".lst")
MIN_COLUMNS = 2
IMAGE, MASK, SPLIT = "image", "mask", "split"
IMAGE_COLUMNS = (
    IMAGE,
    "image_path",
    "img",
    "img_path",
    "image_file",
    "images",
    "filename",
    "file_name",
    "image_filename",
)
MASK_COLUMNS = (
    MASK,
    "mask_path",
    "label",
    "label_path",
    "mask_file",
    "masks",
    "annotation",
    "mask_filename",
    "segmentation",
    "mask_file_name",
    "label_file_name",
    "annotation_file_name",
)


def detect(tree: FileTree) -> Evidence | None:
    """Whether the folder has such a table, or lists of pairs."""
    tables = _list_tables(tree)
    if not tables and not _pair_lists(tree):
        return None
    names = tables or list(_pair_lists(tree).values())
    lines = sum(max(0, len(_read_text(tree.path(name), strict=False)) - bool(tables)) for name in names)
    return Evidence(lines, f"{', '.join(names)} lists {lines:,} images", strength=2 if tables else 1)


def read(tree: FileTree) -> Listing:
    """Raises: DataError that names the first wrong line."""
    tables = _list_tables(tree)
    if len(tables) > 1:
        raise DataError(f"{tree.root} has two tables, {tables[0]} and {tables[1]}; give the path of one.")
    lists = {} if tables else _pair_lists(tree)
    if not tables and not lists:
        raise DataError(f"{tree.root} has no table; expected a CSV or TSV with the header split,image,mask.")
    entries: list[Entry] = []
    for split, name in lists.items():
        entries += _read_pair_list(tree.path(name), split)
    for name in tables:
        entries += _read_rows(tree.path(name))
    _check_names(entries)
    classes, encoding, files = read_dataset_classes(tree)
    file = tree.path(tables[0]) if tables else tree.root
    read_files = (*files, *map(tree.path, tables), *map(tree.path, lists.values()))
    return Listing(file, entries, classes, encoding, notes=tree.notes, files=read_files)


def _list_tables(tree: FileTree) -> list[str]:
    """The tables with a header, or with paths of an image and a mask in each line."""
    return [
        name
        for name in tree.shared_files("", TABLE_SUFFIXES)
        if name.lower() not in CLASS_FILES
        and (_has_header(tree.path(name)) or _split_pair(_first_line(tree.path(name)), tree.root))
    ]


def _has_header(file: Path) -> bool:
    """Whether the columns are image and mask; under another name, a mask column must name image files (not classes)."""
    header = _parse_header(_first_line(file))
    if header is None or MASK in _first_line(file).lower().replace('"', "").strip().split(header[0]):
        return header is not None
    rows = list(csv.reader(_read_text(file, strict=False)[1:2], delimiter=header[0]))
    cells = dict(zip(header[1], rows[0], strict=False)) if rows else {}
    return suffix_of(cells.get(MASK, "").strip()) in MASK_SUFFIXES


def _pair_lists(tree: FileTree) -> dict[str, str]:
    """The lists of pairs without a header, by split."""
    return {
        SPLIT_ALIASES.get(Path(name).stem.lower(), ""): name
        for name in tree.shared_files("", LIST_SUFFIXES)
        if _split_pair(_first_line(tree.path(name)), tree.root)
    }


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding=text_encoding(file), errors="replace") as stream:
            return stream.readline(10_000)
    except OSError:
        return ""


def _parse_header(line: str) -> tuple[str, list[str]] | None:
    """The delimiter and the columns of a header line; None if it lacks image or mask."""
    for delimiter in ",\t;":
        columns = [column.strip().strip('"').lower() for column in line.strip("\r\n").split(delimiter)]
        for role, words in ((IMAGE, IMAGE_COLUMNS), (MASK, MASK_COLUMNS)):
            found = next((columns.index(word) for word in words if word in columns), None)
            if found is not None:
                columns[found] = role
        if IMAGE in columns and MASK in columns:
            return delimiter, columns
    return None


def _split_pair(line: str, folder: Path) -> tuple[str, str] | None:
    """Image and mask of a line without header: two existing files. None if the line is none."""
    for delimiter in ("\t", ";", ",", None):
        cells = [cell.strip().strip('"').replace("\\", "/") for cell in line.strip().split(delimiter)]
        if len(cells) >= MIN_COLUMNS and all(suffix_of(cell) in MASK_SUFFIXES for cell in cells[:MIN_COLUMNS]):
            image, mask = (_locate(folder, cell) for cell in cells[:MIN_COLUMNS])
            if image and mask:
                return image, mask
    return None


def _locate(folder: Path, path: str) -> str | None:
    """The path of an existing file, as a table names it; what leads to the folder on another machine is cut off."""
    parts = path.replace("\\", "/").split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail and (folder / tail).is_file()), None)


def _read_text(file: Path, strict: bool = True) -> list[str]:
    try:
        return [
            line
            for line in file.read_text(text_encoding(file), "strict" if strict else "replace").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a table in UTF-8 ({error}); save it as UTF-8.") from error


def _read_pair_list(file: Path, split: str) -> list[Entry]:
    """The entries of a list without header. Raises: DataError for the first wrong line."""
    entries = []
    for number, line in enumerate(_read_text(file), 1):
        pair = _split_pair(line, file.parent)
        if pair is None:
            raise DataError(
                f"{file}, line {number}: {quoted(line)} does not name an image and a mask that exist; expected "
                "`images/001.jpg masks/001.png`, relative to the folder of the list."
            )
        entries.append(Entry(_image_name(pair[0]), file.parent / pair[0], file.parent / pair[1], split))
    return entries


def _check_names(entries: list[Entry]) -> None:
    seen: dict[str, Entry] = {}
    for entry in entries:
        if seen.setdefault(entry.name, entry) is not entry:
            raise DataError(f"{entry.image} is listed twice; delete one of the two lines.")


def _read_rows(file: Path) -> list[Entry]:
    """Raises: DataError for the first wrong line."""
    lines = _read_text(file)
    header = _parse_header(lines[0]) if lines else None
    if header is None:
        if lines and _split_pair(lines[0], file.parent):
            return _read_pair_list(file, "")
        raise DataError(f"{file}: the header has no columns {IMAGE} and {MASK}; expected split,image,mask.")
    delimiter, columns = header
    reader = csv.reader(file.read_text(encoding=text_encoding(file)).splitlines(), delimiter=delimiter)
    next(cells for cells in reader if any(cell.strip() for cell in cells))
    entries: list[Entry] = []
    line_by_name: dict[str, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        number = reader.line_num
        entry = _parse_row(dict(zip(columns, map(str.strip, cells), strict=False)), number, file)
        if entry.name in line_by_name:
            raise DataError(
                f"{file}, lines {line_by_name[entry.name]} and {number}: both list {entry.name}; delete one of them."
            )
        line_by_name[entry.name] = number
        entries.append(entry)
    if not entries:
        raise DataError(f"{file} lists no image; expected one per line: split,image,mask.")
    return entries


def _parse_row(cells: dict[str, str], number: int, file: Path) -> Entry:
    """Raises: DataError."""
    where = f"{file}, line {number}"
    written = [cells.get(column, "").replace("\\", "/") for column in (IMAGE, MASK)]
    split = SPLIT_ALIASES.get(cells.get(SPLIT, "").lower(), "") if SPLIT in cells else ""
    if SPLIT in cells and not split:
        raise DataError(f"{where}: unknown split {quoted(cells[SPLIT])}; choose from {', '.join(SPLITS)}.")
    if not written[0]:
        raise DataError(f"{where}: no image; write its path in the column {IMAGE}.")
    image, mask = (path and _locate(file.parent, path) for path in written)
    if image is None or mask is None:
        raise DataError(
            f"{where}: {file.parent / written[image is not None]} does not exist; paths are relative to the folder of the table."
        )
    return Entry(_image_name(image), file.parent / image, file.parent / mask if mask else None, split)


def _image_name(path: str) -> str:
    """The name of an image: its path without the suffix and without parts that leave the folder."""
    return "/".join(part for part in PurePosixPath(path).with_suffix("").parts if part not in ("..", "/"))
