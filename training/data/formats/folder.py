"""A folder of images and masks, paired by name (`matching.py`). One of:

    images/NAME.jpg          masks/NAME.png            split by lists (`split_lists.py`), or by a hash of the name
    images/train/NAME.jpg    masks/train/NAME.png      and val, test
    train/images/NAME.jpg    train/masks/NAME.png      and val, test

The folders may have other names, and lie deeper (`folder_pairs.py`). If there is a `train` but no `val`, a hash of the name holds
out a tenth of train. A mask has one label per pixel, 0 to 254, with 255 ignored; or only 0 and 255; or the class colors.
`classes.csv` names the classes (`class_file.py`).
"""

import numpy as np

from models.errors import DataError, MaskserveError
from models.imaging.decode import IMAGE_SUFFIXES
from training.data.class_file import read_dataset_classes
from training.data.formats.folder_pairs import FolderPair, find_folder_pairs, split_of
from training.data.listing import Entry, Evidence, Listing
from training.data.mask_decoding import MaskEncoding, read_raw_mask
from training.data.matching import is_usual, match_names, strip_folder_and_ending
from training.data.split_lists import apply_split_lists
from training.data.tree import MASK_SUFFIXES, FileTree, count_suffixes, join, parent_of, stem_below

MAX_LISTED = 4
MAX_EXPANDED = 60  # folders below a mask folder that may hold the masks
SAMPLED_MASKS = 4  # masks read from each of several mask folders, to choose one
MAX_COMPARED_VALUES = 64  # more values are a photograph or a mask of mixtures


