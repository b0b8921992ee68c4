"""WFDB records with annotation files: PhysioNet's data sets of ECG and other signals.

    1.hea  1.dat  1.i  1.ii  1.v1    an annotation file for each lead, named after it (LUDB): each lead is a sample of its own
    100.hea  100.dat  100.atr        one for all leads (MIT-BIH, QT): the record is one sample

Classes are the symbols between `(` and `)`: p, N and t are P, QRS and T; for others see `models/readers/annotations.py`. Where the
intervals are waves of an ECG, what lies before the first and after the last one is unlabelled. For splits see `recordings.py`.
"""

import os
from collections import Counter
from pathlib import Path, PurePosixPath

from models.errors import DataError, MaskserveError
from models.readers.annotations import is_annotation_file
from models.readers.wfdb import HEADER_SUFFIX, parse_header
from training.data.class_file import read_dataset_classes
from training.data.formats import shapes
from training.data.listing import Evidence, Listing
from training.data.recordings import Recording, SplitTable, assign_recordings, find_split_table
from training.data.splits import split_of_path
from training.data.tracks import ECG_CLASSES, TrackReader, collect_names
from training.data.tree import FileTree, join, suffix_of

SAMPLED_HEADERS = 8
OTHER_SUFFIXES = frozenset({
    HEADER_SUFFIX, ".dat", ".mat", ".txt", ".csv", ".tsv", ".json", ".xml", ".edf", ".pdf", ".png", ".jpg", ".jpeg", ".svg", ".md",
    ".html", ".zip", ".gz", ".npy", ".npz", ".xws", ".sha256", ".md5",
})  # fmt: skip


