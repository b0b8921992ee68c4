"""Lists of image names by split: `train.txt`, `val.txt`, `test.txt` at the top, in `splits`, `ImageSets` and the like.

A line is the name of an image, with or without folder and suffix; what follows the first blank is not read.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from models.readers import SIGNAL_SUFFIXES
from training.data.listing import Entry
from training.data.splits import SPLIT_ALIASES
from training.data.tree import FileTree, join, suffix_of

LIST_FOLDERS = (
    "",
    "splits",
    "split",
    "lists",
    "ImageSets/Segmentation",
    "ImageSets/Main",
    "ImageSets",
    "annotations",
    "index",
)
FILE_SUFFIXES = IMAGE_SUFFIXES | SIGNAL_SUFFIXES  # of names in lists
TRAIN_AND_VAL = "trainval"  # the training list of data sets that hold out no validation images


class SplitLists(NamedTuple):
    """The entries with the splits of the lists."""

    entries: list[Entry]
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def find_split_lists(tree: FileTree, folders: Sequence[str] = LIST_FOLDERS) -> dict[str, str]:
    """The list of each split, in the first folder that has one."""
    for folder in folders:
        parts = folder.split("/") if folder else []
        found = ""
        for part in parts:
            found = tree.find_folder(found, (part,)) or "-"
        names = [name for name in tree.files.get(found, []) if suffix_of(name) in (".txt", ".lst")]
        lists = {split: join(found, name) for name in names if (split := SPLIT_ALIASES.get(Path(name).stem.lower()))}
        for name in names:
            if Path(name).stem.lower() == TRAIN_AND_VAL:
                lists.setdefault("train", join(found, name))
        if "train" in lists:
            return lists
    return {}


def apply_split_lists(tree: FileTree, entries: list[Entry]) -> SplitLists:
    """The entries with the splits that lists give them; unchanged if there are no lists, or folders define the splits.

    Lists of other things, in which no line names an image, are not used.
    """
    lists = find_split_lists(tree)
    if not lists or any(entry.split for entry in entries):
        return SplitLists(entries)
    by_name = {_normalize(entry.name): index for index, entry in enumerate(entries)}
    by_base: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        for base in {PurePosixPath(_normalize(entry.name)).name, _normalize(entry.image.stem)}:
            by_base.setdefault(base, []).append(index)
    splits: dict[int, str] = {}
    notes, files = [], []
    for split, path in lists.items():
        file = tree.path(path)
        found: list[int] = []
        missing: list[str] = []
        for name in read_list(file):
            candidates = by_base.get(PurePosixPath(name).name, [])
            place = by_name.get(name, candidates[0] if len(candidates) == 1 else None)
            if place is None:
                missing.append(name)
            else:
                found.append(place)
        if not found:
            continue
        files.append(file)
        if missing:
            notes.append(
                f"{file} lists {len(missing):,} images that are not there, such as {missing[0]}; they are skipped."
            )
        twice = [index for index in found if splits.get(index, split) != split]
        if twice:
            raise DataError(
                f"{file} lists {entries[twice[0]].name}, which is also in the list of {splits[twice[0]]}; "
                "delete it from one of the two."
            )
        splits.update(dict.fromkeys(found, split))
    if "train" not in splits.values():
        return SplitLists(entries)
    return SplitLists(
        [entry._replace(split=splits.get(index, "")) for index, entry in enumerate(entries)], tuple(notes), tuple(files)
    )


def read_list(file: Path) -> list[str]:
    """The names in a list, without suffixes. Raises: DataError."""
    names = []
    for line in read_lines(file):
        path = line.replace("\\", "/")
        first = path.split()[0]
        has_columns = suffix_of(first) in FILE_SUFFIXES or suffix_of(path) not in FILE_SUFFIXES
        name = first if has_columns else path
        name = name.removeprefix("./").lstrip("/")
        names.append(_normalize(name[: -len(suffix_of(name))] if suffix_of(name) in FILE_SUFFIXES else name))
    return names


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without quotes and empty ones. Raises: DataError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error}); save it as UTF-8.") from error
    # Datumaro, CVAT's exporter, quotes names with spaces.
    return [name for line in text.splitlines() if (name := line.strip().strip('"'))]


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)
