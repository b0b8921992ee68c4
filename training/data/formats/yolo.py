"""YOLO segmentation: `labels/NAME.txt` for `images/NAME.jpg`, by split in either order, or beside it; names in `data.yaml`.

A row is `class x y x y ...`, in fractions of the image size, or `class rle height width counts` with COCO's compressed run
lengths (ultralytics/ultralytics#25944); classes become labels from 1 after the background. An image without a file, or with an
empty one, is background. Rows of a box (`class x y width height`) have no outline and are errors.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from models.errors import DataError
from models.spec import ClassInfo, default_rgb
from training.data.dataset import Pair
from training.data.formats import shapes
from training.data.formats.rasterize import decode_compressed_rle
from training.data.formats.shapes import Shape, ShapeMaskReader
from training.data.listing import Entry, Evidence, Listing
from training.data.split_lists import apply_split_lists
from training.data.splits import split_of_path
from training.data.text_file import text_encoding
from training.data.tree import FileTree, parent_of, stem_below, suffix_of

NAME_FILES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
YAML_SUFFIXES = (".yaml", ".yml")
NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "classes.names", "names.txt", "labels.txt")
ROW = re.compile(rb"\s*\d+((\s+-?[\d.]+(e-?\d+)?){4,}|\s+rle\s+\d+\s+\d+\s+\S+)\s*", re.IGNORECASE)
RLE = "rle"
RLE_CELLS = 5  # class, rle, height, width, counts
MAX_FRACTION = 2.0  # of the width and height; polygons may leave the image a little
BOX_NUMBERS = 4


def detect(tree: FileTree) -> Evidence | None:
    """Whether text files of a folder `labels` have rows of numbers and an image of the same name."""
    if not tree.files_below("", (".txt",)):
        return None
    pairs = _pairs(tree)
    labels = [label for _, label in pairs.values() if label]
    rows = next((line for path in labels if (line := _first_row(tree.path(path)))), b"")
    if not labels or (not ROW.fullmatch(rows) and not tree.find_file("", NAME_FILES)):
        return None
    where = "in labels" if "labels" in parent_of(labels[0]).lower().split("/") else "beside them"
    boxes = len(rows.split()) == 1 + BOX_NUMBERS  # of a detector: masks in another folder are better
    summary = f"{len(labels):,} of {len(pairs):,} images have a YOLO file {where}{', of boxes' if boxes else ''}"
    return Evidence(0 if boxes else len(labels), summary, 0, strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    names, files, notes = _class_names(tree)
    pairs = _pairs(tree)
    where = f" in {tree.path('labels')}" if tree.find_folder("", ("labels",)) else ""
    entries = [
        Entry(name, tree.path(image), tree.path(label) if label else tree.path(image), split_of_path(image))
        for name, (image, label) in pairs.items()
    ]
    without = sum(label is None for _, label in pairs.values())
    if without:
        notes = (*notes, f"{without:,} of {len(pairs):,} images have no YOLO file{where}; they are all background.")
    classes = [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate([shapes.BACKGROUND, *names])]
    if len(classes) > 255:
        raise DataError(f"{tree.root} names {len(names)} classes; expected at most 254.")
    listed = apply_split_lists(tree, entries)
    reader = ShapeMaskReader(partial(_parse, num_classes=len(names)), shapes.digest(names))
    return Listing(
        tree.root, listed.entries, classes, mask_reader=reader, notes=(*tree.notes, *notes, *listed.notes),
        files=(*files, *listed.files),
    )  # fmt: skip


def _pairs(tree: FileTree) -> dict[str, tuple[str, str | None]]:
    """Name -> (image, label file or None); the label's path is that of the image with `labels` for `images`, or beside it."""
    texts = {folder: set(groups.get(".txt", ())) for folder, groups in tree.names_by_suffix.items()}
    found: dict[str, tuple[str, str | None]] = {}
    beside: dict[str, tuple[str, str | None]] = {}
    for path in tree.images_below(""):
        name = stem_below(path, "")
        parent, _, base = name.rpartition("/")
        parts = path.split("/")
        places = [index for index, part in enumerate(parts[:-1]) if part.lower() == "images"]
        folder = tree.find_folder("/".join(parts[: places[-1]]), ("labels",)) if places else None
        if folder is not None:
            below = "/".join([folder, *parts[places[-1] + 1 : -1]])
            found[name] = (path, f"{below}/{base}.txt" if f"{base}.txt" in texts.get(below, ()) else None)
        elif texts.get(parent):
            beside[name] = (path, f"{name}.txt" if f"{base}.txt" in texts[parent] else None)
    return found if any(label for _, label in found.values()) else beside


