"""What every data set format gives: pairs of image and mask, and the classes that the masks speak of."""

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
MASK_NAME_ENDINGS = re.compile(r"[_-](mask|masks|label|labels|seg|segmentation|gt|annotation)$")  # of mask names


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `name` is unique in the data set."""

    name: str
    image: Path
    mask: Path  # the file that the mask is read from; COCO's is a JSON file that holds many


def read_pair_mask(pair: Pair) -> RawMask:
    """What the mask file of a pair holds."""
    return read_raw_mask(pair.mask)


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a data set."""

    pairs: list[Pair]
    classes: list[ClassInfo]  # none where a format leaves them to be found in the masks (`meaning.py`)
    mask_encoding: MaskEncoding = IDENTITY_ENCODING
    mask_reader: Callable[[Pair], RawMask] = read_pair_mask  # a format whose masks are no images draws them
    unmatched_images: tuple[Path, ...] = ()  # images without a mask, which the lint reports
    unmatched_masks: tuple[Path, ...] = ()  # masks without an image; the same
    notes: tuple[str, ...] = ()  # what was understood, and may have been meant otherwise: the lint warns of it

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> RGB:
        """RGB uint8 H x W x 3."""
        return read_image(self.pairs[index].image)

    def evenly_spaced_indices(self, most: int) -> list[int]:
        """The places of so many images at most, evenly over the split."""
        places: list[int] = np.unique(np.linspace(0, len(self) - 1, most).astype(int)).tolist()
        return places

    def raw_mask(self, index: int) -> RawMask:
        """What the mask holds, before it has a meaning."""
        return self.mask_reader(self.pairs[index])

    def labels(self, index: int) -> Labels:
        """uint8 H x W: class indices, and 255 for void. Raises: DataError, ImageError."""
        return self.mask_encoding.decode(self.raw_mask(index), self.pairs[index].mask)


def match_images(images: Path, masks: Path) -> tuple[list[Pair], tuple[Path, ...]]:
    """As `match`, without the masks that have no image."""
    found = match_files(images, masks)
    return found.pairs, found.unmatched_images


class MatchedFiles(NamedTuple):
    """What two folders have for each other."""

    pairs: list[Pair]  # sorted by name
    unmatched_images: tuple[Path, ...]  # images without a mask
    unmatched_masks: tuple[Path, ...]  # masks without an image


def match_files(images: Path, masks: Path) -> MatchedFiles:
    """Pair images and masks by their path below the two folders, less the suffix.

    Names that differ in case or Unicode form alone are one (a Mac writes NFD, a camera IMG_1.JPG) where no other fits better.
    Where nothing pairs at all, masks may be called NAME_mask, NAME-label and so on (`ENDINGS`).
    Raises: DataError where two files go by the same name, or where there is no image at all.
    """
    image_files, mask_files = _files_by_name(images), _files_by_name(masks)
    if not image_files:
        raise DataError(f"{images} holds no image; wanted are files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    chosen = {name: name for name in image_files if name in mask_files}
    chosen |= _match_by_form(image_files, mask_files, chosen, _fold_name)
    if not chosen:
        chosen = _match_by_form(
            image_files, mask_files, chosen, lambda name: MASK_NAME_ENDINGS.sub("", _fold_name(name))
        )
    pairs = [Pair(name, path, mask_files[chosen[name]]) for name, path in image_files.items() if name in chosen]
    taken = set(chosen.values())
    return MatchedFiles(
        pairs,
        tuple(path for name, path in image_files.items() if name not in chosen),
        tuple(path for name, path in mask_files.items() if name not in taken),
    )


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _match_by_form(
    images: dict[str, Path], labels: dict[str, Path], chosen: dict[str, str], form: Callable[[str], str]
) -> dict[str, str]:
    """Of those that are not chosen yet, the images' names with the mask's of the same form.

    Raises: DataError where several could be meant.
    """
    taken, groups = set(chosen.values()), (defaultdict[str, list[str]](list), defaultdict[str, list[str]](list))
    for names, done, group in ((images, chosen, groups[0]), (labels, taken, groups[1])):
        for name in names:
            if name not in done:
                group[form(name)].append(name)
    found = {}
    for key in sorted(groups[0].keys() & groups[1].keys()):
        mine, theirs = groups[0][key], groups[1][key]
        if len(mine) > 1 or len(theirs) > 1:
            two = [images[name] for name in mine[:2]] if len(mine) > 1 else [labels[name] for name in theirs[:2]]
            other = labels[theirs[0]] if len(mine) > 1 else images[mine[0]]
            raise DataError(f"{two[0]} and {two[1]} could both belong to {other}; give each pair one name.")
        found[mine[0]] = theirs[0]
    return found


def holds_image(folder: Path) -> bool:
    """Whether an image lies anywhere below a folder."""
    return any(_is_image(path) for path in folder.rglob("*"))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _files_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; wanted is a folder of images there.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not _is_image(path):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{found[name]} and {path} go by the same name; rename one so that each mask has one image."
            )
        found[name] = path
    return found
