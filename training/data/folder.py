"""Any folder of pictures and masks, paired by name. One of:

    images/NAME.jpg          masks/NAME.png            split by a hash of the name: 80% train, 10% val, 10% test
    images/train/NAME.jpg    masks/train/NAME.png      and val, test
    train/images/NAME.jpg    train/masks/NAME.png      and val, test

Where there is a `train` and no `val`, a tenth of train is held out for it, by the same hash. A mask holds one label a
pixel, 0..254, and 255 is void; `classes.csv` names the classes, a line each (`name` or `name,r,g,b`).
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from models.errors import DataError
from training.data.samples import SPLITS, Samples, pair_up, read_classes


def recognises(root: Path) -> bool:
    """Whether there is an `images` beside a `masks`, at the top or in a split folder."""
    return any((folder / "images").is_dir() and (folder / "masks").is_dir() for folder in (root, root / "train"))


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a folder, or is cut from the pictures by the hash."""
    there = [name for name in SPLITS if _split_folders(root, name)]
    return not there or split in there or split == "val"


def load(root: Path, split: str) -> Samples:
    """Open one split. Raises: DataError where it holds nothing."""
    splits = {name: folders for name in SPLITS if (folders := _split_folders(root, name))}
    if not splits:
        pairs, unpaired = pair_up(root / "images", root / "masks")
        everything = Samples(pairs, read_classes(root, pairs), unpaired=unpaired)
        chosen = _held_out(everything, {split})
    else:
        if "train" not in splits:
            raise DataError(
                f"{root} has the splits {', '.join(splits)} but no train; name the training pictures' folder train."
            )
        source = "train" if split == "val" and "val" not in splits else split
        if source not in splits:
            raise DataError(f"{root} has no split {split}; it has {', '.join(splits)}.")
        pairs, unpaired = pair_up(*splits[source])
        # The classes must not depend on the split that is asked for.
        reference = pairs if source == "train" else pair_up(*splits["train"])[0]
        chosen = Samples(pairs, read_classes(root, reference), unpaired=unpaired)
        if "val" not in splits and source == "train":
            chosen = _held_out(chosen, {"val"} if split == "val" else {"train", "test"})
    if not chosen.pairs:
        raise DataError(f"{root}: the split {split} holds no picture with a mask; add pictures or make split folders.")
    return chosen


def hashed_split(name: str) -> str:
    """The split of a picture, from its name alone, so that it stays where it is when others come and go."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "test" if place < 0.1 else "val" if place < 0.2 else "train"


def _held_out(samples: Samples, splits: set[str]) -> Samples:
    pairs = [pair for pair in samples.pairs if hashed_split(pair.name) in splits]
    return replace(samples, pairs=pairs, unpaired=tuple(p for p in samples.unpaired if hashed_split(p.stem) in splits))


def _split_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    for images, masks in (
        (root / "images" / split, root / "masks" / split),
        (root / split / "images", root / split / "masks"),
    ):
        if images.is_dir():
            return images, masks
    return None
