"""Which split a name speaks of, and where a split comes from that a data set does not name."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from training.data.dataset import SPLITS

WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
FEWEST_WITH_TEST = 10  # pictures: of fewer, a tenth is none


@dataclass(frozen=True)
class Source:
    """Where to read a split: what the data set names, and which of its pictures."""

    name: str  # a split that the data set names; "" for all that it holds
    kept: frozenset[str] | None = None  # the hashed splits to keep; None for every picture

    def keeps(self, name: str) -> bool:
        """Whether a picture of that name belongs to the split."""
        return self.kept is None or hashed_split(name) in self.kept

    def among(self, names: Iterable[str]) -> frozenset[str]:
        """Of all the names, those of the split; few of them leave no split empty, as `hashed_splits` has it."""
        if self.kept is None:
            return frozenset(names)
        splits = hashed_splits(names, halves=self.name == "train")
        return frozenset(name for name, split in splits.items() if split in self.kept)


def spoken_of(name: str) -> str | None:
    """The split that the name of a file or folder speaks of: `instances_val2017` of val, `Train` of train."""
    found = (WORDS.get(word) for word in re.findall("[a-z]+", name.lower()))
    return next((split for split in found if split), None)


def offers(there: Collection[str], split: str, load: Callable[[], object] | None = None) -> bool:
    """Whether a data set that names the splits `there` has a split.

    Where it names none, the hash makes them, and of few pictures none is for test: `load` opens the split to see.
    """
    if there or split != "test" or load is None:
        return not there or split in there or (split == "val" and "train" in there)
    try:
        load()
    except DataError:
        return False
    return True


def source(root: Path, there: Collection[str], split: str) -> Source:
    """Where a split is read from, as `formats/folder.py` has it: a tenth of train stands in for a val that is missing.

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
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
