"""What every data set format gives: pairs of picture and mask, and the classes that the masks speak of."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.errors import DataError
from models.imaging.decode import RGB, SUFFIXES, Labels, read
from models.spec import ClassInfo
from training.data.mask_decoding import AS_WRITTEN, Meaning, Values, read_values

SPLITS = ("train", "val", "test")
ENDINGS = re.compile(r"[_-](mask|masks|label|labels|seg|segmentation|gt|annotation)$")  # of mask names


@dataclass(frozen=True)
class Pair:
    """A picture and its mask; `name` is unique in the data set."""

    name: str
    image: Path
    mask: Path  # the file that the mask is read from; COCO's is a JSON file that holds many


def read_pair(pair: Pair) -> Values:
    """What the mask file of a pair holds."""
    return read_values(pair.mask)


@dataclass(frozen=True)
class Samples:
    """One split of a data set."""

    pairs: list[Pair]
    classes: list[ClassInfo]  # none where a format leaves them to be found in the masks (`meaning.py`)
    meaning: Meaning = AS_WRITTEN
    draw: Callable[[Pair], Values] = read_pair  # a format whose masks are no pictures draws them
    unpaired: tuple[Path, ...] = ()  # pictures without a mask, which the lint reports
    orphans: tuple[Path, ...] = ()  # masks without a picture; the same
    notes: tuple[str, ...] = ()  # what was understood, and may have been meant otherwise: the lint warns of it

    def __len__(self) -> int:
        return len(self.pairs)

    def picture(self, index: int) -> RGB:
        """RGB uint8 H x W x 3."""
        return read(self.pairs[index].image)

    def spread(self, most: int) -> list[int]:
        """The places of so many pictures at most, evenly over the split."""
        places: list[int] = np.unique(np.linspace(0, len(self) - 1, most).astype(int)).tolist()
        return places

    def values(self, index: int) -> Values:
        """What the mask holds, before it has a meaning."""
        return self.draw(self.pairs[index])

    def labels(self, index: int) -> Labels:
        """uint8 H x W: class indices, and 255 for void. Raises: DataError, ImageError."""
        return self.meaning.labels(self.values(index), self.pairs[index].mask)


def pair_up(images: Path, masks: Path) -> tuple[list[Pair], tuple[Path, ...]]:
    """As `match`, without the masks that have no picture."""
    found = match(images, masks)
    return found.pairs, found.unpaired


class Match(NamedTuple):
    """What two folders have for each other."""

    pairs: list[Pair]  # sorted by name
    unpaired: tuple[Path, ...]  # pictures without a mask
    orphans: tuple[Path, ...]  # masks without a picture


def match(images: Path, masks: Path) -> Match:
    """Pair pictures and masks by their path below the two folders, less the suffix.

    Names that differ in case or Unicode form alone are one (a Mac writes NFD, a camera IMG_1.JPG) where no other fits better.
    Where nothing pairs at all, masks may be called NAME_mask, NAME-label and so on (`ENDINGS`).
    Raises: DataError where two files go by the same name, or where there is no picture at all.
    """
    pictures, labels = _by_name(images), _by_name(masks)
    if not pictures:
        raise DataError(f"{images} holds no picture; wanted are files ending in {', '.join(sorted(SUFFIXES))}.")
    chosen = {name: name for name in pictures if name in labels}
    chosen |= _alike(pictures, labels, chosen, _folded)
    if not chosen:
        chosen = _alike(pictures, labels, chosen, lambda name: ENDINGS.sub("", _folded(name)))
    pairs = [Pair(name, path, labels[chosen[name]]) for name, path in pictures.items() if name in chosen]
    taken = set(chosen.values())
    return Match(
        pairs,
        tuple(path for name, path in pictures.items() if name not in chosen),
        tuple(path for name, path in labels.items() if name not in taken),
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _alike(
    pictures: dict[str, Path], labels: dict[str, Path], chosen: dict[str, str], form: Callable[[str], str]
) -> dict[str, str]:
    """Of those that are not chosen yet, the pictures' names with the mask's of the same form.

    Raises: DataError where several could be meant.
    """
    taken, groups = set(chosen.values()), (defaultdict[str, list[str]](list), defaultdict[str, list[str]](list))
    for names, done, group in ((pictures, chosen, groups[0]), (labels, taken, groups[1])):
        for name in names:
            if name not in done:
                group[form(name)].append(name)
    found = {}
    for key in sorted(groups[0].keys() & groups[1].keys()):
        mine, theirs = groups[0][key], groups[1][key]
        if len(mine) > 1 or len(theirs) > 1:
            two = [pictures[name] for name in mine[:2]] if len(mine) > 1 else [labels[name] for name in theirs[:2]]
            other = labels[theirs[0]] if len(mine) > 1 else pictures[mine[0]]
            raise DataError(f"{two[0]} and {two[1]} could both belong to {other}; give each pair one name.")
        found[mine[0]] = theirs[0]
    return found


def holds_picture(folder: Path) -> bool:
    """Whether a picture lies anywhere below a folder."""
    return any(_is_picture(path) for path in folder.rglob("*"))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; wanted is a folder of pictures there.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not _is_picture(path):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{found[name]} and {path} go by the same name; rename one so that each mask has one picture."
            )
        found[name] = path
    return found