def detect(tree: FileTree) -> Evidence | None:
    """Whether there are headers with annotation files beside them."""
    headers = tree.files_below("", (HEADER_SUFFIX,))
    table = None if headers else _outside_table(tree)
    if not headers and table is None:
        return None
    recordings = _from_table(table) if table else _list_records(tree, headers)
    labelled = [each for each in recordings if each.labels]
    if not labelled:
        return None
    files = sum(len(each.labels) for each in labelled)
    kinds = " ".join(dict.fromkeys(path.suffix for each in labelled[:SAMPLED_HEADERS] for _, path in each.labels))
    summary = f"{len(labelled):,} records ({HEADER_SUFFIX}) with {files:,} annotation files ({kinds})"
    return Evidence(files, summary, len(recordings) - len(labelled), strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    headers = tree.files_below("", (HEADER_SUFFIX,))
    table = find_split_table(tree)
    recordings = _list_records(tree, headers) if headers else _from_table(table) if table else []
    if not any(each.labels for each in recordings):
        raise DataError(
            f"{tree.root} has no WFDB record with an annotation file; expected NAME.hea, NAME.dat and NAME.atr, or an annotation "
            "file for each lead, such as NAME.ii."
        )
    entries, split_notes, files = assign_recordings(tree, recordings, table)
    counts, _, notes = collect_names([entry.mask for entry in entries if entry.mask])
    named, _, class_files = read_dataset_classes(tree)
    order = [*ECG_CLASSES, *sorted(counts)]
    classes, label_by_name = shapes.classes_with_background(
        [entry.name for entry in named] or [name for name in dict.fromkeys(order) if name in counts]
    )
    reader = TrackReader(label_by_name, shapes.digest(label_by_name))
    first = notes[0] if notes else ""
    shown = (
        (first if len(notes) < 2 else f"{first} The same holds for {len(notes) - 1:,} other files.",) if notes else ()
    )
    return Listing(
        tree.root, entries, classes, mask_reader=reader, notes=(*tree.notes, *split_notes, *shown), axes="T",
        files=(*files, *class_files, *(path for each in recordings for path in _signal_files(each.file))),
    )  # fmt: skip


def _list_records(tree: FileTree, headers: list[str]) -> list[Recording]:
    """All records, those without annotations too."""
    found = []
    by_folder: dict[str, dict[str, list[str]]] = {}
    leads = _sample_leads([tree.path(path) for path in headers])
    for path in headers:
        folder = str(PurePosixPath(path).parent) if "/" in path else ""
        if folder not in by_folder:
            by_folder[folder] = _by_stem(tree.files[folder])
        name = path[: -len(HEADER_SUFFIX)]
        labels = [tree.path(join(folder, file)) for file in by_folder[folder][PurePosixPath(name).name]]
        found.append(
            Recording(
                name, tree.path(path), tuple((_lead_of(file, leads), file) for file in labels), split_of_path(path)
            )
        )
    return _choose_annotators(found)


def _outside_table(tree: FileTree) -> SplitTable | None:
    """A table of records that lie outside of its folder."""
    table = find_split_table(tree)
    if table is None or not table.rows:
        return None
    first = _header_of(table, table.rows[0][0])
    return table if first.is_file() else None


def _header_of(table: SplitTable, name: str) -> Path:
    return Path(os.path.normpath(table.file.parent / f"{name.removesuffix(HEADER_SUFFIX)}{HEADER_SUFFIX}"))


def _from_table(table: SplitTable) -> list[Recording]:
    """The records of a table, from other folders. Raises: DataError for one that does not exist."""
    headers = [_header_of(table, name) for name, _, _ in table.rows]
    leads = _sample_leads(headers)
    by_folder: dict[Path, dict[str, list[str]]] = {}
    found = []
    for number, (header, (name, split, group)) in enumerate(zip(headers, table.rows, strict=True), 2):
        if not header.is_file():
            raise DataError(
                f"{table.file}, line {number}: {header} does not exist; write the record's path, relative to the table."
            )
        if header.parent not in by_folder:
            by_folder[header.parent] = _by_stem(sorted(os.listdir(header.parent)))
        labels = [header.parent / file for file in by_folder[header.parent][header.stem]]
        stem = "/".join(
            part for part in PurePosixPath(name.removesuffix(HEADER_SUFFIX)).parts if part not in ("..", "/", ".")
        )
        found.append(Recording(stem, header, tuple((_lead_of(file, leads), file) for file in labels), split, group))
    return _choose_annotators(found)


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    """The files that may be annotations, by the name of their record."""
    found: dict[str, list[str]] = {name[: -len(HEADER_SUFFIX)]: [] for name in names if name.endswith(HEADER_SUFFIX)}
    for name in names:
        suffix = suffix_of(name)
        stem = name[: len(name) - len(suffix)]
        if suffix and suffix not in OTHER_SUFFIXES and stem in found:
            found[stem].append(name)
    return found


def _sample_leads(headers: list[Path]) -> dict[str, str]:
    """The names of leads in a few headers, by their name in lower case."""
    found: dict[str, str] = {}
    for header in headers[:: max(1, len(headers) // SAMPLED_HEADERS)][:SAMPLED_HEADERS]:
        try:
            found |= {line.name.lower(): line.name for line in parse_header(header.read_bytes()).signals if line.name}
        except (MaskserveError, OSError):  # the lint reports it
            continue
    return found


def _lead_of(file: Path, leads: dict[str, str]) -> str:
    return leads.get(file.suffix[1:].lower(), "")


def _choose_annotators(recordings: list[Recording]) -> list[Recording]:
    """Without label files that are none; of several for all leads the most frequent kind, and of leads all."""
    kinds = Counter(path.suffix for each in recordings for lead, path in each.labels if not lead)
    by_lead = any(lead for each in recordings for lead, _ in each.labels)
    chosen = (
        next((kind for kind, _ in kinds.most_common() if _is_annotation(recordings, kind)), "") if not by_lead else ""
    )
    return [
        each._replace(
            labels=tuple((lead, path) for lead, path in each.labels if (lead if by_lead else path.suffix == chosen))
        )
        for each in recordings
    ]


def _is_annotation(recordings: list[Recording], suffix: str) -> bool:
    """Whether the first file of this suffix has the format of annotations."""
    file = next(path for each in recordings for _, path in each.labels if path.suffix == suffix)
    try:
        return is_annotation_file(file.read_bytes())
    except OSError:
        return False


def _signal_files(header: Path) -> list[Path]:
    """The signal files beside a header, by name: reading all headers would take long."""
    file = header.with_suffix(".dat")
    return [file] if file.is_file() else []
