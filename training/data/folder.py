"""Any folder of pictures and masks, paired by name. One of:

    images/NAME.jpg          masks/NAME.png            split by a hash of the name: 80% train, 10% val, 10% test
    images/train/NAME.jpg    masks/train/NAME.png      and val, test
    train/images/NAME.jpg    train/masks/NAME.png      and val, test

The folders may have another of their usual names (`IMAGES`, `MASKS`, `SPLIT_NAMES`), in small or capital letters. Where there
is a `train` and no `val`, a tenth of train is held out for it, by the same hash. A mask holds one label a pixel, 0..254, and 255
is void; or 0 and 255 alone; or the classes' colours. `classes.csv` names the classes (`classes.py`).
"""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from models.errors import DataError
from training.data.classes import read_classes
from training.data.samples import SPLIT_NAMES, SPLITS, Match, Pair, Samples, match

# `annotations` and `SegmentationClass` are others' too (COCO, VOC), which are asked first.
IMAGES = ("images", "imgs", "image", "img", "JPEGImages")
MASKS = ("masks", "labels", "annotations", "mask", "label", "SegmentationClass")
FEWEST_WITH_TEST = 10  # pictures: of fewer, a tenth is none


def recognises(root: Path) -> bool:
    """Whether there is an `images` beside a `masks`, at the top or in the folder of train."""
    folders = (root, *(path for path in _folders(root) if SPLIT_NAMES.get(path.name.lower()) == "train"))
    return any(_named(folder, IMAGES) and _named(folder, MASKS) for folder in folders)


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a folder, or gets a picture by the hash."""
    there = _split_folders(root)
    if not there:
        return split in hashed_splits(pair.name for pair in _flat(root).pairs).values()
    return split in there or (split == "val" and "train" in there and len(match(*there["train"]).pairs) > 1)


def load(root: Path, split: str) -> Samples:
    """Open one split. Raises: DataError where it holds nothing."""
    there = _split_folders(root)
    if there:
        name, kept = source(root, there, split)
        images, found = there[name][0], match(*there[name])
    else:
        name, kept = "", frozenset({split})
        images, found = _images_and_masks(root)[0], _flat(root)
    splits = hashed_splits((pair.name for pair in found.pairs), halves=name == "train")
    pairs = [pair for pair in found.pairs if kept is None or splits[pair.name] in kept]
    unpaired, orphans = found.unpaired, found.orphans
    if kept:
        unpaired = tuple(path for path in unpaired if hashed_split(name_below(images, path)) in kept)
    check_holds(root, split, pairs, len(found.pairs))
    classes, meaning = read_classes(root)
    return Samples(pairs, classes, meaning, unpaired=unpaired, orphans=orphans)


def source(root: Path, there: Collection[str], split: str) -> tuple[str, frozenset[str] | None]:
    """Of the splits that are there, the one to read a split from; and which hashed parts of it, None for all.

    Raises: DataError where there is none.
    """
    listed = ", ".join(name for name in SPLITS if name in there)
    if "train" not in there:
        raise DataError(f"{root} has the splits {listed} but no train; name the training pictures' folder train.")
    if "val" not in there and split in ("train", "val"):
        return "train", frozenset({"val"} if split == "val" else {"train", "test"})
    if split not in there:
        raise DataError(f"{root} has no split {split}; it has {listed}.")
    return split, None


def check_holds(root: Path, split: str, pairs: list[Pair], all_: int) -> None:
    """Raises: DataError where a split holds no pair; `all_`: the pairs that it was cut from."""
    if all_ == 1 and not pairs:
        raise DataError(
            f"{root} holds one picture with a mask; wanted are two or more, to train on and to validate on."
        )
    if not pairs:
        raise DataError(f"{root}: the split {split} holds no picture with a mask; add pictures or make split folders.")


def hashed_split(name: str) -> str:
    """The split of a picture, from its name alone, so that it stays where it is when others come and go."""
    place = _place(name)
    return "test" if place < 0.1 else "val" if place < 0.2 else "train"


def hashed_splits(names: Iterable[str], halves: bool = False) -> dict[str, str]:
    """The split of each of some pictures: that of `hashed_split`, but that few pictures leave none empty.

    Of two or more, one is for train and one for val, of ten or more one is for test, and unless `halves` wants train and val
    alone. For that the hash's limits are moved past the nearest pictures, which alone may change their split as others come.
    """
    order = sorted(set(names), key=_place)
    count = len(order)
    tests, below = (sum(_place(name) < limit for name in order) for limit in (0.1, 0.2))
    if count < 2:
        return dict.fromkeys(order, "train")
    tests = min(max(tests, int(count >= FEWEST_WITH_TEST and not halves)), count - 2)
    below = min(max(below, tests + 1), count - 1)
    return {name: "test" if index < tests else "val" if index < below else "train" for index, name in enumerate(order)}


def _place(name: str) -> float:
    """0..1; the same for both Unicode forms of a name."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def name_below(folder: Path, path: Path) -> str:
    """The name that a picture goes by in a folder."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _flat(root: Path) -> Match:
    return match(*_images_and_masks(root))


def _images_and_masks(folder: Path) -> tuple[Path, Path]:
    """The two folders; by their first names where they are not there, for `match` to miss them."""
    return _named(folder, IMAGES) or folder / IMAGES[0], _named(folder, MASKS) or folder / MASKS[0]


def _split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Of each split that has a folder, the pictures' and the masks'. Raises: DataError where two claim one split."""
    images, masks = _images_and_masks(root)
    found: dict[str, tuple[Path, Path]] = {}
    for folder in (*_folders(images), *_folders(root)):
        split = SPLIT_NAMES.get(folder.name.lower())
        inside = folder.parent == images
        if split is None or not (inside or _named(folder, IMAGES)):
            continue
        if split in found and (found[split][0].parent == images) == inside:
            raise DataError(f"{found[split][0]} and {folder} both claim to be {split}; leave one.")
        if split not in found:
            found[split] = (
                (folder, _named(masks, (folder.name,)) or masks / folder.name) if inside else _images_and_masks(folder)
            )
    return {split: found[split] for split in SPLITS if split in found}


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in a folder that goes by the first of some names."""
    there = {path.name.lower(): path for path in _folders(folder)}
    return next((there[name.lower()] for name in names if name.lower() in there), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
