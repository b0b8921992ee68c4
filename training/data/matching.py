"""Pairs images and masks by their names.

Names are paths below the image folder and the mask folder, without the suffix. The rules are tried in order, each on the names
that are left, and a rule is used only if each of its keys belongs to one image and one mask.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from models.readers import SAMPLE_SUFFIXES

MASK_WORDS = (
    "mask", "masks", "label", "labels", "labelids", "labeltrainids", "seg", "segmentation", "segm", "gt", "groundtruth",
    "annotation", "annotations", "anno", "trimap", "target", "manual", "manual1", "l", "m",
)  # fmt: skip
IMAGE_WORDS = ("image", "images", "img", "im", "sat", "rgb", "photo", "raw", "input", "training", "orig", "original")
_MASK_ENDING = re.compile(rf"([_\-. ]({'|'.join(MASK_WORDS)}))+$")
MIN_STATISTICS = 2  # names needed to tell a common prefix or suffix from the names themselves
MIN_PAIRED_FRACTION = 0.5  # of the images, for names that are paired by what differs between them


class Match(NamedTuple):
    """The pairs, and how they were found."""

    mask_by_image: dict[str, str]
    rule: str  # for `data inspect`: "by name"


def match_names(images: Sequence[str], masks: Sequence[str]) -> Match:
    """Pair names. Raises: DataError if two images or two masks have the same key under a rule that is used."""
    exact = set(masks)
    found = {name: name for name in images if name in exact}
    by_case = _match_by_key(images, masks, found, _fold_name)
    found |= by_case
    if found:
        return Match(found, "by name")
    by_ending = _match_by_key(images, masks, {}, strip_mask_ending)
    if by_ending:
        return Match(by_ending, "by name without endings such as _mask")
    by_suffix = _match_by_key(images, masks, {}, _strip_image_suffix)
    if by_suffix:
        return Match(by_suffix, "by name; the masks' names hold the image's suffix")
    by_base = _match_unique(images, masks, lambda name: _fold_name(os.path.basename(name)), strip_folder_and_ending)
    if by_base:
        return Match(by_base, "by file name, in other folders")
    return _match_by_statistics(images, masks)


def is_usual(rule: str) -> bool:
    """Whether the masks of this rule have a word such as `mask` in their names, so that nobody needs to check it."""
    _, paired_by_difference, masks = rule.partition(" with ")
    return not paired_by_difference or any(word in MASK_WORDS for word in re.split(r"[^a-z0-9]+", masks.lower()))


def strip_mask_ending(name: str) -> str:
    """The name in lower case without `_mask`, `-label` and the like at its end (`MASK_WORDS`)."""
    folded = _fold_name(name)
    return _MASK_ENDING.sub("", folded) or folded


def strip_folder_and_ending(name: str) -> str:
    """The file name alone, without the ending of a mask."""
    return strip_mask_ending(os.path.basename(name))


def strip_common_affixes(names: Sequence[str]) -> tuple[list[str], str, str]:
    """What differs between file names, and the text before and behind it that all share; digits are never cut."""
    bases = [os.path.basename(name) for name in names]
    if len(bases) < MIN_STATISTICS:
        return bases, "", ""
    prefix = _common_start(bases).rstrip("0123456789")
    suffix = _common_start([base[len(prefix) :][::-1] for base in bases])[::-1].lstrip("0123456789")
    end = -len(suffix) if suffix else None
    return [base[len(prefix) : end] for base in bases], prefix, suffix


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    length = next((index for index, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), len(first))
    return first[:length]


def _match_by_statistics(images: Sequence[str], masks: Sequence[str]) -> Match:
    """Pair `image_000` with `mask_000`: what differs between the images is what differs between the masks."""
    image_keys, image_prefix, image_suffix = strip_common_affixes(images)
    mask_keys, mask_prefix, mask_suffix = strip_common_affixes(masks)
    folders = [os.path.dirname(name) for name in images]
    mask_folders = [os.path.dirname(name) for name in masks]
    if set(folders) != set(mask_folders):
        folders, mask_folders = [""] * len(images), [""] * len(masks)
    by_image = dict(zip(images, zip(folders, map(_fold_name, image_keys), strict=True), strict=True))
    by_mask = dict(zip(masks, zip(mask_folders, map(_fold_name, mask_keys), strict=True), strict=True))
    usable = all(key for _, key in by_image.values()) and all(key for _, key in by_mask.values())
    if not usable or min(len(set(images)), len(masks)) < MIN_STATISTICS:
        return Match({}, "")
    found = _match_unique(images, masks, by_image.__getitem__, by_mask.__getitem__)
    if len(found) < max(MIN_STATISTICS, MIN_PAIRED_FRACTION * min(len(images), len(masks))):
        return Match({}, "")
    return Match(found, f"{image_prefix}*{image_suffix} with {mask_prefix}*{mask_suffix}")


def _fold_name(name: str) -> str:
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _strip_image_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(_fold_name(name))
    return stem if suffix in IMAGE_SUFFIXES | SAMPLE_SUFFIXES else stem + suffix


def _match_unique(
    images: Sequence[str], masks: Sequence[str], image_key: Callable[[str], object], mask_key: Callable[[str], object]
) -> dict[str, str]:
    """Image name -> mask name for equal keys; nothing if a shared key is ambiguous."""
    image_groups, mask_groups = defaultdict[object, list[str]](list), defaultdict[object, list[str]](list)
    for name in images:
        image_groups[image_key(name)].append(name)
    for name in masks:
        mask_groups[mask_key(name)].append(name)
    shared = image_groups.keys() & mask_groups.keys()
    if any(len(image_groups[key]) > 1 or len(mask_groups[key]) > 1 for key in shared):
        return {}
    return {image_groups[key][0]: mask_groups[key][0] for key in shared}


def _match_by_key(
    images: Sequence[str], masks: Sequence[str], matched: dict[str, str], key: Callable[[str], str]
) -> dict[str, str]:
    """Match the names of images and masks that are not yet `matched` and have the same `key`: image name -> mask name.

    Raises: DataError if a key is ambiguous.
    """
    image_groups, mask_groups = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for names, used, groups in ((images, matched.keys(), image_groups), (masks, set(matched.values()), mask_groups)):
        for name in names:
            if name not in used:
                groups[key(name)].append(name)
    found = {}
    for shared in sorted(image_groups.keys() & mask_groups.keys()):
        image_names, mask_names = image_groups[shared], mask_groups[shared]
        if len(image_names) > 1 or len(mask_names) > 1:
            several = image_names if len(image_names) > 1 else mask_names
            other = mask_names[0] if len(image_names) > 1 else image_names[0]
            raise DataError(f"{several[0]} and {several[1]} both match {other}; give each pair its own name.")
        found[image_names[0]] = mask_names[0]
    return found
