"""Data sets on disk: one file a format, one line here.

A format is a module with `recognises(root) -> bool`, `has_split(root, split) -> bool` and `load(root, split) -> Samples`
for the splits `train`, `val` and `test`. `load` raises DataError for a folder that is not laid out as it must be. Classes that a
format does not know it leaves out, and they are found in the training masks (`infer.py`).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from models.errors import ConfigError, DataError
from training.data.dataset import SPLITS, Samples, read_pair
from training.data.formats import camvid, cityscapes, coco, csv_table, folder, voc
from training.data.infer_classes import infer, peek, seen
from training.data.scan.scanner import scan

__all__ = ["FORMATS", "Samples", "format_of", "has_split", "load", "load_splits"]

# The first that recognises a folder reads it, so the more particular stand first.
FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "cityscapes": cityscapes,
    "coco": coco,
    "camvid": camvid,
    "table": csv_table,
    "folder": folder,
}

Progress = Callable[[int, int], None]


def load(root: Path, split: str, format: str = "auto", progress: Progress | None = None) -> Samples:
    """Open one split of a data set. Raises: DataError, ConfigError for a format that is not known.

    Where the training masks must be read to know what they mean, `progress` is called with the number read and of all; `scan`
    keeps what it saw, so that they are read once.
    """
    return load_splits(root, (split,), format, progress)[split]


def load_splits(
    root: Path, splits: Iterable[str], format: str = "auto", progress: Progress | None = None
) -> dict[str, Samples]:
    """Open several splits, all of which have the classes of train. As `load`."""
    wanted = list(splits)
    for split in wanted:
        if split not in SPLITS:
            raise DataError(f"The split {split!r} is not known; choose from {', '.join(SPLITS)}.")
    module = FORMATS[format_of(root, format)]
    opened: dict[str, Samples] = {split: module.load(root, split) for split in wanted}
    train: Samples = opened.get("train") or module.load(root, "train")
    if train.draw is not read_pair:  # a format that draws its masks knows what it draws
        return opened
    masks = peek(train) if len(train.classes) > 2 else list(filter(None, map(seen, scan(train, progress))))
    understood = infer(train, masks, root)
    return {split: understood.of(samples) for split, samples in opened.items()}


def has_split(root: Path, split: str, format: str = "auto") -> bool:
    """Whether a data set has a split at all, be it well laid out or not. Raises: as `load`."""
    return bool(FORMATS[format_of(root, format)].has_split(root, split))


def format_of(root: Path, format: str = "auto") -> str:
    """The format that a data set is read by, recognised unless it is named. Raises: DataError, ConfigError."""
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"The data set format {format!r} is not known; choose from auto, {', '.join(FORMATS)}.")
    if root.is_file() and format in ("auto", "table"):
        return "table"
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the folder that holds the pictures and masks, or a table of them.")
    if format == "auto":
        format = next((name for name, module in FORMATS.items() if module.recognises(root)), "")
    if not format and not any(root.iterdir()):
        raise DataError(f"{root} is empty; give the folder that holds the pictures and masks.")
    if not format:
        raise DataError(
            f"{root} is laid out like no data set known here ({', '.join(FORMATS)}). The simplest: "
            f"{root}/images/NAME.jpg and {root}/masks/NAME.png."
        )
    return format
