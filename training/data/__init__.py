"""Data sets on disk. Each layout is one file in `formats/` and one line in `FORMATS`.

A format is a module with three functions, for the splits `train`, `val` and `test`:

    detect(root) -> bool                                whether the folder has this layout
    has_split(root, split) -> bool                      whether the data set has the split
    load(root, split) -> SegmentationDataset            raises DataError if the layout is wrong

A format leaves `classes` empty if its files do not name them; `infer_classes.py` then finds them in the training masks.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from models.errors import ConfigError, DataError
from training.data.dataset import SPLITS, SegmentationDataset, read_pair_mask
from training.data.formats import camvid, cityscapes, coco, csv_table, folder, voc
from training.data.infer_classes import infer_classes, mask_values_from_scan, sample_mask_values
from training.data.scan.scanner import scan_split

__all__ = ["FORMATS", "SegmentationDataset", "has_split", "load_split", "load_splits", "resolve_format"]

# Detection takes the first match, so specific layouts come before general ones.
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
    """Open one split of a data set.

    If the classes must be inferred from the training masks, `progress` is called with the number of masks read and their
    total; `scan_split` caches the result, so the masks are read once.

    Raises: DataError; ConfigError for an unknown format.
    """
    return load_splits(root, (split,), data_format, progress)[split]


def load_splits(
    root: Path, splits: Iterable[str], data_format: str = "auto", progress: ProgressCallback | None = None
) -> dict[str, SegmentationDataset]:
    """Open several splits; all get the classes of train. Arguments and errors as for `load_split`."""
    names = list(splits)
    for split in names:
        if split not in SPLITS:
            raise DataError(f"Unknown split {split!r}; choose from {', '.join(SPLITS)}.")
    module = FORMATS[resolve_format(root, data_format)]
    opened: dict[str, SegmentationDataset] = {split: module.load(root, split) for split in names}
    train: SegmentationDataset = opened.get("train") or module.load(root, "train")
    if train.mask_reader is not read_pair_mask:  # formats that rasterize their masks know the classes
        return opened
    masks = (
        sample_mask_values(train)
        if len(train.classes) > 2
        else list(filter(None, map(mask_values_from_scan, scan_split(train, progress))))
    )
    inferred = infer_classes(train, masks, root)
    return {split: inferred.apply_to(dataset) for split, dataset in opened.items()}


def has_split(root: Path, split: str, data_format: str = "auto") -> bool:
    """Whether a data set has a split, even one with a wrong layout. Raises: as `load_split`."""
    return bool(FORMATS[resolve_format(root, data_format)].has_split(root, split))


def resolve_format(root: Path, data_format: str = "auto") -> str:
    """Name of the format of a data set; "auto" detects it. Raises: DataError, ConfigError."""
    if data_format not in ("auto", *FORMATS):
        raise ConfigError(f"Unknown data set format {data_format!r}; choose from auto, {', '.join(FORMATS)}.")
    if root.is_file() and data_format in ("auto", "table"):
        return "table"
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder of images and masks, or a table (CSV, TSV) of them.")
    if data_format == "auto":
        data_format = next((name for name, module in FORMATS.items() if module.detect(root)), "")
    if not data_format and not any(root.iterdir()):
        raise DataError(f"{root} is empty; give a folder of images and masks.")
    if not data_format:
        raise DataError(
            f"{root} has no supported layout ({', '.join(FORMATS)}). The simplest is "
            f"{root}/images/NAME.jpg with {root}/masks/NAME.png."
        )
    return data_format
