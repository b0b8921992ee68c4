"""nnU-Net's 2D data sets: `imagesTr/NAME_0000.png`, `labelsTr/NAME.png`, `dataset.json` with the labels.

`imagesTs` with `labelsTs` is test, and the first fold of `splits_final.json` gives train, val, and test if it has one. The
label named ignore is ignored. One file per image is read, gray or RGB; an image in several files of one channel each is an error.
"""

import json
import re
from pathlib import Path
from typing import Any

from models.errors import DataError
from models.readers.names import channel_names
from models.spec import IGNORE_INDEX
from training.data.class_file import classes_and_encoding
from training.data.class_parsers import ClassRow
from training.data.dataset import SPLITS
from training.data.json_file import class_name, read_json
from training.data.listing import Entry, Evidence, Listing
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding
from training.data.tree import MASK_SUFFIXES, FileTree, stem_below

DESCRIPTION, SPLIT_FILE = "dataset.json", "splits_final.json"
CHANNEL = re.compile(r"_(\d{4})$")


def detect(tree: FileTree) -> Evidence | None:
    """Whether there are `imagesTr`, `labelsTr` and `dataset.json` with 2D images."""
    if not all(tree.find_folder("", (name,)) for name in ("imagesTr", "labelsTr")):
        return None
    images, masks = len(tree.images_below("imagesTr")), len(tree.files_below("labelsTr", MASK_SUFFIXES))
    if not images or not masks:
        return None
    return Evidence(min(images, masks), f"{masks:,} masks in labelsTr for {images:,} images in imagesTr", strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    rows, ignored, files = read_description(tree)
    classes, encoding = classes_and_encoding(rows, tree.path(DESCRIPTION)) if rows else ([], IDENTITY_ENCODING)
    if ignored is not None:
        encoding = MaskEncoding((*encoding.gray_to_label, (ignored, IGNORE_INDEX)))
    splits, split_files = read_splits(tree)
    entries, unmatched = [], []
    for images, masks, default in (("imagesTr", "labelsTr", ""), ("imagesTs", "labelsTs", "test")):
        by_name = _images(tree, images)
        mask_by_name = {stem_below(path, masks): path for path in tree.files_below(masks, MASK_SUFFIXES)}
        has_splits = bool(splits) or "imagesTs" in tree.files
        for name, path in by_name.items():
            mask = tree.path(mask_by_name[name]) if name in mask_by_name else None
            split = default or (splits.get(name, "train") if has_splits else "")
            entries.append(Entry(name, tree.path(path), mask, split))
        unmatched += [tree.path(path) for name, path in mask_by_name.items() if name not in by_name]
    return Listing(
        tree.root, entries, classes, encoding, unmatched_masks=tuple(unmatched), notes=tree.notes, files=(*files, *split_files)
    )  # fmt: skip


def _images(tree: FileTree, folder: str) -> dict[str, str]:
    """Name without channel -> path. Raises: DataError for an image in several files."""
    found: dict[str, str] = {}
    for path in tree.images_below(folder):
        name = CHANNEL.sub("", stem_below(path, folder))
        if name in found:
            raise DataError(
                f"{tree.path(found[name])} and {tree.path(path)} are channels of one image; save them as one RGB image "
                f"{name}_0000.png."
            )
        found[name] = path
    return found


def read_channel_names(tree: FileTree) -> tuple[str, ...]:
    """The names of the channels in `dataset.json`, in order; empty without them. Raises: DataError."""
    found = tree.find_file("", (DESCRIPTION,))
    if found is None:
        return ()
    file = tree.path(found)
    content = _load(file)
    names = content.get("channel_names", content.get("modality", {}))
    try:
        ordered = [str(names[key]).strip() for key in sorted(names, key=int)]
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f'{file}: `channel_names` must map numbers to names, such as {{"0": "MRI"}}.') from error
    return channel_names(ordered, len(ordered))


def read_description(tree: FileTree) -> tuple[list[ClassRow], int | None, tuple[Path, ...]]:
    """The classes, the value of the ignored label, and the file. Raises: DataError."""
    found = tree.find_file("", (DESCRIPTION,))
    if found is None:
        return [], None, ()
    file = tree.path(found)
    labels = _load(file).get("labels")
    try:
        if not isinstance(labels, dict):
            raise TypeError
        # Version 1 maps values to names, version 2 names to values.
        pairs = {
            (class_name(value), int(key)) if str(key).isdigit() else (str(key), int(value))
            for key, value in labels.items()
        }
    except (TypeError, ValueError, OverflowError, DataError) as error:
        raise DataError(
            f'{file}: `labels` must map names to numbers, such as {{"background": 0, "cell": 1}}.'
        ) from error
    ignored = next((value for name, value in pairs if name == "ignore"), None)
    rows = [ClassRow(name, None, value) for name, value in sorted(pairs, key=lambda pair: pair[1]) if name != "ignore"]
    return rows, ignored, (file,)


def read_splits(tree: FileTree) -> tuple[dict[str, str], tuple[Path, ...]]:
    """The split of each name by the first fold of `splits_final.json`, and the file. Raises: DataError."""
    found = tree.find_file("", (SPLIT_FILE,))
    if found is None:
        return {}, ()
    file = tree.path(found)
    try:
        fold = dict(json.loads(file.read_bytes())[0])
        return {str(name): split for split in SPLITS for name in fold.get(split, ())}, (file,)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{file}: expected a list of folds with train and val ({type(error).__name__}); delete or repair it."
        ) from error


def _load(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected an object with `labels`.")
    return content
