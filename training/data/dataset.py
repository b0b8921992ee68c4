"""The result of every data set format: pairs of image and mask, and the classes in the masks."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES, RGB, Labels, read_image
from models.spec import ClassInfo
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding, RawMask, read_raw_mask

SPLITS = ("train", "val", "test")
MASK_NAME_ENDINGS = re.compile(r"[_-](mask|masks|label|labels|seg|segmentation|gt|annotation)$")


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `name` is unique in the data set."""

    name: str
    image: Path
    mask: Path  # the file that the mask is read from; for COCO, a JSON file that holds many


def read_pair_mask(pair: Pair) -> RawMask:
    """Read the mask file of a pair."""
    return read_raw_mask(pair.mask)


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a data set."""

    pairs: list[Pair]
    classes: list[ClassInfo]  # empty if the format does not name them (`infer_classes.py`)
    mask_encoding: MaskEncoding = IDENTITY_ENCODING
    mask_reader: Callable[[Pair], RawMask] = read_pair_mask  # formats without mask images rasterize here
    unmatched_images: tuple[Path, ...] = ()  # images without a mask, for the lint
    unmatched_masks: tuple[Path, ...] = ()  # masks without an image, for the lint
    notes: tuple[str, ...] = ()  # assumptions made while reading, for the lint to warn about

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> RGB:
        """RGB uint8 H x W x 3. Raises: ImageError."""
        return read_image(self.pairs[index].image)

    def evenly_spaced_indices(self, max_count: int) -> list[int]:
        """Up to `max_count` indices, spread evenly over the split."""
        indices: list[int] = np.unique(np.linspace(0, len(self) - 1, max_count).astype(int)).tolist()
        return indices

    def raw_mask(self, index: int) -> RawMask:
        """The mask as stored, before `mask_encoding` is applied. Raises: DataError, ImageError."""
        return self.mask_reader(self.pairs[index])

    def labels(self, index: int) -> Labels:
        """uint8 H x W: class indices, 255 for ignored pixels. Raises: DataError, ImageError."""
        return self.mask_encoding.decode(self.raw_mask(index), self.pairs[index].mask)


class MatchedFiles(NamedTuple):
    """The files of an image folder and a mask folder, matched by name."""

    pairs: list[Pair]  # sorted by name
    unmatched_images: tuple[Path, ...]  # images without a mask
    unmatched_masks: tuple[Path, ...]  # masks without an image


def match_files(images: Path, masks: Path) -> MatchedFiles:
    """Pair images and masks by their path below the two folders, without the suffix.

    If no mask has the exact name, names that differ only in case or Unicode form match (macOS writes NFD, cameras
    IMG_1.JPG). If nothing matches at all, masks may be named NAME_mask, NAME-label and so on (`MASK_NAME_ENDINGS`).
    Raises: DataError if two files share a name, or there is no image.
    """
    image_files, mask_files = _files_by_name(images), _files_by_name(masks)
    if not image_files:
        raise DataError(f"{images} has no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    mask_by_image = {name: name for name in image_files if name in mask_files}
    mask_by_image |= _match_by_key(image_files, mask_files, mask_by_image, _fold_name)
    if not mask_by_image:
        mask_by_image = _match_by_key(
            image_files, mask_files, mask_by_image, lambda name: MASK_NAME_ENDINGS.sub("", _fold_name(name))
        )
    matched_masks = set(mask_by_image.values())
    return MatchedFiles(
        [
            Pair(name, path, mask_files[mask_by_image[name]])
            for name, path in image_files.items()
            if name in mask_by_image
        ],
        tuple(path for name, path in image_files.items() if name not in mask_by_image),
        tuple(path for name, path in mask_files.items() if name not in matched_masks),
    )


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _match_by_key(
    images: dict[str, Path], masks: dict[str, Path], matched: dict[str, str], key: Callable[[str], str]
) -> dict[str, str]:
    """Match the names of images and masks that are not yet `matched` and have the same `key`: image name -> mask name.

    Raises: DataError if a key is ambiguous.
    """
    image_groups, mask_groups = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for files, used, groups in ((images, matched.keys(), image_groups), (masks, set(matched.values()), mask_groups)):
        for name in files:
            if name not in used:
                groups[key(name)].append(name)
    found = {}
    for shared in sorted(image_groups.keys() & mask_groups.keys()):
        image_names, mask_names = image_groups[shared], mask_groups[shared]
        if len(image_names) > 1 or len(mask_names) > 1:
            several = [images[name] for name in image_names] if len(image_names) > 1 else [masks[n] for n in mask_names]
            other = masks[mask_names[0]] if len(image_names) > 1 else images[image_names[0]]
            raise DataError(f"{several[0]} and {several[1]} both match {other}; give each pair its own name.")
        found[image_names[0]] = mask_names[0]
    return found


def contains_image(folder: Path) -> bool:
    """Whether there is an image anywhere below a folder."""
    return any(_is_image(path) for path in folder.rglob("*"))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _files_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"The folder {folder} is missing; expected images there.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not _is_image(path):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{found[name]} and {path} have the same name; rename one, so that each mask has one image."
            )
        found[name] = path
    return found
