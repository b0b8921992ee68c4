"""What every data set format gives: pairs of picture and mask, and the classes that the masks speak of."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.errors import DataError, MaskserveError
from models.image import RGB, SUFFIXES, Labels, read, read_mask
from models.spec import VOID, ClassInfo, default_rgb
from training.data.meaning import AS_WRITTEN, Meaning, Values, read_values

SPLITS = ("train", "val", "test")


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
    notes: tuple[str, ...] = ()  # what was understood, and may have been meant otherwise: the lint warns of it

    def __len__(self) -> int:
        return len(self.pairs)

    def picture(self, index: int) -> RGB:
        """RGB uint8 H x W x 3."""
        return read(self.pairs[index].image)

    def values(self, index: int) -> Values:
        """What the mask holds, before it has a meaning."""
        return self.draw(self.pairs[index])

    def labels(self, index: int) -> Labels:
        """uint8 H x W: class indices, and 255 for void. Raises: DataError, ImageError."""
        return self.meaning.labels(self.values(index), self.pairs[index].mask)


def pair_up(images: Path, masks: Path) -> tuple[list[Pair], tuple[Path, ...]]:
    """Pair pictures and masks by their path below the two folders, less the suffix; sorted by name.

    Returns: the pairs, and the pictures that have no mask.
    Raises: DataError where two files go by the same name, or where there is no picture at all.
    """
    pictures, labels = _by_name(images), _by_name(masks)
    if not pictures:
        raise DataError(f"{images} holds no picture; wanted are files ending in {', '.join(sorted(SUFFIXES))}.")
    pairs = [Pair(name, path, labels[name]) for name, path in pictures.items() if name in labels]
    return pairs, tuple(path for name, path in pictures.items() if name not in labels)


def read_classes(root: Path, pairs: list[Pair]) -> list[ClassInfo]:
    """The classes from `classes.csv` (a line a class: `name` or `name,r,g,b`), or else numbered ones up to the highest
    label in the masks. Raises: DataError."""
    file = root / "classes.csv"
    if file.is_file():
        return parse_classes(file)
    highest = 0
    for pair in pairs:
        try:
            labels = read_mask(pair.mask)
        except MaskserveError:
            continue  # the lint will name it, with the others of its kind
        known = labels[labels != VOID]
        highest = max(highest, int(known.max()) if known.size else 0)
    if highest < 1:
        raise DataError(f"The masks of {root} hold one class alone; at least two are needed to tell pixels apart.")
    return [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(highest + 1)]


def parse_classes(file: Path) -> list[ClassInfo]:
    """The classes of a CSV file: a line each, `name` or `name,r,g,b` (0..255), in the order of their labels.

    Without colours they get VOC's. Raises: DataError.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if row and row[0].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: is no CSV in UTF-8 ({error}); save it as such.") from error
    if rows and [cell.lower() for cell in rows[0][:2]] in (["name"], ["name", "r"]):
        rows = rows[1:]
    classes = []
    for label, row in enumerate(rows):
        try:
            rgb = tuple(np.uint8(int(cell)).item() for cell in row[1:4]) if len(row) > 1 else default_rgb(label)
            classes.append(ClassInfo(name=row[0], rgb=rgb))
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{file}: {','.join(row)!r} is no class; wanted is `name` or `name,r,g,b` with 0..255."
            ) from error
    if len({entry.name for entry in classes}) < len(classes):
        raise DataError(f"{file} names a class twice; each class is one line of a name of its own.")
    if not 2 <= len(classes) <= 255:
        raise DataError(f"{file} names {len(classes)} classes; wanted are 2 to 255, a line each.")
    return classes


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; wanted is a folder of pictures there.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{found[name]} and {path} go by the same name; rename one so that each mask has one picture."
            )
        found[name] = path
    return found
