"""Cityscapes: `leftImg8bit/train/CITY/NAME_leftImg8bit.png`, `gtFine/train/CITY/NAME_gtFine_labelIds.png`; val, test.

The 19 classes that are evaluated, by the names, colours and ids of mcordts/cityscapesScripts, helpers/labels.py; the other
ids are void. `labelTrainIds` are read where every picture has them, as a data set that was made to be so is its maker's
choice of classes; or else `labelIds`. `gtCoarse` is read for a split that has no `gtFine`. The masks of test are dummies
without a class; where they hold none, there is no split test.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.errors import DataError, MaskserveError
from models.imaging.decode import SUFFIXES, read_mask
from models.spec import VOID, ClassInfo
from training.data.dataset import SPLITS, Pair, Samples
from training.data.mask_decoding import AS_WRITTEN, Meaning
from training.data.splits import offers, source

PICTURES = "leftImg8bit"
MASKS = ("gtFine", "gtCoarse")  # the first that a split has

CLASSES_BY_ID = {
    7: ClassInfo(name="road", rgb=(128, 64, 128)),
    8: ClassInfo(name="sidewalk", rgb=(244, 35, 232)),
    11: ClassInfo(name="building", rgb=(70, 70, 70)),
    12: ClassInfo(name="wall", rgb=(102, 102, 156)),
    13: ClassInfo(name="fence", rgb=(190, 153, 153)),
    17: ClassInfo(name="pole", rgb=(153, 153, 153)),
    19: ClassInfo(name="traffic light", rgb=(250, 170, 30)),
    20: ClassInfo(name="traffic sign", rgb=(220, 220, 0)),
    21: ClassInfo(name="vegetation", rgb=(107, 142, 35)),
    22: ClassInfo(name="terrain", rgb=(152, 251, 152)),
    23: ClassInfo(name="sky", rgb=(70, 130, 180)),
    24: ClassInfo(name="person", rgb=(220, 20, 60)),
    25: ClassInfo(name="rider", rgb=(255, 0, 0)),
    26: ClassInfo(name="car", rgb=(0, 0, 142)),
    27: ClassInfo(name="truck", rgb=(0, 0, 70)),
    28: ClassInfo(name="bus", rgb=(0, 60, 100)),
    31: ClassInfo(name="train", rgb=(0, 80, 100)),
    32: ClassInfo(name="motorcycle", rgb=(0, 0, 230)),
    33: ClassInfo(name="bicycle", rgb=(119, 11, 32)),
}
CLASSES = list(CLASSES_BY_ID.values())
HIGHEST = 33  # of the ids; the license plate's -1 is 255 in an 8-bit PNG
KINDS: dict[str, Sequence[int]] = {"labelTrainIds": range(len(CLASSES)), "labelIds": tuple(CLASSES_BY_ID)}
LABELS_BY_ID = dict.fromkeys(range(HIGHEST + 1), VOID) | {id: label for label, id in enumerate(CLASSES_BY_ID)}


def recognises(root: Path) -> bool:
    """Whether `leftImg8bit` lies beside `gtFine` or `gtCoarse`."""
    return (root / PICTURES).is_dir() and any((root / name).is_dir() for name in MASKS)


def has_split(root: Path, split: str) -> bool:
    """Whether the split has pictures and, if it is test, masks that hold a class."""
    splits = _splits(root)
    return bool(splits) and offers(splits, split)


def load(root: Path, split: str) -> Samples:
    """Open one split. Raises: DataError."""
    splits = _splits(root)
    if not splits:
        raise DataError(f"{root / PICTURES} has no folder train; wanted is {PICTURES}/train/CITY/NAME_{PICTURES}.png.")
    chosen = source(root, splits, split)
    # One kind for the whole data set: the meaning of a value must not depend on the split.
    every = [picture for name in splits for picture in _pictures(root, name)]
    kind = "labelTrainIds" if all(_mask(root, name, path, "labelTrainIds") for name, path in every) else "labelIds"
    masks = {name: (path, _mask(root, name, path, kind)) for name, path in _pictures(root, chosen.name)}
    mine = chosen.among(name for name, (_, mask) in masks.items() if mask)
    pairs = [Pair(name, path, mask) for name, (path, mask) in masks.items() if mask and name in mine]
    unpaired = [path for name, (path, mask) in masks.items() if not mask and chosen.keeps(name)]
    if not pairs:
        folders = " or ".join(str(root / masks / chosen.name) for masks in MASKS)
        raise DataError(f"{folders} holds no mask of a picture; wanted is CITY/NAME_gtFine_{kind}.png.")
    meaning = AS_WRITTEN if kind == "labelTrainIds" else Meaning(tuple(LABELS_BY_ID.items()))
    return Samples(pairs, CLASSES, meaning, unpaired=tuple(unpaired))


def _pictures(root: Path, split: str) -> list[tuple[str, Path]]:
    """By name, `CITY/NAME`, sorted."""
    folder = root / PICTURES / split
    found = (path for path in folder.rglob(f"*_{PICTURES}.*") if path.suffix.lower() in SUFFIXES)
    return sorted((path.relative_to(folder).as_posix().rsplit(f"_{PICTURES}", 1)[0], path) for path in found)


def _mask(root: Path, name: str, picture: Path, kind: str) -> Path | None:
    split = picture.relative_to(root / PICTURES).parts[0]
    masks = next((masks for masks in MASKS if (root / masks / split).is_dir()), MASKS[0])
    path = root / masks / split / f"{name}_{masks}_{kind}.png"
    return path if path.is_file() else None


def _splits(root: Path) -> list[str]:
    splits = [split for split in SPLITS if (root / PICTURES / split).is_dir()]
    return splits if "test" not in splits or _has_classes(root, "test") else splits[:-1]


def _has_classes(root: Path, split: str, most: int = 3) -> bool:
    """Whether one of the first masks of a split holds a class."""
    masks = [
        (path, kind)
        for name, picture in _pictures(root, split)
        for kind in KINDS
        if (path := _mask(root, name, picture, kind))
    ]
    return any(_has_class(path, KINDS[kind]) for path, kind in masks[: most * len(KINDS)])


def _has_class(mask: Path, ids: Sequence[int]) -> bool:
    try:
        return bool(np.isin(read_mask(mask), ids).any())
    except MaskserveError:
        return True  # the lint will name it
