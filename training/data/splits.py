"""Which split a name speaks of, and where a split comes from that a data set does not name."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from training.data.folder import hashed_split
from training.data.samples import SPLITS

WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Source:
    """Where to read a split: what the data set names, and which of its pictures."""

    name: str  # a split that the data set names; "" for all that it holds
    kept: frozenset[str] | None = None  # the hashed splits to keep; None for every picture

    def keeps(self, name: str) -> bool:
        """Whether a picture of that name belongs to the split."""
        return self.kept is None or hashed_split(name) in self.kept


def spoken_of(name: str) -> str | None:
    """The split that the name of a file or folder speaks of: `instances_val2017` of val, `Train` of train."""
    found = (WORDS.get(word) for word in re.findall("[a-z]+", name.lower()))
    return next((split for split in found if split), None)


def offers(there: Collection[str], split: str) -> bool:
    """Whether a data set that names the splits `there` (none: the hash makes them) has a split."""
    return not there or split in there or (split == "val" and "train" in there)


def source(root: Path, there: Collection[str], split: str) -> Source:
    """Where a split is read from, as `training/data/folder.py` has it: a tenth of train stands in for a val that is missing.

    Raises: DataError for a split that is not there.
    """
    if not there:
        return Source("", frozenset({split}))
    listed = ", ".join(name for name in SPLITS if name in there)
    if "train" not in there:
        raise DataError(
            f"{root} has the splits {listed} but no train; name the training pictures' list or folder train."
        )
    if "val" not in there and split in ("train", "val"):
        return Source("train", frozenset({"val"} if split == "val" else {"train", "test"}))
    if split not in there:
        raise DataError(f"{root} has no split {split}; it has {listed}.")
    return Source(split)
