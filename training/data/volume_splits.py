"""The splits and patients of volumes: from a table `splits.csv`, from folders, or from names."""

import re
from pathlib import Path, PurePosixPath

from models.errors import DataError, quoted
from training.data.listing import Entry
from training.data.recordings import find_split_table
from training.data.tree import FileTree

# The patient in a name: sub-01_ses-2, patient001_frame01. A bare number is the whole name.
_PATIENT = re.compile(r"(?:patient|subject|subj|sub|pat)[-_ ]?\d+", re.IGNORECASE)


def assign_cases(tree: FileTree, entries: list[Entry]) -> tuple[list[Entry], tuple[Path, ...]]:
    """The entries with splits and patients, and the files that were read.

    Raises: DataError for a line of the table that names no case.
    """
    grouped = [entry._replace(group=entry.group or _patient(entry.name)) for entry in entries]
    table = find_split_table(tree)
    if table is None:
        return grouped, ()
    by_name = {entry.name.lower(): index for index, entry in enumerate(grouped)}
    for number, (name, split, group) in enumerate(table.rows, 2):
        key = re.sub(r"\.(nii\.gz|nii|nrrd|tiff?|npy|npz)$", "", name.lower())
        index = by_name.get(key, by_name.get(PurePosixPath(key).name))
        if index is None:
            raise DataError(
                f"{table.file}, line {number}: there is no case {quoted(name)}; expected its name, without a suffix."
            )
        grouped[index] = grouped[index]._replace(
            split=split or grouped[index].split, group=group or grouped[index].group
        )
    return grouped, (table.file,)


def _patient(name: str) -> str:
    match = _PATIENT.match(PurePosixPath(name).name)
    return match[0].lower() if match else ""