def detect(tree: FileTree) -> Evidence | None:
    """Whether there is a folder of images with a folder of masks, at the top or in the folder of train.

    Other formats (YOLO, COCO) also have `labels` and `annotations`, so these must contain a mask.
    """
    pairs = find_folder_pairs(tree)
    if not pairs or not any(tree.files_below(folder, MASK_SUFFIXES) for pair in pairs for folder in pair.masks):
        return None
    images = masks = 0
    for pair in pairs:
        images += len(_image_names(tree, pair))
        masks += max(_count_matches(tree, pair).values(), default=0)
    listed = [f"{pair.images} with {' or '.join(pair.masks) or 'no masks'}" for pair in pairs[:MAX_LISTED]]
    more = f" and {len(pairs) - MAX_LISTED:,} more" if len(pairs) > MAX_LISTED else ""
    where = ", ".join(dict.fromkeys(listed)) + more
    return Evidence(masks, f"{masks:,} of {images:,} images have a mask: {where}", images - masks)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    pairs = find_folder_pairs(tree)
    if not pairs:
        raise DataError(f"{tree.root} has no folder images with a folder masks; see `maskserve data inspect`.")
    if not any(_image_names(tree, pair) for pair in pairs):
        there = count_suffixes(tree.files_below(pairs[0].images)) or "nothing"
        raise DataError(
            f"{tree.path(pairs[0].images)} has no images, but {there}; expected files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    classes, encoding, class_files = read_dataset_classes(tree, _class_folders(pairs))
    entries: list[Entry] = []
    unmatched: list[str] = []
    notes: dict[str, None] = {}
    for pair in pairs:
        masks = _choose_masks(tree, pair, encoding, notes)
        found, without_image, rule = pair_files(tree, _image_names(tree, pair), masks, pair.split)
        entries += found
        unmatched += without_image
        if rule and not is_usual(rule):
            notes[f"Images and masks are paired by what differs between their names: {rule}."] = None
    used = {entry.mask for entry in entries}
    unmatched = [path for path in dict.fromkeys(unmatched) if tree.path(path) not in used]
    if unmatched and not any(entry.mask for entry in entries):
        first = next(entry for entry in entries if not entry.mask)
        _check_ambiguous(tree, entries, unmatched)
        raise DataError(
            f"{tree.root}: none of {len(entries):,} images has a mask of the same name; found for example "
            f"{first.image} and {tree.path(unmatched[0])}. Give image and mask the same name, or list the pairs in a table "
            f"{tree.root}/list.csv with the header image,mask."
        )
    for pair in pairs:
        entries += _stray_images(tree, pair, pairs)
    listed = apply_split_lists(tree, entries)
    return Listing(
        tree.root,
        listed.entries,
        classes,
        encoding,
        unmatched_masks=tuple(map(tree.path, unmatched)),
        notes=(*tree.notes, *notes, *listed.notes),
        files=(*class_files, *listed.files),
    )


def _check_ambiguous(tree: FileTree, entries: list[Entry], masks: list[str]) -> None:
    """Raises: DataError if images in several folders have the name of one mask."""
    by_name: dict[str, Entry] = {}
    mask_by_name = {strip_folder_and_ending(stem_below(path, "")): path for path in masks}
    for entry in entries:
        name = strip_folder_and_ending(entry.name)
        other = by_name.setdefault(name, entry)
        if other is not entry and name in mask_by_name:
            raise DataError(
                f"{other.image} and {entry.image} have the same name, so {tree.path(mask_by_name[name])} could be the mask of "
                "either; put the masks into the same subfolders as the images, or list the pairs in a table "
                f"{tree.root}/list.csv with the header image,mask."
            )


def pair_files(
    tree: FileTree, images: dict[str, str], masks: dict[str, str], split: str = ""
) -> tuple[list[Entry], list[str], str]:
    """The entries of images and masks given as name -> path, the paths of masks without an image, and the rule."""
    try:
        match = match_names(list(images), list(masks))
    except DataError as error:
        raise DataError(f"{tree.root}: {error}") from error
    entries = [
        Entry(name, tree.path(path), tree.path(masks[mask]) if (mask := match.mask_by_image.get(name)) else None, split)
        for name, path in images.items()
    ]
    matched = set(match.mask_by_image.values())
    return entries, [path for name, path in masks.items() if name not in matched], match.rule


def names_below(tree: FileTree, folder: str, paths: list[str]) -> dict[str, str]:
    """Name -> path of files below a folder. Raises: DataError if two have the same name."""
    found: dict[str, str] = {}
    for path in paths:
        name = stem_below(path, folder)
        if name in found:
            raise DataError(
                f"{tree.path(found[name])} and {tree.path(path)} have the same name; rename one, so that each mask has "
                "one image."
            )
        found[name] = path
    return found


def _image_names(tree: FileTree, pair: FolderPair) -> dict[str, str]:
    names = names_below(tree, pair.images, tree.images_below(pair.images))
    return {join(pair.prefix, name): path for name, path in names.items()}


def _mask_names(tree: FileTree, folder: str, prefix: str) -> dict[str, str]:
    names = names_below(tree, folder, tree.files_below(folder, MASK_SUFFIXES))
    return {join(prefix, name): path for name, path in names.items()}


def _count_matches(tree: FileTree, pair: FolderPair) -> dict[str, int]:
    """By mask folder, the images that have a mask there. If none has, the folders below are tried: `labels/sem_seg/masks`."""
    images = list(_image_names(tree, pair))
    counts = {folder: _count(tree, images, folder, pair.prefix) for folder in pair.masks}
    if any(counts.values()) or not images:
        return counts
    below = [
        each
        for folder in pair.masks
        for each in tree.folders_below(folder)
        if each != folder and (not split_of(each) or split_of(each) == pair.split)
    ]
    deeper = {each: _count(tree, images, each, pair.prefix) for each in below[:MAX_EXPANDED] if tree.files[each]}
    return {folder: count for folder, count in deeper.items() if count} or counts


def _count(tree: FileTree, images: list[str], folder: str, prefix: str) -> int:
    try:
        return len(match_names(images, list(_mask_names(tree, folder, prefix))).mask_by_image)
    except DataError:  # `read` reports it
        return len(images)


def _choose_masks(tree: FileTree, pair: FolderPair, encoding: MaskEncoding, notes: dict[str, None]) -> dict[str, str]:
    """The masks of the best mask folder. Of several, the one with the class file's colors, or else with more values."""
    if not pair.masks:
        return {}
    counts = _count_matches(tree, pair)
    candidates = [folder for folder in counts if counts[folder] == max(counts.values())]
    if len(candidates) > 1 and counts[candidates[0]]:
        scores = {folder: _mask_score(tree, folder, encoding) for folder in candidates}
        best = max(candidates, key=lambda folder: (scores[folder], -candidates.index(folder)))
        others = ", ".join(str(tree.path(folder)) for folder in candidates if folder != best)
        notes[
            f"Several folders have masks for {tree.path(pair.images)}: {tree.path(best)} is read and {others} is not. "
            "To read another, list images and masks in a table, or move this one away."
        ] = None
        candidates = [best]
    return _mask_names(tree, candidates[0], pair.prefix)


def _mask_score(tree: FileTree, folder: str, encoding: MaskEncoding) -> tuple[int, bool, bool, int, int]:
    """(masks whose colors are classes, not of instances, whether masks differ, distinct values, masks of labels) of a few."""
    paths = tree.files_below(folder, MASK_SUFFIXES)
    known, labels, values, contents = 0, 0, set[int](), set[bytes]()
    for path in paths[:: max(1, len(paths) // SAMPLED_MASKS)][:SAMPLED_MASKS]:
        try:
            mask = read_raw_mask(tree.path(path))
        except MaskserveError:
            continue
        found = np.unique(mask.array).tolist()
        known += mask.kind == "color" and set(found) <= {color for color, _ in encoding.color_to_label} | {0}
        labels += mask.kind != "color"
        values.update(found)
        contents.add(mask.array.tobytes())
    count = len(values) if len(values) <= MAX_COMPARED_VALUES else 0
    return known, "instance" not in folder.lower(), len(contents) > 1, count, labels


def _stray_images(tree: FileTree, pair: FolderPair, pairs: list[FolderPair]) -> list[Entry]:
    """Images beside the split folders of `images`: they are in no split."""
    parent = parent_of(pair.images)
    if not pair.split or pair is not pairs[0] or split_of(pair.images) == "" or not parent:
        return []
    taken = tuple(f"{other.images}/" for other in pairs)
    paths = [path for path in tree.images_below(parent) if not path.startswith(taken)]
    return [Entry(stem_below(path, parent), tree.path(path), None) for path in paths]


def _class_folders(pairs: list[FolderPair]) -> list[str]:
    """The folders that may hold the class file: the top, then beside the images and in the mask folders."""
    found = [""]
    for pair in pairs:
        found += [parent_of(pair.images), *pair.masks, *(parent_of(folder) for folder in pair.masks)]
    return list(dict.fromkeys(found))
