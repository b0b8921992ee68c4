"""Hugging Face `datasets`: tables with columns of images, and folders of images with a list of their masks.

    data/train-00000-of-00001.parquet    columns such as `image` and `label`, of bytes and a path (`push_to_hub`)
    train/data-00000-of-00001.arrow      the same (`save_to_disk`)
    train/metadata.jsonl, metadata.csv   `file_name` and `mask_file_name` (ImageFolder)

Tables are unpacked once into the user's cache folder, which needs pyarrow. The split is that in the name of the file or folder.
Classes: `id2label.json` or another class file.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import DataError, first_line
from training.data.archive import check_space
from training.data.class_file import read_dataset_classes
from training.data.formats.csv_table import IMAGE_COLUMNS, MASK_COLUMNS
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.splits import split_from_name
from training.data.text_file import text_encoding
from training.data.tree import MASK_SUFFIXES, FileTree, join, parent_of, stem_below, suffix_of
from training.data.unpacked import unpack_once

TABLE_SUFFIXES = (".parquet", ".arrow")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
IMAGE_NAMES = (*IMAGE_COLUMNS, "pixel_values", "photo", "input")
MASK_NAMES = (
    *MASK_COLUMNS,
    "labels",
    "segmentation_mask",
    "semantic_segmentation",
    "annotations",
    "gt",
    "target",
    "conditioning_image",
)
BATCH_ROWS = 16
# Images are compressed already, so that a table hardly packs them; one that repeats a cell can state any size in a kilobyte.
MAX_ROWS, MAX_GROWTH, MIN_BYTES = 1_000_000, 20, 1 << 30
INSTALL = "reading it needs pyarrow: install maskserve with the extra [batch]"


def detect(tree: FileTree) -> Evidence | None:
    """Whether there are tables with images and masks, or lists of masks beside the images."""
    lists = [path for path in _metadata(tree) if _metadata_rows(tree.path(path), strict=False)]
    if lists:
        count = sum(len(_metadata_rows(tree.path(path), strict=False)) for path in lists)
        return Evidence(count, f"{', '.join(lists)} list {count:,} images with masks", strength=2)
    tables = _tables(tree)
    if not tables:
        return None
    try:
        counts = [_describe(tree.path(path)) for path in tables]
    except ImportError:
        return Evidence(len(tables), f"{len(tables):,} tables such as {tables[0]}; {INSTALL}", strength=1)
    except DataError as error:  # the reader's own message says more
        return Evidence(0, str(error), strength=2)
    images = sum(rows for rows, columns in counts if columns)
    if not images:
        return None
    columns = next(columns for _, columns in counts if columns)
    return Evidence(images, f"{images:,} rows of {tables[0]} with the columns {' and '.join(columns)}", strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    classes, encoding, files = read_dataset_classes(tree)
    lists = _metadata(tree)
    entries: list[Entry] = []
    for path in lists:
        entries += _metadata_entries(tree, path)
    if not entries:
        lists = _tables(tree)
        for path in lists:
            entries += _table_entries(tree, path)
    if not entries:
        raise DataError(
            f"{tree.root} has no table (parquet, arrow) with an image and a mask in each row, and no metadata.jsonl with "
            "`file_name` and `mask_file_name`."
        )
    check_unique(entries)
    read_files = (*files, *map(tree.path, lists))
    return Listing(tree.root, entries, classes, encoding, notes=tree.notes, files=read_files)


def _tables(tree: FileTree) -> list[str]:
    """The tables, without those that `datasets` keeps of its own results."""
    paths = tree.files_below("", TABLE_SUFFIXES)
    return [path for path in paths if not path.rsplit("/", 1)[-1].startswith("cache-")]


def _metadata(tree: FileTree) -> list[str]:
    """The lists; `metadata.csv` in the root is a table (`csv_table.py`)."""
    return [
        join(folder, name)
        for folder, names in tree.files.items()
        for name in METADATA_FILES
        if name in names and (folder or name != METADATA_FILES[1])
    ]


def _metadata_rows(file: Path, strict: bool = True) -> list[tuple[int, str, str]]:
    """Line, image and mask of each row that names both. Raises: DataError if `strict`; otherwise nothing is found."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        text = file.read_text(encoding=text_encoding(file))
        if file.suffix == ".csv":
            rows = list(enumerate(csv.DictReader(text.splitlines()), 2))
        else:
            rows = [(number, json.loads(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = []
        for number, row in rows:
            image = row.get("file_name") or row.get("image_file_name")
            mask = next((row[key] for key in MASK_NAMES if isinstance(row.get(key), str) and row[key]), None)
            if isinstance(image, str) and isinstance(mask, str) and suffix_of(mask) in MASK_SUFFIXES:
                found.append((number, image, mask))
        return found
    except (OSError, UnicodeDecodeError, ValueError, AttributeError, RecursionError, csv.Error) as error:
        if strict:
            raise DataError(
                f"{file}: not a list in {file.suffix[1:].upper()} ({first_line(error)}); export it again."
            ) from error
        return []


def _metadata_entries(tree: FileTree, path: str) -> list[Entry]:
    """Raises: DataError that names the line."""
    folder, file = parent_of(path), tree.path(path)
    found = []
    for number, image, mask in _metadata_rows(file):
        parts = [file.parent / name.replace("\\", "/") for name in (image, mask)]
        missing = next((part for part in parts if not part.is_file()), None)
        if missing:
            raise DataError(
                f"{file}, line {number}: {missing} does not exist; paths are relative to the folder of the list."
            )
        split = (split_from_name(folder.split("/")[0]) if folder else None) or ""
        found.append(Entry(stem_below(join(folder, image), ""), parts[0], parts[1], split))
    return found


def _describe(file: Path) -> tuple[int, tuple[str, str] | None]:
    """The number of rows, and the columns of images and masks. Raises: ImportError without pyarrow, DataError."""
    schema, rows = _schema(file)
    return rows, _columns(schema)


def _schema(file: Path) -> tuple[Any, int]:
    import pyarrow
    import pyarrow.parquet

    try:
        if suffix_of(file.name) == ".parquet":
            table = pyarrow.parquet.ParquetFile(file)
            return table.schema_arrow, table.metadata.num_rows
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
            return stream.schema, sum(batch.num_rows for batch in stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a table ({first_line(error)}); download or write it again.") from error


def _columns(schema: Any) -> tuple[str, str] | None:
    """The names of the columns of images and of masks; None if there are no such two."""
    import pyarrow

    def holds_images(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return {kind.field(index).name for index in range(kind.num_fields)} >= {"bytes", "path"}
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    names = [field.name for field in schema if holds_images(field.type)]
    image = next((name for known in IMAGE_NAMES for name in names if name.lower() == known), None)
    mask = next((name for known in MASK_NAMES for name in names if name.lower() == known and name != image), None)
    if len(names) == 2 and (image or mask):  # the other one, whatever its name
        image = image or next(name for name in names if name != mask)
        mask = mask or next(name for name in names if name != image)
    return (image, mask) if image and mask else None


def _table_entries(tree: FileTree, path: str) -> list[Entry]:
    """Raises: DataError."""
    try:
        folder = _unpack(tree.path(path))
    except ImportError as error:
        raise DataError(f"{tree.path(path)}: {INSTALL}.") from error
    split = (
        split_from_name(path.rsplit("/", 1)[-1]) or (split_from_name(parent_of(path)) if "/" in path else None) or ""
    )
    files: dict[str, dict[str, Path]] = {}
    for name in sorted(os.listdir(folder)):
        number, kind, _ = name.split(".", 2)
        files.setdefault(number, {})[kind] = folder / name
    return [
        Entry(f"{stem_below(path, '')}/{number}", each["image"], each.get("mask"), split)
        for number, each in files.items()
        if "image" in each
    ]


def _unpack(file: Path) -> Path:
    """The folder with the images and masks of a table: `000000.image.jpg`, `000000.mask.png`; written once.

    Raises: ImportError without pyarrow; DataError for a broken table, or too little disk space.
    """
    schema, rows = _schema(file)
    columns = _columns(schema)
    limit = max(MIN_BYTES, MAX_GROWTH * file.stat().st_size)
    _check_size(file, rows, _stated_bytes(file, columns) if columns else 0, limit)

    def fill(folder: Path) -> None:
        check_space(file, file.stat().st_size, folder)
        written = 0
        for number, row in enumerate(_rows(file, columns) if columns else ()):
            for kind, cell in zip(("image", "mask"), row, strict=True):
                written += _write_cell(folder / f"{number:06d}.{kind}", cell, file)
                _check_size(file, rows, written, limit)

    return unpack_once(file, "tables", fill, "save its images as files", f" {columns}")


def _check_size(file: Path, rows: int, size: int, limit: int) -> None:
    """Raises: DataError for more rows, or bytes of images, than a table has."""
    if rows > MAX_ROWS or size > limit:
        raise DataError(
            f"{file}: the table has {rows:,} rows and {size:,} bytes of images or more; the limits are {MAX_ROWS:,} and {limit:,}. "
            "Save its images as files, or as several tables."
        )


def _stated_bytes(file: Path, columns: tuple[str, str]) -> int:
    """The bytes of the two columns when they are decompressed, by the footer of a parquet; 0 for an arrow."""
    import pyarrow.parquet

    if suffix_of(file.name) != ".parquet":
        return 0
    metadata = pyarrow.parquet.ParquetFile(file).metadata
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def _rows(file: Path, columns: tuple[str, str]) -> Iterator[tuple[Any, Any]]:
    """The cells of the two columns, a few rows in memory at a time. Raises: DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        if suffix_of(file.name) == ".parquet":
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH_ROWS, columns=list(columns)):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            return
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    part = batch.slice(start, BATCH_ROWS)
                    yield from zip(*(part.column(name).to_pylist() for name in columns), strict=True)
    except (pyarrow.ArrowException, OSError) as error:  # OSError: a page that does not decompress
        raise DataError(f"{file}: the table is broken ({first_line(error)}); download or write it again.") from error


def _write_cell(target: Path, cell: Any, file: Path) -> int:
    """Write the image of a cell, bytes or {"bytes", "path"}; nothing for an empty cell.

    Returns: the bytes of the image in the table. Raises: DataError, OSError.
    """
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    suffix = suffix_of(path) if path and suffix_of(path) in MASK_SUFFIXES else ".png"
    if content is not None:
        target.with_name(target.name + suffix).write_bytes(content)
    elif path:
        source = file.parent / path
        if not source.is_file():
            raise DataError(f"{file}: {path} is not in the table and does not exist; save the table with its images.")
        shutil.copyfile(source, target.with_name(target.name + suffix))
    return len(content or b"")
