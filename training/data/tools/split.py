"""`data split`: assigns images to train, val and test and writes a table; it copies no images.

Images of one group (a sequence, a patient) and images with equal pixels stay together. The classes, rarest first, are
distributed in proportion to the split fractions as far as the groups allow (iterative stratification, Sechidis et al. 2011).
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.atomic_write import write_atomically
from models.errors import ConfigError, DataError, printable, quoted
from training.data import SegmentationDataset, load_available_splits, resolve_format
from training.data.class_file import is_class_file
from training.data.dataset import SPLITS, Pair
from training.data.scan.label_stats import LabelLookup
from training.data.scan.scanner import SampleStats, scan_splits
from training.data.tree import TABLE_SUFFIXES

TABLE_NAME = "list.tsv"
MIN_FOLDS = 2
SIGNAL_FORMATS = ("wfdb", "signal-folder")  # whose table has a recording a line
SUPPORTED_FORMATS = ("folder", "table", "same-folder")  # formats whose masks mean the same when a table lists them


@dataclass(frozen=True)
class ImageGroup:
    """Images that stay together."""

    indices: tuple[int, ...]  # into the list of all pairs
    class_counts: NDArray[np.int64]  # C: number of its images with each class


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
    """Write the table `out` (.tsv, .csv), or `list.tsv` into the folder `out`; and the class file in the same folder.

    `val` and `test` are fractions of all images, 0 to 1. `group_pattern` is a regular expression, searched in the image name;
    its first group, or else its match, names the group of the image.
    Returns: the table, and the pairs by split.
    Raises: DataError; ConfigError for invalid fractions or an invalid pattern.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise ConfigError(
            f"val={val:g} and test={test:g} are invalid; expected fractions such as 0.1, below 1 in total."
        )
    table = out if out.suffix.lower() in TABLE_SUFFIXES else out / TABLE_NAME
    fractions = {
        name: fraction for name, fraction in (("train", 1 - val - test), ("val", val), ("test", test)) if fraction
    }
    assigned, class_file = _assign(root, [table], fractions, seed, group_pattern, data_format, progress)
    _copy_class_file(class_file, table)
    _write_table(table, assigned)
    return table, assigned


def split_folds(
    root: Path,
    out: Path,
    folds: int,
    test: float = 0.1,
    seed: int = 0,
    group_pattern: str | None = None,
    data_format: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[Path, dict[str, list[Pair]]]:
    """Write the tables `fold0.tsv`, `fold1.tsv` and so on into the folder `out`, for cross-validation.

    Each image that is not in test is in val of exactly one table, and in train of the others. Other arguments and errors as for
    `split_dataset`.
    Returns: the tables, with their pairs by split.
    """
    if folds < MIN_FOLDS or not 0 <= test < 1:
        raise ConfigError(
            f"folds={folds} and test={test:g} are invalid; expected {MIN_FOLDS} folds or more, and a fraction below 1."
        )
    if out.suffix.lower() in TABLE_SUFFIXES:
        raise ConfigError(f"{out} is one table, but {folds} folds need a folder for theirs.")
    tables = [out / f"fold{fold}.tsv" for fold in range(folds)]
    names = [f"fold {fold}" for fold in range(folds)]
    fractions = dict.fromkeys(names, (1 - test) / folds) | ({"test": test} if test else {})
    assigned, class_file = _assign(root, tables, fractions, seed, group_pattern, data_format, progress)
    written = {}
    for table, held_out in zip(tables, names, strict=True):
        train = [pair for name in names if name != held_out for pair in assigned[name]]
        splits = {"train": sorted(train, key=lambda pair: pair.name), "val": assigned[held_out]}
        written[table] = splits | ({"test": assigned["test"]} if test else {})
        _copy_class_file(class_file, table)
        _write_table(table, written[table])
    return written


def _assign(
    root: Path,
    tables: list[Path],
    fractions: dict[str, float],
    seed: int,
    group_pattern: str | None,
    data_format: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[Pair]], Path | None]:
    """The pairs of each split, sorted by name, and the class file. Raises: DataError, ConfigError."""
    existing = next((table for table in tables if table.exists()), None)
    if existing:
        raise DataError(f"{existing} already exists; choose another name, or delete it first.")
    format_name = resolve_format(root, data_format)
    if format_name in SIGNAL_FORMATS:
        if format_name == "signal-folder" and any(table.parent.resolve() != root.resolve() for table in tables):
            raise DataError(f"The table of these recordings must be in their folder: give {root / 'splits.csv'}.")
        return _assign_recordings(root, fractions, seed, group_pattern, data_format), None
    if format_name not in SUPPORTED_FORMATS:
        raise DataError(
            f"{root} has the format {format_name}, whose masks cannot be listed in a table. Convert it first with "
            f"`maskserve data remap {root} OUT`, and split OUT."
        )
    opened = load_available_splits(root, SPLITS, data_format)
    pairs = [pair for dataset in opened.values() for pair in dataset.pairs]
    all_stats = [stats for split_stats in scan_splits(opened, progress).values() for stats in split_stats]
    groups = _build_groups(pairs, all_stats, opened["train"], group_pattern)
    if len(groups) < len(fractions):
        fewer = ", or fewer folds" if len(tables) > 1 else ""
        raise DataError(
            f"{root}: {len(pairs)} images in {len(groups)} groups cannot fill {len(fractions)} splits; "
            f"add images, or use smaller groups{fewer}."
        )
    assigned = stratified_split(groups, fractions, seed)
    class_file = next((file for file in opened["train"].files if is_class_file(file.name)), None)
    return {
        name: sorted((pairs[index] for group in assigned[name] for index in group.indices), key=lambda pair: pair.name)
        for name in fractions
    }, class_file


