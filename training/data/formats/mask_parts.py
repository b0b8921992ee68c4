"""Several binary masks per image, merged into one. Any value but 0 belongs to the mask.

    ID/images/ID.png     ID/masks/*.png                  one mask per object (Data Science Bowl 2018): background, foreground
    images/NAME.jpg      masks/NAME_CLASS.png            one mask per class (CelebAMask-HQ): the classes are the endings
    images/NAME.jpg      masks/NAME_0.png, NAME_1.png    one mask per object, numbered
    images/NAME.jpg      masks/CLASS/NAME.png            one mask per class, in the folder of its class

Where masks overlap, the smaller one is on top. Touching objects become one region; `data remap --separate` draws a line between.
"""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.spec import ClassInfo, default_rgb
from training.data.class_file import read_dataset_classes
from training.data.dataset import Pair
from training.data.formats import shapes
from training.data.formats.folder_pairs import IMAGE_FOLDERS, MASK_FOLDERS, image_folder, mask_folders
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.mask_decoding import RawMask, read_raw_mask
from training.data.splits import split_from_name, split_of_folder
from training.data.tree import MASK_SUFFIXES, FileTree, parent_of, stem_below

FOREGROUND = "foreground"
MIN_PARTS = 1.2  # masks per image, on average: below, the masks are whole ones
MAX_CLASSES = 60
NUMBER = re.compile(r"\d+")
SAMPLED_MASKS = 6
TOUCHING = ": objects are foreground, and touching ones become one (`maskserve data remap --separate` keeps them apart)"
MAX_VALUES = 2  # of a binary mask


@dataclass(frozen=True)
class Parts:
    """The masks of one image, by class; "" for objects without a class."""

    image: str
    split: str
    masks: tuple[tuple[str, str], ...]  # (class, path)


@dataclass(frozen=True, eq=False)
class PartsMaskReader:
    """Merges the masks of an image."""

    masks: dict[str, list[tuple[int, Path]]]  # by image name: (label, file)
    cache_key: str  # of all files: `scan_cache.py` sees only the first

    def __call__(self, pair: Pair) -> RawMask:
        """Labels, uint8 H x W. Raises: DataError, ImageError that name the file."""
        parts = self._parts(pair)
        labels = np.zeros(parts[0][1].shape, np.uint8)
        for label, inside in parts:
            labels[inside] = label
        return RawMask(labels)

    def instances(self, pair: Pair) -> NDArray[np.uint32]:
        """The number of the mask at each pixel from 1, H x W; 0 for none. Raises: as a call."""
        parts = self._parts(pair)
        numbers = np.zeros(parts[0][1].shape, np.uint32)
        for number, (_, inside) in enumerate(parts, 1):
            numbers[inside] = number
        return numbers

    def _parts(self, pair: Pair) -> list[tuple[int, NDArray[np.bool_]]]:
        """Label and pixels of each mask of an image, in painting order: the smaller ones last."""
        found = []
        for label, file in self.masks[pair.name]:
            array = read_raw_mask(file).array
            background = 0 if array.min() == 0 or len(np.unique(array)) == 1 else array.min()
            found.append((label, array != background, file))
        size = found[0][1].shape
        for _, inside, file in found:
            if inside.shape != size:
                raise DataError(
                    f"{file}: the mask has {inside.shape[1]} x {inside.shape[0]} pixels, but {found[0][2].name} has "
                    f"{size[1]} x {size[0]}; all masks of an image need one size."
                )
        found.sort(key=lambda part: -int(part[1].sum()))
        return [(label, inside) for label, inside, _ in found]


def detect(tree: FileTree) -> Evidence | None:
    """Whether images have several masks each, in their own folder or by the beginning of their names."""
    parts = _object_folders(tree) or _named_parts(tree) or _class_folders(tree)
    with_masks = [part for part in parts if part.masks]
    if not with_masks:
        return None
    count = sum(len(part.masks) for part in with_masks)
    example = with_masks[0].masks[0][1]
    summary = f"{count:,} binary masks of {len(with_masks):,} images, such as {example}"
    return Evidence(len(with_masks), summary, len(parts) - len(with_masks), strength=1)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    parts = _object_folders(tree) or _named_parts(tree) or _class_folders(tree)
    if not parts:
        raise DataError(f"{tree.root} has no images with several masks each; expected ID/images and ID/masks.")
    names = sorted({name for part in parts for name, _ in part.masks} - {"", *shapes.BACKGROUND_NAMES})
    named, _, files = read_dataset_classes(tree)
    order = [entry.name for entry in named]
    if names and set(names) <= set(order):
        names = [name for name in order if name.lower() not in shapes.BACKGROUND_NAMES]
    else:
        files = ()
    classes = [
        ClassInfo(name=name, rgb=default_rgb(label))
        for label, name in enumerate([shapes.BACKGROUND, *(names or [FOREGROUND])])
    ]
    label_by_name = {"": 1} | {name: label for label, name in enumerate(names, 1)}
    entries, masks, used = [], {}, list[Path]()
    for part in parts:
        name = stem_below(part.image, "")
        files_of_image = [(label_by_name[kind], tree.path(path)) for kind, path in part.masks if kind in label_by_name]
        used += [path for _, path in files_of_image]
        masks[name] = files_of_image
        entries.append(Entry(name, tree.path(part.image), files_of_image[0][1] if files_of_image else None, part.split))
    check_unique(entries)
    example = next(part.masks[0][1] for part in parts if part.masks)
    notes = (
        f"{len(used):,} binary masks are merged into one per image, such as {tree.path(example)}"
        f"{'; the classes are ' + ', '.join(names) if names else TOUCHING}.",
    )
    stamps = [(str(path), stat.st_size, stat.st_mtime_ns) for path in used for stat in [os.stat(path)]]
    reader = PartsMaskReader(masks, shapes.digest(stamps, label_by_name))
    return Listing(tree.root, entries, classes, mask_reader=reader, notes=(*tree.notes, *notes), files=(*files, *used))


