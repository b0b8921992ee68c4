"""Any folder of pictures and masks, paired by name. One of:

    images/NAME.jpg          masks/NAME.png            split by a hash of the name: 80% train, 10% val, 10% test
    images/train/NAME.jpg    masks/train/NAME.png      and val, test
    train/images/NAME.jpg    train/masks/NAME.png      and val, test

The folders may have another of their usual names (`IMAGES`, `MASKS`, `WORDS`), in small or capital letters. Where there
is a `train` and no `val`, a tenth of train is held out for it, by the same hash. A mask holds one label a pixel, 0..254, and 255
is void; or 0 and 255 alone; or the classes' colours. `classes.csv` names the classes (`classes.py`).
"""

from pathlib import Path

from models.errors import DataError
from training.data.class_file import read_classes
from training.data.dataset import SPLITS, Match, Pair, Samples, holds_picture, match
from training.data.splits import WORDS, Source, hashed_splits, source

IMAGES = ("images", "imgs", "image", "img")
MASKS = ("masks", "labels", "annotations", "mask", "label")


def recognises(root: Path) -> bool:
    """Whether there is an `images` beside a `masks`, at the top or in the folder of train.

    `labels` and `annotations` are also others' (YOLO, COCO), and must hold a picture.
    """
    folders = (root, *(path for path in _folders(root) if WORDS.get(path.name.lower()) == "train"))
    there = ((_named(folder, IMAGES), _named(folder, MASKS)) for folder in folders)
    return any(images and masks and (masks.name.lower() == MASKS[0] or holds_picture(masks)) for images, masks in there)


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
        chosen = source(root, there, split)
        images, found = there[chosen.name][0], match(*there[chosen.name])
    else:
        chosen = Source("", frozenset({split}))
        images, found = _images_and_masks(root)[0], _flat(root)
    if not found.pairs and found.unpaired and found.orphans:
        raise DataError(
            f"{root}: none of {len(found.unpaired):,} pictures has a mask of its name; there are {found.unpaired[0]} and "
            f"{found.orphans[0]}, for example. Give picture and mask one name."
        )
    kept = chosen.among(pair.name for pair in found.pairs)
    pairs = [pair for pair in found.pairs if pair.name in kept]
    check_holds(root, split, pairs, len(found.pairs))
    unpaired = tuple(path for path in found.unpaired if chosen.keeps(name_below(images, path)))
    return Samples(pairs, *read_classes(root), unpaired=unpaired, orphans=found.orphans)


def check_holds(root: Path, split: str, pairs: list[Pair], all_: int) -> None:
    """Raises: DataError where a split holds no pair; `all_`: the pairs that it was cut from."""
    if all_ == 1 and not pairs:
        raise DataError(
            f"{root} holds one picture with a mask; wanted are two or more, to train on and to validate on."
        )
    if not pairs:
        raise DataError(f"{root}: the split {split} holds no picture with a mask; add pictures or make split folders.")


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
        split = WORDS.get(folder.name.lower())
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
