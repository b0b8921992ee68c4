"""Data sets on disk: one file a format, one line here.

A format is a module with `recognises(root) -> bool`, `has_split(root, split) -> bool` and `load(root, split) -> Samples`
for the splits `train`, `val` and `test`. `load` raises DataError for a folder that is not laid out as it must be.
"""

from pathlib import Path
from types import ModuleType

from models.errors import ConfigError, DataError
from training.data import camvid, cityscapes, coco, folder, voc
from training.data.samples import SPLITS, Samples

__all__ = ["FORMATS", "Samples", "has_split", "load"]

# The first that recognises a folder reads it, so the more particular stand first.
FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "cityscapes": cityscapes,
    "coco": coco,
    "camvid": camvid,
    "folder": folder,
}


def load(root: Path, split: str, format: str = "auto") -> Samples:
    """Open one split of a data set. Raises: DataError, ConfigError for a format that is not known."""
    if split not in SPLITS:
        raise DataError(f"The split {split!r} is not known; choose from {', '.join(SPLITS)}.")
    samples: Samples = _module(root, format).load(root, split)
    return samples


def has_split(root: Path, split: str, format: str = "auto") -> bool:
    """Whether a data set has a split at all, be it well laid out or not. Raises: as `load`."""
    return bool(_module(root, format).has_split(root, split))


def _module(root: Path, format: str) -> ModuleType:
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the folder that holds the pictures and masks.")
    if format == "auto":
        format = next((name for name, module in FORMATS.items() if module.recognises(root)), "")
        if not format:
            raise DataError(
                f"{root} is laid out like no data set known here ({', '.join(FORMATS)}). The simplest: "
                f"{root}/images/NAME.jpg and {root}/masks/NAME.png."
            )
    elif format not in FORMATS:
        raise ConfigError(f"The data set format {format!r} is not known; choose from auto, {', '.join(FORMATS)}.")
    return FORMATS[format]
