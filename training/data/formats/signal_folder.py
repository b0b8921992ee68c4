"""Signal files with a label file of the same name each: EDF, BDF, WAV, CSV, TSV, npy, npz, or a WFDB record.

    night1.edf     night1.events.csv     events: onset,offset,class; in seconds, or in samples where all are whole numbers
    audio1.wav     audio1.txt            a label track of Audacity
    log1.csv       log1.labels.csv       a label for every time step, a name or a number; also `.labels.npy`, uint8, 255: unlabelled
    signals/a.npy  labels/a.csv          the same in two folders

The columns of events may be named after their unit: `onset_s`, `onset_samples`. A column `lead` says which channel an event is of;
then each lead is a sample of its own. Time without an event is background. For splits see `recordings.py`.
"""

import re
from pathlib import Path, PurePosixPath

from models.errors import DataError
from models.readers import SIGNAL_SUFFIXES
from models.spec import ClassInfo, default_rgb
from training.data.class_file import read_dataset_classes
from training.data.formats import shapes
from training.data.listing import Evidence, Listing, check_unique
from training.data.recordings import Recording, assign_recordings, find_split_table
from training.data.splits import split_of_path
from training.data.text_file import text_encoding
from training.data.tracks import TrackReader, collect_names, leads_of
from training.data.tree import FileTree, join, suffix_of

# Endings of label files beside their signals, in the order of preference.
ENDINGS = (
    ".events.csv",
    ".events.tsv",
    ".labels.npy",
    ".labels.csv",
    ".labels.tsv",
    ".labels.txt",
    ".events.txt",
    ".txt",
)
SIGNAL_FOLDERS = ("signals", "recordings", "records", "waveforms", "audio")
LABEL_FOLDERS = ("labels", "events", "annotations")
LABEL_SUFFIXES = (".csv", ".tsv", ".npy", ".txt")
_AUDACITY_LINE = re.compile(r"\s*-?[\d.]+\t-?[\d.]+\t\S")


def detect(tree: FileTree) -> Evidence | None:
    """Whether signal files have label files of the same name."""
    recordings = _list_recordings(tree)
    labelled = [each for each in recordings if each.labels]
    if not labelled:
        return None
    example = labelled[0]
    summary = f"{len(labelled):,} recordings with a label file each, such as {example.file.name} with {example.labels[0][1].name}"
    return Evidence(len(labelled), summary, len(recordings) - len(labelled), strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    recordings = _list_recordings(tree)
    if not any(each.labels for each in recordings):
        raise DataError(
            f"{tree.root} has no signal file with a label file of the same name; expected NAME.edf with NAME.events.csv "
            "(onset,offset,class), or signals/NAME.csv with labels/NAME.csv."
        )
    recordings = [each._replace(labels=_by_lead(each.labels)) for each in recordings]
    entries, notes, files = assign_recordings(tree, recordings, find_split_table(tree))
    check_unique(entries)
    counts, highest, label_notes = collect_names([each.labels[0][1] for each in recordings if each.labels])
    named, _, class_files = read_dataset_classes(tree)
    classes, label_by_name = _classes(named, sorted(counts), highest)
    reader = TrackReader(label_by_name, shapes.digest(label_by_name))
    return Listing(
        tree.root, entries, classes, mask_reader=reader, notes=(*tree.notes, *notes, *label_notes[:1]), axes="T",
        files=(*files, *class_files),
    )  # fmt: skip


def _classes(named: list[ClassInfo], found: list[str], highest: int) -> tuple[list[ClassInfo], dict[str, int]]:
    """Names of events with the background first; of labels that are numbers, those of the class file, or `class0`, `class1` ..."""
    if highest < 0:
        return shapes.classes_with_background([entry.name for entry in named] or found)
    classes = named or [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(max(2, highest + 1))]
    return classes, {entry.name: label for label, entry in enumerate(classes)}


def _list_recordings(tree: FileTree) -> list[Recording]:
    """All signals, those without labels too, if some have labels."""
    found: list[Recording] = []
    for folder, names in tree.files.items():
        signals = [name for name in names if suffix_of(name) in SIGNAL_SUFFIXES and not _is_label(name)]
        if not signals:
            continue
        labels = _labels_beside(tree, folder, names) or _labels_in_other_folder(tree, folder, signals)
        if not labels:
            continue
        for name in signals:
            stem = PurePosixPath(name).stem
            path = join(folder, name)
            label = labels.get(stem)
            if label is None and suffix_of(name) in (".csv", ".tsv"):
                continue  # a list, a table of patients
            found.append(
                Recording(
                    join(_name_folder(folder), stem),
                    tree.path(path),
                    (("", tree.path(label)),) if label else (),
                    split_of_path(path),
                )
            )
    return found


def _is_label(name: str) -> bool:
    return name.lower().endswith(ENDINGS[:-1])


def _labels_beside(tree: FileTree, folder: str, names: list[str]) -> dict[str, str]:
    """The label file in the same folder, by the name of the signal."""
    found: dict[str, str] = {}
    for ending in ENDINGS:
        for name in names:
            if name.lower().endswith(ending) and (ending != ".txt" or _is_audacity(tree.path(join(folder, name)))):
                found.setdefault(name[: -len(ending)], join(folder, name))
    stems = {PurePosixPath(name).stem for name in names if suffix_of(name) in SIGNAL_SUFFIXES and not _is_label(name)}
    return {stem: path for stem, path in found.items() if stem in stems}


def _labels_in_other_folder(tree: FileTree, folder: str, signals: list[str]) -> dict[str, str]:
    """The label file in the folder `labels` beside `signals`, by the name of the signal; `signals/train` has `labels/train`."""
    parts = folder.split("/")
    place = next((index for index, part in enumerate(parts) if part.lower() in SIGNAL_FOLDERS), None)
    if place is None:
        return {}
    parent = "/".join(parts[:place])
    other = tree.find_folder(parent, LABEL_FOLDERS)
    if other is None:
        return {}
    below = "/".join([other, *parts[place + 1 :]])
    stems = {PurePosixPath(name).stem for name in signals}
    names = {
        PurePosixPath(name).stem: join(below, name)
        for name in tree.files.get(below, [])
        if suffix_of(name) in LABEL_SUFFIXES
    }
    return {stem: path for stem, path in names.items() if stem in stems}


def _name_folder(folder: str) -> str:
    """The folder in the names of recordings: without `signals`."""
    return "/".join(part for part in folder.split("/") if part.lower() not in SIGNAL_FOLDERS)


def _is_audacity(file: Path) -> bool:
    try:
        with file.open(encoding=text_encoding(file), errors="replace") as stream:
            return bool(_AUDACITY_LINE.match(stream.readline(1000)))
    except OSError:
        return False


def _by_lead(labels: tuple[tuple[str, Path], ...]) -> tuple[tuple[str, Path], ...]:
    """A label file for each lead that its events name."""
    return tuple((lead, path) for _, path in labels for lead in (leads_of(path) or ("",)))
