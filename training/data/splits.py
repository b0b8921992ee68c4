"""Split names and, for data sets without splits, the assignment of images to splits by a hash of their names."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from training.data.dataset import SPLITS

SPLIT_ALIASES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
    "testing": "test", "trn": "train", "tst": "test",
}  # fmt: skip
YEAR = re.compile(r"[_\- ]?(19|20)\d\d$")  # at the end of COCO's folders: train2017
HELD_OUT, HELD_OUT_SIGNALS = 0.1, 0.15  # fractions of val, and of test
MIN_IMAGES_WITH_TEST = 10  # with fewer images, a test split of a tenth would be empty


@dataclass(frozen=True)
class SplitSource:
    """Where a split comes from: a split on disk, or a part of one."""

    name: str  # the split on disk; "" if the data set has no splits
    assigned_splits: frozenset[str] | None = None  # the hash-assigned splits to keep; None for all images

    def contains(self, name: str, held_out: float = HELD_OUT) -> bool:
        """Whether the image of this name belongs to the split."""
        return self.assigned_splits is None or assign_split(name, held_out) in self.assigned_splits

    def select(self, names: Iterable[str], held_out: float = HELD_OUT) -> frozenset[str]:
        """The names, out of all names, that belong to the split. Small data sets get no empty split (`assign_splits`)."""
        if self.assigned_splits is None:
            return frozenset(names)
        splits = assign_splits(names, self.name == "train", held_out)
        return frozenset(name for name, split in splits.items() if split in self.assigned_splits)


def split_of_folder(name: str) -> str:
    """The split that a folder is named after, ignoring case and a year: train for `Training` and `train2017`; "" for none."""
    return SPLIT_ALIASES.get(YEAR.sub("", name.lower()), "")


def split_of_path(path: str) -> str:
    """The split that the first such folder on the way to a file is named after; "" for none."""
    return next((split for part in path.split("/")[:-1] if (split := split_of_folder(part))), "")


def split_from_name(name: str) -> str | None:
    """The split in the name of a file or folder: val for `instances_val2017`, train for `Train`."""
    found = (SPLIT_ALIASES.get(word) for word in re.findall("[a-z]+", name.lower()))
    return next((split for split in found if split), None)


def is_split_available(existing: Collection[str], split: str, load: Callable[[], object] | None = None) -> bool:
    """Whether a data set with the `existing` splits on disk has a split.

    Without splits on disk the hash assigns them. A small data set may then have no test split: `load` opens it to find out.
    """
    if existing or split != "test" or load is None:
        return not existing or split in existing or (split == "val" and "train" in existing)
    try:
        load()
    except DataError:
        return False
    return True


def resolve_split_source(root: Path, existing: Collection[str], split: str) -> SplitSource:
    """Where to read a split, given the `existing` splits on disk. If val is missing, it is a tenth of train.

    Raises: DataError if the data set has no such split.
    """
    if not existing:
        return SplitSource("", frozenset({split}))
    listed = ", ".join(name for name in SPLITS if name in existing)
    if "train" not in existing and split not in existing:
        raise DataError(
            f"{root} has the splits {listed} but no train; name the list or folder of training images train."
        )
    if "val" not in existing and split in ("train", "val"):
        return SplitSource("train", frozenset({"val"} if split == "val" else {"train", "test"}))
    if split not in existing:
        raise DataError(f"{root} has no split {split}; it has {listed}.")
    return SplitSource(split)


def assign_split(name: str, held_out: float = HELD_OUT) -> str:
    """The split of an image, from its name alone, so that it keeps its split when other images are added or removed."""
    fraction = _hash_fraction(name)
    return "test" if fraction < held_out else "val" if fraction < 2 * held_out else "train"


def assign_splits(names: Iterable[str], train_val_only: bool = False, held_out: float = HELD_OUT) -> dict[str, str]:
    """The split of each image: that of `assign_split`, except that small data sets get no empty split.

    Two or more images give at least one to train and one to val; ten or more give one to test, unless `train_val_only`.
    To do so, the thresholds of the hash move past the nearest images; only these may change their split when images are added.
    """
    order = sorted(set(names), key=_hash_fraction)
    count = len(order)
    test_end, val_end = (sum(_hash_fraction(name) < limit for name in order) for limit in (held_out, 2 * held_out))
    if count < 2:
        return dict.fromkeys(order, "train")
    test_end = min(max(test_end, int(count >= MIN_IMAGES_WITH_TEST and not train_val_only)), count - 2)
    val_end = min(max(val_end, test_end + 1), count - 1)
    return {
        name: "test" if index < test_end else "val" if index < val_end else "train" for index, name in enumerate(order)
    }


def _hash_fraction(name: str) -> float:
    """A hash of the name in [0, 1), the same for both Unicode forms."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
