"""Images and masks in one folder, with different names: `NAME.jpg` with `NAME_mask.png`, `N_sat.jpg` with `N_mask.png`.

The two endings (or beginnings) are found by counting: of all pairs of files whose names differ only there, the most frequent one.
Folders named after splits give the splits (Roboflow's "Semantic Segmentation Masks" with `_classes.csv`).
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from models.errors import DataError
from training.data.class_file import read_dataset_classes
from training.data.formats.folder_pairs import MASK_FOLDERS
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.matching import MASK_WORDS
from training.data.split_lists import apply_split_lists
from training.data.splits import split_of_path
from training.data.tree import MASK_SUFFIXES, FileTree, suffix_of

BOUNDARY = re.compile(r"[_\-. ]")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
ADE20K_PARTS = re.compile(r"^ADE_.*_parts_\d+\.png$")
MIN_PAIRS = 2
MAX_COUNTED = 4000  # names of a folder that are counted to find the endings
MIN_FRACTION = 0.3  # of the files of a folder that must be in pairs


class Affix(NamedTuple):
    """What a name has around the part that image and mask share."""

    prefix: str
    ending: str  # with the suffix, so that NAME.jpg and NAME.png are two kinds

    def __str__(self) -> str:
        return f"{self.prefix}NAME{self.ending}"


def detect(tree: FileTree) -> Evidence | None:
    """Whether files of one folder differ only in an ending such as `_mask`."""
    found = {folder: rule for folder in _candidates(tree) if (rule := _find_rule(tree.files[folder]))}
    if not found:
        return None
    pairs = sum(len(_pairs(tree.files[folder], *rule)) for folder, rule in found.items())
    total = sum(_count(tree, folder) for folder in found)
    rules = ", ".join(dict.fromkeys(f"{image} with {mask}" for image, mask in found.values()))
    return Evidence(pairs, f"{pairs:,} pairs in one folder: {rules}", total - 2 * pairs, 2 * bool(_roboflow(tree)))


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    found = {folder: rule for folder in _candidates(tree) if (rule := _find_rule(tree.files[folder]))}
    if not found:
        raise DataError(f"{tree.root} has no folder with images NAME.jpg and masks such as NAME_mask.png.")
    entries: list[Entry] = []
    unmatched, notes = [], dict[str, None]()
    for folder, (image_affix, mask_affix) in found.items():
        names = tree.files[folder]
        if any(ADE20K_PARTS.search(name) for name in names):
            raise DataError(
                f"{tree.path(folder)} is of the full ADE20K, whose masks hold thousands of classes as red / 10 * 256 + green. Use "
                "the edition of 150 classes (ADEChallengeData2016), or write masks of your own classes."
            )
        pairs = _pairs(names, image_affix, mask_affix)
        masks = set(pairs.values())
        notes[f"Images and masks are in one folder and differ in their names: {image_affix} with {mask_affix}."] = None
        prefix = f"{folder}/" if folder else ""
        for name in names:
            if name in pairs:
                path, mask = tree.path(prefix + name), tree.path(prefix + pairs[name])
                entries.append(Entry(prefix + _base(name, image_affix), path, mask, split_of_path(f"{folder}/")))
            elif suffix_of(name) in MASK_SUFFIXES and name not in masks:
                path = tree.path(prefix + name)
                if _has(name, mask_affix) and mask_affix.ending != image_affix.ending:
                    unmatched.append(path)
                else:
                    entries.append(Entry(prefix + name.rpartition(".")[0], path, None, split_of_path(f"{folder}/")))
    check_unique(entries)
    classes, encoding, files = read_dataset_classes(tree, ["", *found])
    listed = apply_split_lists(tree, entries)
    known = all(_is_mask_affix(mask) for _, mask in found.values())
    return Listing(
        tree.root, listed.entries, classes, encoding, unmatched_masks=tuple(unmatched),
        notes=(*tree.notes, *([] if known else notes), *listed.notes), files=(*files, *listed.files),
    )  # fmt: skip


def _candidates(tree: FileTree) -> list[str]:
    """The folders with several files: the top, or those named after splits, or else all."""
    if tree.find_folder("", MASK_FOLDERS) is not None:
        return []  # images and masks have their own folders
    filled = [
        folder
        for folder, names in tree.files.items()
        if folder.rsplit("/", 1)[-1].lower() not in MASK_FOLDERS and len(names) > 1 and _count(tree, folder) > 1
    ]
    splits = [folder for folder in filled if split_of_path(f"{folder}/")]
    return [""] if "" in filled else splits or filled


def _count(tree: FileTree, folder: str) -> int:
    groups = tree.names_by_suffix[folder]
    return sum(len(groups[suffix]) for suffix in groups.keys() & MASK_SUFFIXES)


def _find_rule(names: Sequence[str]) -> tuple[Affix, Affix] | None:
    """The affixes of images and of masks in a folder; None if its files are no pairs."""
    files = _sample([name for name in names if suffix_of(name) in MASK_SUFFIXES])
    by_base: dict[str, set[Affix]] = defaultdict(set)
    for name in files:
        for base, affix in _cuts(name):
            by_base[base].add(affix)
    counts: Counter[tuple[Affix, Affix]] = Counter()
    for affixes in by_base.values():
        if 2 <= len(affixes) <= 8:
            ordered = sorted(affixes)
            counts.update((one, two) for index, one in enumerate(ordered) for two in ordered[index + 1 :])
    best = max(counts.items(), key=lambda item: (item[1], _mask_words(item[0]), -_length(item[0])), default=None)
    if best is None or 2 * best[1] < max(MIN_FRACTION * len(files), 2 * min(MIN_PAIRS, len(files) // 2)):
        return None
    one, two = best[0]
    if _is_mask_affix(one) != _is_mask_affix(two):
        return (two, one) if _is_mask_affix(one) else (one, two)
    lossy = [suffix_of(f"x{affix.ending}") in LOSSY_SUFFIXES for affix in (one, two)]
    if lossy[0] != lossy[1]:
        return (one, two) if lossy[0] else (two, one)
    if len(one.prefix + one.ending) == len(two.prefix + two.ending):
        return None  # left and right, day and night: nothing says which is the mask
    return (one, two) if len(one.prefix + one.ending) < len(two.prefix + two.ending) else (two, one)


def _sample(names: list[str]) -> list[str]:
    """Some thousand of many names: those whose digits have certain hashes, so that image and mask are both in it."""
    every = len(names) // MAX_COUNTED
    if every < 2:
        return names
    digits = [re.sub(r"\D", "", name.rpartition(".")[0]) for name in names]
    return [name for name, key in zip(names, digits, strict=True) if not key or zlib.crc32(key.encode()) % every == 0]


def _cuts(name: str) -> list[tuple[str, Affix]]:
    """The parts that a name may share with another: the whole, without an ending, or without a beginning."""
    stem, dot, suffix = name.rpartition(".")
    ending = f"{dot}{suffix.lower()}"
    found = [(stem, Affix("", ending))]
    places = [match.start() for match in BOUNDARY.finditer(stem)]
    for place in places[-3:]:
        if place:
            found.append((stem[:place], Affix("", stem[place:] + ending)))
    if places and not stem[: places[0]].isdigit():
        found.append((stem[places[0] + 1 :], Affix(stem[: places[0] + 1], ending)))
    return found


def _mask_words(rule: tuple[Affix, Affix]) -> int:
    return sum(map(_is_mask_affix, rule)) == 1


def _length(rule: tuple[Affix, Affix]) -> int:
    return sum(len(affix.prefix) + len(affix.ending) for affix in rule)


def _is_mask_affix(affix: Affix) -> bool:
    words = re.split(r"[_\-. ]", f"{affix.prefix}{affix.ending.rpartition('.')[0]}".lower())
    return any(word in MASK_WORDS for word in words if word)


def _has(name: str, affix: Affix) -> bool:
    stem, dot, suffix = name.rpartition(".")
    text = f"{stem}{dot}{suffix.lower()}"
    return (
        text.startswith(affix.prefix) and text.endswith(affix.ending) and len(text) > len(affix.prefix + affix.ending)
    )


def _base(name: str, affix: Affix) -> str:
    return name[len(affix.prefix) : -len(affix.ending)]


def _pairs(names: Sequence[str], image: Affix, mask: Affix) -> dict[str, str]:
    """Image -> mask."""
    masks = {_base(name, mask): name for name in names if _has(name, mask)}
    taken = set(masks.values())
    shorter = mask.ending.endswith(image.ending) and mask.prefix.startswith(image.prefix)
    return {
        name: masks[base]
        for name in names
        if _has(name, image) and (base := _base(name, image)) in masks and (not shorter or name not in taken)
    }


def _roboflow(tree: FileTree) -> list[str]:
    return [folder for folder in tree.files if tree.find_file(folder, ("_classes.csv",))]
