"""The recordings of a data set of signals: their splits and groups, from a table, from lists or from folders.

A table `splits.csv` has a recording a line, with its split and, if recordings share a patient, the group:

    record,split,patient
    patient001/s0010,train,1

Paths are relative to the table, and may lead out of its folder. Without a table the splits are those of lists (`train.txt`) or
folders; else a hash of the group assigns them, 70% to train and 15% to val and test each. Windows of one recording never part.
"""

import csv
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from models.errors import DataError, quoted
from training.data.listing import Entry
from training.data.split_lists import apply_split_lists, read_lines
from training.data.splits import SPLIT_ALIASES
from training.data.text_file import text_encoding
from training.data.tree import TABLE_SUFFIXES, FileTree, suffix_of

RECORD_COLUMNS = ("record", "recording", "signal", "file", "filename", "name", "path")
SPLIT_COLUMNS, GROUP_COLUMNS = ("split", "set", "fold"), ("group", "patient", "patient_id", "subject", "subject_id")
# The patient in a name: sub-01_task, patient001, S001R03, p12-3. A bare number is the whole name (record 100).
_PATIENT = re.compile(r"(?:patient|subject|subj|sub|pat|p|s)[-_ ]?\d+", re.IGNORECASE)


MAX_TABLES, TABLE_NAMES = 64, ("split", "record", "list", "fold", "patient", "subject")


class Recording(NamedTuple):
    """A recording and its label files, by lead; the lead "" means all."""

    name: str  # unique: its path without the suffix
    file: Path
    labels: tuple[tuple[str, Path], ...] = ()
    split: str = ""
    group: str = ""


class SplitTable(NamedTuple):
    """A table of recordings with their splits."""

    file: Path
    rows: tuple[tuple[str, str, str], ...]  # (recording, split, group)


def find_split_table(tree: FileTree) -> SplitTable | None:
    """The table of the splits at the top of a data set. Raises: DataError for an unknown split."""
    tables = [name for name in tree.files[""] if suffix_of(name) in TABLE_SUFFIXES]
    if len(tables) > MAX_TABLES:  # they are the recordings
        tables = [name for name in tables if name.lower().startswith(TABLE_NAMES)]
    for name in tables:
        file = tree.path(name)
        try:
            with file.open(encoding=text_encoding(file)) as stream:
                header = stream.readline(1000)
        except (OSError, UnicodeDecodeError):
            continue
        delimiter = next((mark for mark in "\t;" if mark in header), ",")
        columns = [cell.strip().strip('"').lower() for cell in header.split(delimiter)]
        record, split, group = (
            next((columns.index(word) for word in words if word in columns), None)
            for words in (RECORD_COLUMNS, SPLIT_COLUMNS, GROUP_COLUMNS)
        )
        if record is not None and (split is not None or group is not None) and "mask" not in columns:
            return SplitTable(file, _read_rows(file, delimiter, record, split, group))
    return None


def _read_rows(
    file: Path, delimiter: str, record: int, split: int | None, group: int | None
) -> tuple[tuple[str, str, str], ...]:
    rows = []
    for number, line in enumerate(read_lines(file)[1:], 2):
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))] + [""] * 8
        found = SPLIT_ALIASES.get(cells[split].lower(), "") if split is not None else ""
        if split is not None and cells[split] and not found:
            raise DataError(
                f"{file}, line {number}: unknown split {quoted(cells[split])}; choose from train, val, test."
            )
        rows.append((cells[record].replace("\\", "/"), found, cells[group] if group is not None else ""))
    return tuple(rows)


def assign_recordings(
    tree: FileTree, recordings: list[Recording], table: SplitTable | None
) -> tuple[list[Entry], tuple[str, ...], tuple[Path, ...]]:
    """The entries of a listing, one for each label file, with splits and groups; notes; and the files that were read.

    Raises: DataError for a line of the table or a list that names no recording.
    """
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    grouped = [
        recording._replace(group=recording.group or group)
        for recording, group in zip(recordings, _groups(recordings), strict=True)
    ]
    if table is not None:
        grouped, files = _apply_table(grouped, table), (table.file,)
    if not any(recording.split for recording in grouped):
        listed = apply_split_lists(tree, [Entry(each.name, each.file, each.file, each.split) for each in grouped])
        notes, files = listed.notes, (*files, *listed.files)
        grouped = [each._replace(split=entry.split) for each, entry in zip(grouped, listed.entries, strict=True)]
    entries = []
    for each in grouped:
        for lead, labels in each.labels or (("", None),):
            name = f"{each.name}/{lead}" if lead else each.name
            entries.append(Entry(name, each.file, labels, each.split, each.group, lead))
    return entries, notes, files


def _groups(recordings: list[Recording]) -> list[str]:
    """The patient of each recording: in the names of its folders, or in its own; else it is one of its own."""
    found = [_patient(each.name) for each in recordings]
    if len(set(found)) == 1:  # one folder that only looks like a patient
        found = [_patient(PurePosixPath(each.name).name) for each in recordings]
    if len(set(found)) == 1:
        found = [""] * len(recordings)
    return [patient or each.name for patient, each in zip(found, recordings, strict=True)]


def _patient(path: str) -> str:
    """The first part of a path that begins as the name of a patient; empty if none does."""
    matches = (_PATIENT.match(part) for part in PurePosixPath(path).parts)
    return next((match[0].lower() for match in matches if match), "")


def _apply_table(recordings: list[Recording], table: SplitTable) -> list[Recording]:
    by_name = {each.name.lower(): index for index, each in enumerate(recordings)}
    by_base: dict[str, list[int]] = {}
    for index, each in enumerate(recordings):
        by_base.setdefault(PurePosixPath(each.name).name.lower(), []).append(index)
    result = list(recordings)
    for number, (name, split, group) in enumerate(table.rows, 2):
        key = _without_suffix(name).lower()
        bases = by_base.get(PurePosixPath(key).name, [])
        place = by_name.get(key, bases[0] if len(bases) == 1 else None)
        if place is None:
            raise DataError(
                f"{table.file}, line {number}: there is no labelled recording {quoted(name)}; write its path from the table on."
            )
        old = result[place]
        result[place] = old._replace(split=split or old.split, group=group or old.group)
    return result


def _without_suffix(name: str) -> str:
    """A recording's name without a suffix of letters: record 1.5 keeps its name."""
    return re.sub(r"\.[A-Za-z]\w{1,3}$", "", name)
