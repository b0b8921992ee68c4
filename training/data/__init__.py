"""Data sets on disk: one file a format, one line here.

A format is a module with `recognises(root) -> bool`, `has_split(root, split) -> bool` and `load(root, split) -> Samples`
for the splits `train`, `val` and `test`. `load` raises DataError for a folder that is not laid out as it must be. Classes that a
format does not know it leaves out, and they are found in the training masks (`infer.py`).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from models.errors import ConfigError, DataError
from training.data.dataset import SPLITS, SegmentationDataset, read_pair_mask
from training.data.formats import camvid, cityscapes, coco, csv_table, folder, voc
from training.data.infer_classes import infer_classes, mask_values_from_scan, sample_mask_values
from training.data.scan.scanner import scan

__all__ = ["FORMATS", "SegmentationDataset", "has_split", "load_split", "load_splits", "resolve_format"]

# The first that recognises a folder reads it, so the more particular stand first.
FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "cityscapes": cityscapes,
    "coco": coco,
    "camvid": camvid,
    "table": csv_table,
    "folder": folder,
}

ProgressCallback = Callable[[int, int], None]


def load_split(
    root: Path, split: str, data_format: str = "auto", progress: ProgressCallback | None = None
) -> SegmentationDataset:
    """Open one split of a data set. Raises: DataError, ConfigError for a format that is not known.

    Where the training masks must be read to know what they mean, `progress` is called with the number read and of all; `scan`
    keeps what it saw, so that they are read once.
    """
    return load_splits(root, (split,), data_format, progress)[split]


def load_splits(
    root: Path, splits: Iterable[str], data_format: str = "auto", progress: ProgressCallback | None = None
) -> dict[str, SegmentationDataset]:
    """Open several splits, all of which have the classes of train. As `load`."""
    wanted = list(splits)
    for split in wanted:
        if split not in SPLITS:
            raise DataError(f"The split {split!r} is not known; choose from {', '.join(SPLITS)}.")
    module = FORMATS[resolve_format(root, data_format)]
    opened: dict[str, SegmentationDataset] = {split: module.load(root, split) for split in wanted}
    train: SegmentationDataset = opened.get("train") or module.load(root, "train")
    if train.mask_reader is not read_pair_mask:  # a format that draws its masks knows what it draws
        return opened
    masks = (
        sample_mask_values(train)
        if len(train.classes) > 2
        else list(filter(None, map(mask_values_from_scan, scan(train, progress))))
    )
    understood = infer_classes(train, masks, root)
    return {split: understood.apply_to(samples) for split, samples in opened.items()}


def has_split(root: Path, split: str, data_format: str = "auto") -> bool:
    """Whether a data set has a split at all, be it well laid out or not. Raises: as `load`."""
    return bool(FORMATS[resolve_format(root, data_format)].has_split(root, split))


def resolve_format(root: Path, data_format: str = "auto") -> str:
    """The format that a data set is read by, recognised unless it is named. Raises: DataError, ConfigError."""
    if data_format not in ("auto", *FORMATS):
        raise ConfigError(f"The data set format {data_format!r} is not known; choose from auto, {', '.join(FORMATS)}.")
    if root.is_file() and data_format in ("auto", "table"):
        return "table"
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the folder that holds the images and masks, or a table of them.")
    if data_format == "auto":
        data_format = next((name for name, module in FORMATS.items() if module.recognises(root)), "")
    if not data_format and not any(root.iterdir()):
        raise DataError(f"{root} is empty; give the folder that holds the images and masks.")
    if not data_format:
        raise DataError(
            f"{root} is laid out like no data set known here ({', '.join(FORMATS)}). The simplest: "
            f"{root}/images/NAME.jpg and {root}/masks/NAME.png."
        )
    return data_format