def _object_folders(tree: FileTree) -> list[Parts]:
    """`ID/images/ID.png` with `ID/masks/*.png`: folders of one image each."""
    found = []
    for folder in tree.files:
        if folder.rsplit("/", 1)[-1].lower() not in IMAGE_FOLDERS or not folder.count("/"):
            continue
        parent = parent_of(folder)
        images = tree.images_below(folder)
        masks = tree.find_folder(parent, MASK_FOLDERS)
        if len(images) != 1 or split_of_folder(parent.rsplit("/", 1)[-1]):
            if len(images) > 1:
                return []
            continue
        paths = tree.files_below(masks, MASK_SUFFIXES) if masks is not None else []
        found.append(Parts(images[0], _split_of(parent), tuple(("", path) for path in paths)))
    return found if len(found) > 1 and any(part.masks for part in found) else []


def _split_of(folder: str) -> str:
    """The split in the name of the first folder, such as `stage1_train`."""
    return (split_from_name(folder.split("/")[0]) if folder else None) or ""


def _flat_folders(tree: FileTree) -> tuple[str, str] | None:
    images, masks = image_folder(tree, ""), mask_folders(tree, "")
    return (images, masks[0]) if images is not None and masks else None


def _named_parts(tree: FileTree) -> list[Parts]:
    """`masks/NAME_CLASS.png` or `masks/NAME_0.png` for `images/NAME.jpg`."""
    folders = _flat_folders(tree)
    if folders is None:
        return []
    images = {stem_below(path, folders[0]): path for path in tree.images_below(folders[0])}
    image_by_key = {_file_key(name): name for name in images}
    if len(image_by_key) < len(images):
        image_by_key = {}
    by_image: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in tree.files_below(folders[1], MASK_SUFFIXES):
        name = stem_below(path, folders[1])
        base = name
        while base and base not in images and _file_key(base) not in image_by_key:
            cut = max(base.rfind(mark) for mark in "_-. ")
            base = base[:cut] if cut > 0 else ""
        if not base:
            return []
        image = base if base in images else image_by_key[_file_key(base)]
        by_image[image].append((name[len(base) :].strip("_-. "), path))
    total = sum(map(len, by_image.values()))
    if not by_image or total < MIN_PARTS * len(by_image):
        return []
    endings = {ending for parts in by_image.values() for ending, _ in parts}
    numbered = all(NUMBER.fullmatch(re.sub("[a-zA-Z_-]", "", ending) or "x") for ending in endings)
    if "" in endings or (not numbered and len(endings) > MAX_CLASSES) or not _are_binary(tree, by_image):
        return []
    return [
        Parts(
            path, _split_of(parent_of(path)), tuple(("" if numbered else kind, mask) for kind, mask in by_image[name])
        )
        for name, path in images.items()
    ]


def _file_key(name: str) -> str:
    """The file name without folders and leading zeros: `2/00031` is that of `31` in CelebAMask-HQ."""
    base = os.path.basename(name)
    return base.lstrip("0") or "0" if base.isdigit() else base


def _class_folders(tree: FileTree) -> list[Parts]:
    """`masks/CLASS/NAME.png` for `images/NAME.jpg`, where most images are in several folders."""
    folders = _flat_folders(tree)
    classes = tree.children(folders[1]) if folders else []
    if folders is None or len(classes) < 2 or any(split_of_folder(path.rsplit("/", 1)[-1]) for path in classes):
        return []
    images = {stem_below(path, folders[0]): path for path in tree.images_below(folders[0])}
    by_image: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for folder in classes:
        for path in tree.files_in(folder, MASK_SUFFIXES):
            if stem_below(path, folder) not in images:
                return []
            by_image[stem_below(path, folder)].append((folder.rsplit("/", 1)[-1], path))
    if not by_image or sum(map(len, by_image.values())) < MIN_PARTS * len(by_image) or not _are_binary(tree, by_image):
        return []
    return [Parts(path, "", tuple(by_image[name])) for name, path in images.items()]


def _are_binary(tree: FileTree, by_image: dict[str, list[tuple[str, str]]]) -> bool:
    """Whether a few of the masks have two values at most."""
    paths = [path for parts in by_image.values() for _, path in parts]
    for path in paths[:: max(1, len(paths) // SAMPLED_MASKS)][:SAMPLED_MASKS]:
        try:
            if len(np.unique(read_raw_mask(tree.path(path)).array)) > MAX_VALUES:
                return False
        except Exception:  # the lint reports it
            continue
    return True
