"""Lists of image names by split: `train.txt`, `val.txt`, `test.txt` at the top, in `splits`, `ImageSets` and the like.

A line is the name of an image, with or without folder and suffix; what follows the first blank is not read. One file may have all
lists, in JSON or YAML: `train_test_split.yaml` with `train: [1, 2, 5]`; a number is the only number in the name of an image.
Without lists the names of the images decide, if all begin with a split: `train_1.png`, `testA_1.png`.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from models.readers import SIGNAL_SUFFIXES
from training.data.listing import Entry
from training.data.splits import SPLIT_ALIASES
from training.data.text_file import text_encoding
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
SPLIT_FILE = re.compile(r"(.*[_\-. ])?(splits?|partition)\.(json|ya?ml)", re.IGNORECASE)
FIRST_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
MAX_SPLIT_FILE_BYTES = 50_000_000


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

    Lists of other things, in which no line names an image, are not used, with a note.
    """
    if any(entry.split for entry in entries):
        return SplitLists(entries)
    lists = {split: (tree.path(path), read_list(tree.path(path))) for split, path in find_split_lists(tree).items()}
    lists = lists or _read_split_file(tree)
    if not lists:
        return _splits_from_names(entries)
    by_name = {_normalize(entry.name): index for index, entry in enumerate(entries)}
    by_base: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        for base in {PurePosixPath(_normalize(entry.name)).name, _normalize(entry.image.stem)}:
            by_base.setdefault(base, []).append(index)
    by_number = _by_number(entries)
    splits: dict[int, str] = {}
    notes, files = [], []
    for split, (file, names) in lists.items():
        found: list[int] = []
        missing: list[str] = []
        for name in names:
            candidates = by_base.get(PurePosixPath(name).name) or by_number.get(name.lstrip("0") or name, [])
            place = by_name.get(name, candidates[0] if len(candidates) == 1 else None)
            if place is None:
                missing.append(name)
            else:
                found.append(place)
        if not found and missing:
            notes.append(
                f"{file} is not used: it lists {len(missing):,} names, such as {missing[0]}, and none is an image here."
            )
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
        return SplitLists(entries, tuple(notes))
    files = list(dict.fromkeys(files))
    return SplitLists(
        [entry._replace(split=splits.get(index, "")) for index, entry in enumerate(entries)], tuple(notes), tuple(files)
    )


def _read_split_file(tree: FileTree) -> dict[str, tuple[Path, list[str]]]:
    """The lists of the only JSON or YAML file that has those of train and of another split, by split. Raises: DataError."""
    found = []
    for path in tree.shared_files("", (".json", ".yaml", ".yml")):
        if not SPLIT_FILE.fullmatch(path) or tree.path(path).stat().st_size > MAX_SPLIT_FILE_BYTES:
            continue
        file = tree.path(path)
        try:
            text = file.read_text(encoding=text_encoding(file))
            content = json.loads(text) if path.lower().endswith(".json") else yaml.safe_load(text)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise DataError(
                f"{file}: not valid JSON or YAML ({type(error).__name__}); correct or delete it."
            ) from error
        if not isinstance(content, dict):
            continue
        lists = {
            split: (
                file,
                [
                    _normalize(_without_suffix(str(name).replace("\\", "/")))
                    for name in names
                    if isinstance(name, str | int)
                ],
            )
            for key, names in content.items()
            if (split := SPLIT_ALIASES.get(str(key).lower())) and isinstance(names, list)
        }
        if "train" in lists and len(lists) > 1:
            found.append(lists)
    return found[0] if len(found) == 1 else {}


def _by_number(entries: list[Entry]) -> dict[str, list[int]]:
    """The images whose names have one number, by this number: 1 for `001_image`."""
    found: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        numbers = re.findall(r"\d+", entry.image.stem)
        if len(numbers) == 1:
            found.setdefault(str(int(numbers[0])), []).append(index)
    return found


def _splits_from_names(entries: list[Entry]) -> SplitLists:
    """The splits that the names of all images begin with; unchanged if one begins otherwise, or if all are of one split."""
    first = [FIRST_WORD.match(entry.image.name) for entry in entries]
    splits = [SPLIT_ALIASES.get(word[0].lower(), "") if word else "" for word in first]
    counts = Counter(splits)
    if counts[""] or "train" not in counts or len(counts) < 2:
        return SplitLists(entries)
    listed = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    note = f"The names of the images begin with their splits ({listed})."
    return SplitLists([entry._replace(split=split) for entry, split in zip(entries, splits, strict=True)], (note,))


def read_list(file: Path) -> list[str]:
    """The names in a list, without suffixes. Raises: DataError."""
    names = []
    for line in read_lines(file):
        path = line.replace("\\", "/")
        first = path.split()[0]
        has_columns = suffix_of(first) in FILE_SUFFIXES or suffix_of(path) not in FILE_SUFFIXES
        name = first if has_columns else path
        names.append(_normalize(_without_suffix(name.removeprefix("./").lstrip("/"))))
    return names


def _without_suffix(name: str) -> str:
    return name[: -len(suffix_of(name))] if suffix_of(name) in FILE_SUFFIXES else name


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without quotes and empty ones. Raises: DataError."""
    try:
        text = file.read_text(encoding=text_encoding(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error}); save it as UTF-8.") from error
    # Datumaro, CVAT's exporter, quotes names with spaces.
    return [name for line in text.splitlines() if (name := line.strip().strip('"'))]


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)