def _class_names(tree: FileTree) -> tuple[list[str], tuple[Path, ...], tuple[str, ...]]:
    """The names by class number, the file that has them, and notes. Raises: DataError."""
    found = tree.find_file("", NAME_FILES) or _other_name_file(tree)
    if found:
        file = tree.path(found)
        try:
            content = yaml.safe_load(file.read_text(encoding=text_encoding(file)))
            names = content["names"]
            if isinstance(names, dict):
                names = [names[key] for key in sorted(names, key=int)]
            if not all(isinstance(name, str | int | float) for name in names):
                raise TypeError  # lists of lists, which aliases can make endless
            return [str(name) for name in names], (file,), ()
        except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: no list `names` of the classes ({type(error).__name__}); add it.") from error
    lists = [path for name in NAME_LISTS if (path := tree.find_file(*_folder_and_name(name)))]
    if lists:
        lines = tree.path(lists[0]).read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()], (tree.path(lists[0]),), ()
    highest = 0
    for _, label in _pairs(tree).values():
        rows = _rows(tree.path(label)) if label else []
        highest = max([highest, *(int(row[0]) for row in rows if row[0].isdigit() and len(row[0]) < 4)])
    names = [f"class{number}" for number in range(highest + 1)]
    return names, (), (f"{tree.root} has no data.yaml with `names`; the classes are numbered.",)


def _other_name_file(tree: FileTree) -> str | None:
    """The only other YAML file at the top that lists `names`: `coco8-seg.yaml`."""
    files = tree.shared_files("", YAML_SUFFIXES)
    named = [path for path in files if re.search(rb"^names\s*:", _start(tree.path(path)), re.MULTILINE)]
    return named[0] if len(named) == 1 else None


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(1 << 16)
    except OSError:
        return b""


def _folder_and_name(path: str) -> tuple[str, tuple[str]]:
    folder, _, name = path.rpartition("/")
    return folder, (name,)


def _first_row(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.readline(1 << 16)
    except OSError:
        return b""


def _rows(file: Path) -> list[list[str]]:
    try:
        return [cells for line in file.read_text(encoding="utf-8-sig").splitlines() if (cells := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error}); export it again.") from error


def _parse(pair: Pair, num_classes: int) -> tuple[tuple[int, int], list[Shape]]:
    """Raises: DataError that names the line."""
    height, width = size = shapes.SizeReader()(pair.image)
    found: list[Shape] = []
    if suffix_of(pair.mask.name) != ".txt":
        return size, found
    for number, cells in enumerate(_rows(pair.mask), 1):
        if not cells[0].isdigit() or int(cells[0]) >= num_classes:
            raise DataError(f"line {number}: the class {cells[0]} is not one of the {num_classes} classes, from 0.")
        if cells[1:2] == [RLE]:
            found.append(_run_length_shape(cells, size, number))
            continue
        try:
            numbers = np.array(cells[1:], np.float64)
        except ValueError as error:
            raise DataError(f"line {number}: not a row of numbers; expected `class x y x y ...`.") from error
        if len(numbers) == BOX_NUMBERS:
            raise DataError(f"line {number}: a box without an outline; export polygons for segmentation.")
        if len(numbers) % 2:
            raise DataError(f"line {number}: {len(numbers)} coordinates; expected pairs x y.")
        try:
            corners = shapes.outline(numbers.reshape(-1, 2) * (width, height))
        except DataError as error:
            raise DataError(f"line {number}: {error}") from error
        if np.abs(numbers).max(initial=0) > MAX_FRACTION:
            raise DataError(
                f"line {number}: coordinates up to {np.abs(numbers).max():g}; expected fractions of the image, 0 to 1, not pixels."
            )
        found.append(Shape(int(cells[0]) + 1, [corners]))
    return size, found


def _run_length_shape(cells: list[str], size: tuple[int, int], number: int) -> Shape:
    """The object of a row `class rle height width counts`. Raises: DataError that names the line."""
    if len(cells) != RLE_CELLS or not (cells[2].isdecimal() and cells[3].isdecimal()):
        raise DataError(f"line {number}: expected `class rle height width counts`; export it again.")
    height, width = int(cells[2]), int(cells[3])
    if (height, width) != size:
        raise DataError(
            f"line {number}: the run lengths are for {width} x {height} pixels, but the image has {size[1]} x {size[0]}; "
            "export them at the size of the image."
        )
    try:
        counts = decode_compressed_rle(cells[4].encode("ascii", "replace"))
        bitmap = shapes.decode_run_lengths(counts.tolist(), size, column_major=True)
    except DataError as error:
        raise DataError(f"line {number}: {error}") from error
    return Shape(int(cells[0]) + 1, bitmap=bitmap)
