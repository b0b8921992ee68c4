"""Which split a name speaks of, and where a split comes from that a data set does not name."""

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
    "testing": "test",
}  # fmt: skip
MIN_IMAGES_WITH_TEST = 10  # images: of fewer, a tenth is none


@dataclass(frozen=True)
class SplitSource:
    """Where to read a split: what the data set names, and which of its images."""

    name: str  # a split that the data set names; "" for all that it holds
    assigned_splits: frozenset[str] | None = None  # the hashed splits to keep; None for every image

    def contains(self, name: str) -> bool:
        """Whether an image of that name belongs to the split."""
        return self.assigned_splits is None or assign_split(name) in self.assigned_splits

    def select(self, names: Iterable[str]) -> frozenset[str]:
        """Of all the names, those of the split; few of them leave no split empty, as `hashed_splits` has it."""
        if self.assigned_splits is None:
            return frozenset(names)
        splits = assign_splits(names, train_val_only=self.name == "train")
        return frozenset(name for name, split in splits.items() if split in self.assigned_splits)


def split_from_name(name: str) -> str | None:
    """The split that the name of a file or folder speaks of: `instances_val2017` of val, `Train` of train."""
    found = (SPLIT_ALIASES.get(word) for word in re.findall("[a-z]+", name.lower()))
    return next((split for split in found if split), None)


def is_split_available(there: Collection[str], split: str, load: Callable[[], object] | None = None) -> bool:
    """Whether a data set that names the splits `there` has a split.

    Where it names none, the hash makes them, and of few images none is for test: `load` opens the split to see.
    """
    if there or split != "test" or load is None:
        return not there or split in there or (split == "val" and "train" in there)
    try:
        load()
    except DataError:
        return False
    return True


def resolve_split_source(root: Path, there: Collection[str], split: str) -> SplitSource:
    """Where a split is read from, as `formats/folder.py` has it: a tenth of train stands in for a val that is missing.

    Raises: DataError for a split that is not there.
    """
    if not there:
        return SplitSource("", frozenset({split}))
    listed = ", ".join(name for name in SPLITS if name in there)
    if "train" not in there:
        raise DataError(f"{root} has the splits {listed} but no train; name the training images' list or folder train.")
    if "val" not in there and split in ("train", "val"):
        return SplitSource("train", frozenset({"val"} if split == "val" else {"train", "test"}))
    if split not in there:
        raise DataError(f"{root} has no split {split}; it has {listed}.")
    return SplitSource(split)


def assign_split(name: str) -> str:
    """The split of an image, from its name alone, so that it stays where it is when others come and go."""
    place = _hash_fraction(name)
    return "test" if place < 0.1 else "val" if place < 0.2 else "train"


def assign_splits(names: Iterable[str], train_val_only: bool = False) -> dict[str, str]:
    """The split of each of some images: that of `hashed_split`, but that few images leave none empty.

    Of two or more, one is for train and one for val, of ten or more one is for test, and unless `halves` wants train and val
    alone. For that the hash's limits are moved past the nearest images, which alone may change their split as others come.
    """
    order = sorted(set(names), key=_hash_fraction)
    count = len(order)
    tests, below = (sum(_hash_fraction(name) < limit for name in order) for limit in (0.1, 0.2))
    if count < 2:
        return dict.fromkeys(order, "train")
    tests = min(max(tests, int(count >= MIN_IMAGES_WITH_TEST and not train_val_only)), count - 2)
    below = min(max(below, tests + 1), count - 1)
    return {name: "test" if index < tests else "val" if index < below else "train" for index, name in enumerate(order)}


def _hash_fraction(name: str) -> float:
    """0..1; the same for both Unicode forms of a name."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