def _assign_recordings(
    root: Path, fractions: dict[str, float], seed: int, group_pattern: str | None, data_format: str
) -> dict[str, list[Pair]]:
    """The recordings of each split, one pair each; patients stay together. Raises: DataError, ConfigError."""
    opened = load_available_splits(root, SPLITS, data_format)
    by_file = {pair.image: pair for dataset in opened.values() for pair in dataset.pairs}
    by_group: dict[str, list[Pair]] = defaultdict(list)
    for pair in by_file.values():
        recording = replace(pair, name=pair.name.removesuffix(f"/{pair.lead}") if pair.lead else pair.name)
        group = _group_key(recording.name, group_pattern) or pair.group or recording.name
        by_group[group].append(replace(recording, group=group))
    if len(by_group) < len(fractions):
        raise DataError(f"{root}: {len(by_group)} patients cannot fill {len(fractions)} splits; add recordings.")
    pairs = [pair for group in sorted(by_group) for pair in by_group[group]]
    groups, start = [], 0
    for group in sorted(by_group):
        indices = tuple(range(start, start + len(by_group[group])))
        start += len(indices)
        groups.append(ImageGroup(indices, np.full(1, len(indices), np.int64)))
    assigned = stratified_split(groups, fractions, seed)
    return {
        name: sorted((pairs[index] for group in assigned[name] for index in group.indices), key=lambda pair: pair.name)
        for name in fractions
    }


def _build_groups(
    pairs: list[Pair], all_stats: list[SampleStats], dataset: SegmentationDataset, pattern: str | None
) -> list[ImageGroup]:
    """Groups by name, merged if they share an image; sorted by their first name."""
    parents = list(range(len(pairs)))  # union-find

    def find_root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_index: dict[tuple[str, str], int] = {}
    for index, (pair, stats) in enumerate(zip(pairs, all_stats, strict=True)):
        for key in (("group", _group_key(pair.name, pattern)), ("pixels", stats.digest)):
            if key[1]:
                parents[find_root(index)] = find_root(first_index.setdefault(key, index))
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(pairs)):
        members[find_root(index)].append(index)
    lookup = LabelLookup(dataset.mask_encoding, len(dataset.classes))
    has_class = np.zeros((len(pairs), len(dataset.classes)), np.int64)
    for index, stats in enumerate(all_stats):
        labels = lookup(stats).present_labels
        has_class[index, labels[labels < has_class.shape[1]]] = 1
    groups = [ImageGroup(tuple(indices), has_class[indices].sum(axis=0)) for indices in members.values()]
    return sorted(groups, key=lambda group: pairs[group.indices[0]].name)


