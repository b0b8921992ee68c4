"""`data split`: which images are to train on, to validate on and to test on, written as a table; nothing is copied.

Images of one group (a sequence, a patient) and images that are equal pixel by pixel stay together. The classes, the rarest
first, are dealt to the splits by the splits' shares, as far as the groups allow (iterative stratification, Sechidis et al. 2011).
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.atomic_write import write_atomically
from models.errors import ConfigError, DataError
from training.data import SegmentationDataset, has_split, load_splits, resolve_format
from training.data.class_file import CLASS_FILE
from training.data.dataset import SPLITS, Pair
from training.data.formats.csv_table import TABLE_SUFFIXES
from training.data.scan.label_stats import LabelLookup
from training.data.scan.scanner import SampleStats, scan_splits

TABLE_NAME = "list.tsv"
SUPPORTED_FORMATS = ("folder", "table")  # formats whose masks mean the same when a table names them


@dataclass(frozen=True)
class ImageGroup:
    """Images that stay together."""

    indices: tuple[int, ...]  # among all pairs
    class_counts: NDArray[np.int64]  # C: how many of them hold each class


def split_dataset(
    root: Path,
    out: Path,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    group_pattern: str | None = None,
    data_format: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, dict[str, list[Pair]]]:
    """Write the table `out` (.tsv, .csv), or `list.tsv` into the folder `out`; and the class file beside it.

    `val` and `test` are shares of all images, 0..1; `group` is a regular expression whose first group, found in an image's
    name, names the image's group.
    Returns: the table, and the pairs by split.
    Raises: DataError, ConfigError for shares or an expression that make no split.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise ConfigError(
            f"val={val:g} and test={test:g} leave no split; wanted are shares such as 0.1, below 1 together."
        )
    table = out if out.suffix.lower() in TABLE_SUFFIXES else out / TABLE_NAME
    if table.exists():
        raise DataError(f"{table} is there already; name another, or take that one away first.")
    name = resolve_format(root, data_format)
    if name not in SUPPORTED_FORMATS:
        raise DataError(
            f"{root} is laid out as {name}, whose masks a table cannot explain; write it as a folder first, "
            f"with `maskserve data remap {root} OUT`, and split that."
        )
    opened = load_splits(
        root, [each for each in SPLITS if each == "train" or has_split(root, each, data_format)], data_format
    )
    pairs = [pair for samples in opened.values() for pair in samples.pairs]
    facts = [each for split in scan_splits(opened, progress).values() for each in split]
    shares = {each: share for each, share in (("train", 1 - val - test), ("val", val), ("test", test)) if share}
    units = _build_groups(pairs, facts, opened["train"], group_pattern)
    if len(units) < len(shares):
        raise DataError(
            f"{root}: {len(pairs)} images in {len(units)} groups cannot fill {len(shares)} splits; "
            "add images, or group them otherwise."
        )
    dealt = stratified_split(units, shares, seed)
    chosen = {
        each: sorted((pairs[place] for unit in dealt[each] for place in unit.indices), key=lambda pair: pair.name)
        for each in shares
    }
    _copy_class_file(root, table)
    _write_table(table, chosen)
    return table, chosen


def _build_groups(
    pairs: list[Pair], facts: list[SampleStats], samples: SegmentationDataset, group: str | None
) -> list[ImageGroup]:
    """What stays together: groups by name, joined where they share an image."""
    parents = list(range(len(pairs)))

    def root_of(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    first: dict[tuple[str, str], int] = {}
    for place, (pair, each) in enumerate(zip(pairs, facts, strict=True)):
        for key in (("group", _group_key(pair.name, group)), ("pixels", each.digest)):
            if key[1]:
                parents[root_of(place)] = root_of(first.setdefault(key, place))
    together: dict[int, list[int]] = defaultdict(list)
    for place in range(len(pairs)):
        together[root_of(place)].append(place)
    labeller, held = (
        LabelLookup(samples.mask_encoding, len(samples.classes)),
        np.zeros((len(pairs), len(samples.classes)), np.int64),
    )
    for place, each in enumerate(facts):
        labels = labeller(each).present_labels
        held[place, labels[labels < held.shape[1]]] = 1
    units = [ImageGroup(tuple(places), held[places].sum(axis=0)) for places in together.values()]
    return sorted(units, key=lambda unit: pairs[unit.indices[0]].name)


def _group_key(name: str, expression: str | None) -> str:
    """Raises: ConfigError where the expression is none, or finds nothing in the name."""
    if expression is None:
        return ""
    try:
        found = re.search(expression, name)
    except re.error as error:
        raise ConfigError(f"--group {expression!r} is no regular expression ({error}).") from error
    if not found:
        raise ConfigError(f"--group {expression!r} finds nothing in the image name {name!r}; each needs its group.")
    return found.group(1 if found.re.groups else 0) or ""


def stratified_split(units: list[ImageGroup], shares: dict[str, float], seed: int) -> dict[str, list[ImageGroup]]:
    """The units of each split, so that it has its share of the images and of the images with each class; none is empty."""
    order = np.random.default_rng(seed).permutation(len(units))
    left = sorted((units[place] for place in order), key=lambda unit: -len(unit.places))
    names = list(shares)
    share = np.array([shares[name] for name in names])
    images = share * sum(len(unit.indices) for unit in units)  # S: those that a split still wants
    classes = share[:, None] * np.sum([unit.class_counts for unit in units], axis=0)  # S x C: the same, with each class
    dealt: dict[str, list[ImageGroup]] = {name: [] for name in names}
    while left:
        counts = np.sum([unit.holders for unit in left], axis=0)
        there = np.flatnonzero(counts)
        rarest = int(there[np.argmin(counts[there])]) if len(there) else None
        now = [unit for unit in left if rarest is None or unit.holders[rarest]]
        left = [unit for unit in left if rarest is not None and not unit.holders[rarest]]
        for place, unit in enumerate(now):
            wishes = [(0.0 if rarest is None else classes[s, rarest], images[s]) for s in range(len(names))]
            # The last units with a class go where there is none of it yet: whole groups overshoot their shares.
            lacking = [s for s in range(len(names)) if not any(_has_class(other, rarest) for other in dealt[names[s]])]
            s = max(lacking if 0 < len(now) - place <= len(lacking) else range(len(names)), key=wishes.__getitem__)
            dealt[names[s]].append(unit)
            images[s] -= len(unit.places)
            classes[s] -= unit.holders
    for name in names:
        if not dealt[name]:
            richest = max(dealt.values(), key=len)
            dealt[name].append(richest.pop(min(range(len(richest)), key=lambda place: len(richest[place].indices))))
    return dealt


def _has_class(unit: ImageGroup, label: int | None) -> bool:
    return label is None or bool(unit.class_counts[label])


def _copy_class_file(root: Path, table: Path) -> None:
    """The class file belongs beside the table. Raises: DataError where another lies there."""
    source = (root if root.is_dir() else root.parent) / CLASS_FILE
    target = table.parent / CLASS_FILE
    if not source.is_file() or (target.exists() and target.samefile(source)):
        return
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise DataError(f"{target} names other classes than {source}; write the table elsewhere.")
    write_atomically(target, source.read_bytes())


def _write_table(table: Path, chosen: dict[str, list[Pair]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if table.suffix.lower() == ".csv" else "\t", lineterminator="\n")
    writer.writerow(("split", "image", "mask"))
    for name, pairs in chosen.items():
        writer.writerows(
            (name, *(_relative_path(path, table.parent) for path in (pair.image, pair.mask))) for pair in pairs
        )
    write_atomically(table, text.getvalue().encode())


def _relative_path(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
