"""The images of a data set with their masks and splits, and what is common to all formats: choosing the images of a split."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from models.errors import DataError, printable
from models.spec import ClassInfo
from training.data.dataset import SPLITS, Pair, SegmentationDataset, read_pair_mask
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding, RawMask
from training.data.splits import HELD_OUT, HELD_OUT_SIGNALS, SplitSource, assign_splits, resolve_split_source


@dataclass(frozen=True)
class Evidence:
    """Why a folder looks like a format: `recognition.py` chooses the format that explains the most images."""

    images: int  # images that have a mask when read this way
    summary: str  # what was found, for `data inspect`: "8 images in images/ with masks in masks/"
    left_over: int = 0  # images and masks of these folders without a partner
    # 0: folder names; 1: names of files that fit only this format; 2: a file that only this format has (`data.yaml`).
    strength: int = 0  # the strongest evidence wins, whatever the number of images


class DatasetSource(Protocol):
    """An opened data set, whose splits are loaded one at a time."""

    def has_split(self, split: str) -> bool:
        """Whether it has `train`, `val` or `test`, even one with a wrong layout."""

    def load(self, split: str) -> SegmentationDataset:
        """Open one split. Raises: DataError if it is missing, empty or wrong."""


class Entry(NamedTuple):
    """One image; without a split if the hash of its name assigns it."""

    name: str  # unique in the data set
    image: Path
    mask: Path | None
    split: str = ""
    group: str = ""  # what stays in one split, such as a patient; empty for the name
    lead: str = ""  # of a recording, the channel that is labelled; empty for all
    further_channels: tuple[Path, ...] = ()  # of a volume, the files of its other channels


@dataclass(frozen=True)
class Listing:
    """A `DatasetSource` that knows all images."""

    root: Path
    entries: list[Entry]
    classes: list[ClassInfo]  # empty if they are inferred from the masks
    mask_encoding: MaskEncoding = IDENTITY_ENCODING
    mask_reader: Callable[[Pair], RawMask] = read_pair_mask
    unmatched_masks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()  # the other files that were read: classes, lists, annotations
    axes: str = "HW"
    channels: tuple[str, ...] = ()  # of volumes, whose files do not name them

    def has_split(self, split: str) -> bool:
        """Whether an image has the split, or the hash assigns it one."""
        existing = self._splits_on_disk()
        if not existing:
            keys = (entry.group or entry.name for entry in self.entries if entry.mask)
            return split in assign_splits(keys, held_out=self._held_out).values()
        groups = {pair.group or pair.name for pair in self._paired("train")}
        return split in existing or (split == "val" and "train" in existing and len(groups) > 1)

    def load(self, split: str) -> SegmentationDataset:
        """Open one split. Raises: DataError."""
        existing = self._splits_on_disk()
        if split not in existing and (images := sum(entry.split == split for entry in self.entries)):
            raise DataError(
                f"{self.root}: the split {split} has no image with a mask, but {images:,} images; add their masks."
            )
        source = resolve_split_source(self.root, existing, split) if existing else SplitSource("", frozenset({split}))
        candidates = self._paired(source.name)
        selected = source.select((pair.group or pair.name for pair in candidates), self._held_out)
        chosen = (pair for pair in candidates if (pair.group or pair.name) in selected)
        pairs = sorted(chosen, key=lambda pair: pair.name)
        self._check_not_empty(split, pairs, len(candidates), split in existing)
        return SegmentationDataset(
            pairs,
            self.classes,
            self.mask_encoding,
            self.mask_reader,
            tuple(
                entry.image
                for entry in self.entries
                if not entry.mask
                and entry.split == source.name
                and source.contains(entry.group or entry.name, self._held_out)
            ),
            self.unmatched_masks,
            (*self.notes, *self._split_notes(existing)),
            self.files,
            axes=self.axes,
            channels=self.channels,
        )

    @property
    def _held_out(self) -> float:
        """The fraction of val, and of test: recordings come from few patients, so that a tenth of them would say little."""
        return HELD_OUT_SIGNALS if self.axes == "T" else HELD_OUT

    def _paired(self, split: str) -> list[Pair]:
        return [
            Pair(
                printable(entry.name),
                entry.image,
                entry.mask,
                printable(entry.group),
                entry.lead,
                entry.further_channels,
            )
            for entry in self.entries
            if entry.mask and entry.split == split
        ]

    def _splits_on_disk(self) -> list[str]:
        """The splits of the entries; a test split without any mask is none, because Kaggle's and others' have no masks."""
        found = {entry.split for entry in self.entries} - {""}
        if "test" in found and not any(entry.mask for entry in self.entries if entry.split == "test"):
            found.remove("test")
        return [split for split in SPLITS if split in found]

    def _split_notes(self, existing: Iterable[str]) -> list[str]:
        notes = []
        without_masks = [entry for entry in self.entries if entry.split == "test"]
        if without_masks and "test" not in existing:
            notes.append(
                f"test has {len(without_masks):,} images and no masks, such as {without_masks[0].image}; it is left out."
            )
        unassigned = [entry for entry in self.entries if not entry.split]
        if existing and unassigned:
            notes.append(
                f"{len(unassigned):,} images are in no split, such as {unassigned[0].image}; they are left out. "
                "Move them into the folder of a split, or add them to its list."
            )
        return notes

    def _check_not_empty(self, split: str, pairs: list[Pair], total: int, on_disk: bool) -> None:
        """Check that a split has a pair, out of the `total` pairs that it was selected from. Raises: DataError."""
        if pairs:
            return
        if total == 1:
            raise DataError(
                f"{self.root} has one image with a mask; expected at least two, for training and validation."
            )
        if on_disk or not total:
            raise DataError(
                f"{self.root}: the split {split} has no image with a mask; add images, or create split folders."
            )
        given = [name for name in ("val", "train") if self.has_split(name)]
        raise DataError(
            f"{self.root}: {total} images without split folders give no image to the split {split}; "
            f"with 10 or more images there is one. Use {' or '.join(given)} instead, such as `--split {given[0]}`."
        )


def check_unique(entries: list[Entry]) -> None:
    """Raises: DataError if two images have the same name."""
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name, entry)
        if other is not entry:
            raise DataError(
                f"{other.image} and {entry.image} have the same name; rename one, so that each mask has one image."
            )
