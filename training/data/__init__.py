"""Data sets on disk. Each layout is one file in `formats/` and one line in `FORMATS`.

A format is a module with two functions:

    detect(tree) -> Evidence | None     what it would read of a folder, listed as a `FileTree`; None if nothing
    read(tree) -> DatasetSource         opens it; usually a `Listing` of all images with their masks and splits

A format leaves `classes` empty if its files do not name them; `infer_classes.py` then finds them in the training masks.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from models.errors import ConfigError, DataError, quoted
from models.spec import ClassInfo
from training.data.dataset import SPLITS, SegmentationDataset, merge_splits, read_pair_mask
from training.data.formats import (
    camvid,
    cityscapes,
    coco,
    csv_table,
    cvat_xml,
    folder,
    hugging_face,
    label_studio,
    label_studio_png,
    labelme,
    mask_parts,
    nnunet,
    nnunet_volumes,
    same_folder,
    signal_folder,
    supervisely,
    voc,
    volume_folder,
    wfdb_records,
    yolo,
)
from training.data.infer_classes import UnknownClassesError, infer_classes, mask_values_from_scan, sample_mask_values
from training.data.listing import Evidence
from training.data.recognition import Recognition, recognize
from training.data.scan.scanner import scan_split
from training.data.tree import list_tree

__all__ = [
    "FORMATS", "SegmentationDataset", "has_split", "load_all_splits", "load_available_splits", "load_split", "load_splits",
    "recognize_dataset", "resolve_format",
]  # fmt: skip

# Of formats that explain the same images equally well, the first is read.
FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "cityscapes": cityscapes,
    "coco": coco,
    "labelme": labelme,
    "label-studio": label_studio,
    "label-studio-png": label_studio_png,
    "cvat": cvat_xml,
    "yolo": yolo,
    "nnunet": nnunet,
    "supervisely": supervisely,
    "hugging-face": hugging_face,
    "camvid": camvid,
    "table": csv_table,
    "mask-parts": mask_parts,
    "folder": folder,
    "same-folder": same_folder,
    "wfdb": wfdb_records,
    "signal-folder": signal_folder,
    "nnunet-volumes": nnunet_volumes,
    "volume-folder": volume_folder,
}

ProgressCallback = Callable[[int, int], None]


def load_split(
    root: Path,
    split: str,
    data_format: str = "auto",
    progress: ProgressCallback | None = None,
    classes: list[ClassInfo] | None = None,
) -> SegmentationDataset:
    """Open one split of a data set.

    If the classes must be inferred from the training masks, `progress` is called with the number of masks read and their
    total; `scan_split` caches the result, so the masks are read once. `classes`: those of a data set that has no train split
    and does not name its classes.

    Raises: DataError; ConfigError for an unknown format.
    """
    return load_splits(root, (split,), data_format, progress, classes)[split]


def load_splits(
    root: Path,
    splits: Iterable[str],
    data_format: str = "auto",
    progress: ProgressCallback | None = None,
    classes: list[ClassInfo] | None = None,
) -> dict[str, SegmentationDataset]:
    """Open several splits; all get the classes of train, or of the first one. Arguments and errors as for `load_split`."""
    names = list(splits)
    for split in names:
        if split not in SPLITS:
            raise DataError(f"Unknown split {quoted(split)}; choose from {', '.join(SPLITS)}.")
    return _load(recognize_dataset(root, data_format), names, progress, classes=classes)


def load_available_splits(
    root: Path,
    splits: Iterable[str] = SPLITS,
    data_format: str = "auto",
    progress: ProgressCallback | None = None,
    recognition: Recognition | None = None,
    sample: bool = False,
) -> dict[str, SegmentationDataset]:
    """Open train and those of the `splits` that the data set has. Arguments and errors as for `load_split`.

    With `sample`, unnamed classes are inferred from a few masks: fast, and possibly incomplete.
    """
    recognition = recognition or recognize_dataset(root, data_format)
    names = ["train", *(split for split in splits if split != "train")]
    return _load(recognition, names, progress, skip_missing=True, sample=sample)


def _load(
    recognition: Recognition,
    names: list[str],
    progress: ProgressCallback | None,
    skip_missing: bool = False,
    sample: bool = False,
    classes: list[ClassInfo] | None = None,
) -> dict[str, SegmentationDataset]:
    source, root = FORMATS[recognition.format].read(recognition.tree), recognition.tree.root
    opened: dict[str, SegmentationDataset] = {
        split: source.load(split) for split in names if split == "train" or not skip_missing or source.has_split(split)
    }
    opened = {split: replace(dataset, notes=(*recognition.notes, *dataset.notes)) for split, dataset in opened.items()}
    if "train" in opened or source.has_split("train"):
        train: SegmentationDataset = opened.get("train") or source.load("train")
    else:
        train = opened[names[0]]
        train = replace(train, classes=train.classes or classes or [])
    if train.mask_reader is not read_pair_mask:  # formats that rasterize their masks know the classes
        return opened
    masks = (
        sample_mask_values(train)
        if sample or len(train.classes) > 2
        else list(filter(None, map(mask_values_from_scan, scan_split(train, progress))))
    )
    try:
        inferred = infer_classes(train, masks, root)
    except UnknownClassesError as error:
        error.datasets = opened
        raise
    return {split: inferred.apply_to(dataset) for split, dataset in opened.items()}


def load_all_splits(
    root: Path, data_format: str = "auto", classes: list[ClassInfo] | None = None
) -> SegmentationDataset:
    """All images with a mask, whatever their split. Arguments and errors as for `load_split`."""
    recognition = recognize_dataset(root, data_format)
    source = FORMATS[recognition.format].read(recognition.tree)
    names = [split for split in SPLITS if source.has_split(split)]
    return merge_splits(_load(recognition, names or ["train"], None, classes=classes))


def has_split(root: Path, split: str, data_format: str = "auto") -> bool:
    """Whether a data set has a split, even one with a wrong layout. Raises: as `load_split`."""
    recognition = recognize_dataset(root, data_format)
    return bool(FORMATS[recognition.format].read(recognition.tree).has_split(split))


def resolve_format(root: Path, data_format: str = "auto") -> str:
    """Name of the format of a data set; "auto" detects it. Raises: DataError, ConfigError."""
    return recognize_dataset(root, data_format).format


def recognize_dataset(root: Path, data_format: str = "auto") -> Recognition:
    """The format of a data set, and why; "auto" detects it. Raises: DataError, ConfigError."""
    if data_format not in ("auto", *FORMATS):
        raise ConfigError(f"Unknown data set format {quoted(data_format)}; choose from auto, {', '.join(FORMATS)}.")
    if data_format == "auto":
        return recognize(root, FORMATS)
    try:
        return recognize(root, {data_format: FORMATS[data_format]})
    except DataError:  # the format's own message says what is missing
        tree = list_tree(root)
        FORMATS[data_format].read(tree)
        return Recognition(tree, data_format, Evidence(0, "chosen by name"), {})