def _group_key(name: str, pattern: str | None) -> str:
    """Raises: ConfigError if the pattern is invalid, or does not match the name."""
    if pattern is None:
        return ""
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise ConfigError(f"--group {quoted(pattern)} is not a valid regular expression ({error}).") from error
    if not found:
        raise ConfigError(
            f"--group {quoted(pattern)} does not match the image name {quoted(name)}; it must match every name."
        )
    return found.group(1 if found.re.groups else 0) or ""


def stratified_split(groups: list[ImageGroup], fractions: dict[str, float], seed: int) -> dict[str, list[ImageGroup]]:
    """The groups of each split, with its fraction of the images and of the images with each class; no split is empty."""
    order = np.random.default_rng(seed).permutation(len(groups))
    remaining = sorted((groups[index] for index in order), key=lambda group: -len(group.indices))
    names = list(fractions)
    fraction = np.array([fractions[name] for name in names])
    images = fraction * sum(len(group.indices) for group in groups)  # S: images that a split still needs
    classes = fraction[:, None] * np.sum([group.class_counts for group in groups], axis=0)  # S x C: the same, by class
    assigned: dict[str, list[ImageGroup]] = {name: [] for name in names}
    while remaining:
        counts = np.sum([group.class_counts for group in remaining], axis=0)
        present = np.flatnonzero(counts)
        rarest = int(present[np.argmin(counts[present])]) if len(present) else None
        current = [group for group in remaining if rarest is None or group.class_counts[rarest]]
        remaining = [group for group in remaining if rarest is not None and not group.class_counts[rarest]]
        for position, group in enumerate(current):
            need = [(0.0 if rarest is None else classes[s, rarest], images[s]) for s in range(len(names))]
            # The last groups with a class go to splits that lack it: whole groups overshoot the fractions.
            lacking = [
                s for s in range(len(names)) if not any(_has_class(other, rarest) for other in assigned[names[s]])
            ]
            is_last_chance = 0 < len(current) - position <= len(lacking)
            s = max(lacking if is_last_chance else range(len(names)), key=need.__getitem__)
            assigned[names[s]].append(group)
            images[s] -= len(group.indices)
            classes[s] -= group.class_counts
    for name in names:
        if not assigned[name]:
            largest = max(assigned.values(), key=len)
            assigned[name].append(largest.pop(min(range(len(largest)), key=lambda i: len(largest[i].indices))))
    return assigned


def _has_class(group: ImageGroup, label: int | None) -> bool:
    return label is None or bool(group.class_counts[label])


def _copy_class_file(source: Path | None, table: Path) -> None:
    """Copy the class file into the folder of the table. Raises: DataError if there is a different one."""
    if source is None:
        return
    target = table.parent / source.name
    if target.exists() and target.samefile(source):
        return
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise DataError(f"{target} has other classes than {source}; write the table to another folder.")
    write_atomically(target, source.read_bytes())


def _write_table(table: Path, pairs_by_split: dict[str, list[Pair]]) -> None:
    """Raises: DataError for a path that a table in UTF-8, of one line per image, cannot hold."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if table.suffix.lower() == ".csv" else "\t", lineterminator="\n")
    is_signal = any(pair.group for pairs in pairs_by_split.values() for pair in pairs)
    writer.writerow(("record", "split", "patient") if is_signal else ("split", "image", "mask"))
    for split, pairs in pairs_by_split.items():
        for pair in pairs:
            files = (pair.image,) if is_signal else (pair.image, pair.mask)
            paths = [Path(os.path.relpath(path, table.parent)).as_posix() for path in files]
            for path in paths:
                if printable(path) != path or len(path.splitlines()) > 1 or "\\" in path:
                    raise DataError(
                        f"A table cannot hold the path {quoted(path)}: it has a line break, a backslash or bytes that are "
                        "not UTF-8. Rename the file."
                    )
            writer.writerow((paths[0], split, pair.group) if is_signal else (split, *paths))
    write_atomically(table, text.getvalue().encode())
