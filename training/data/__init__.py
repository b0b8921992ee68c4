"""Data sets on disk: one file a format, one line here.

A format is a module with `recognises(root) -> bool` and `load(root, split) -> Samples` for the splits `train`, `val`
and `test`. It raises DataError for a folder that is not laid out as it must be.
"""

from pathlib import Path
from types import ModuleType

from models.errors import ConfigError, DataError
from training.data import camvid, folder
from training.data.samples import SPLITS, Samples

__all__ = ["FORMATS", "Samples", "load"]

# The first that recognises a folder reads it, so the more particular stand first.
FORMATS: dict[str, ModuleType] = {
    "camvid": camvid,
    "folder": folder,
}


def load(root: Path, split: str, format: str = "auto") -> Samples:
    """Open one split of a data set. Raises: DataError, ConfigError for a format that is not known."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give the folder that holds the pictures and masks.")
    if split not in SPLITS:
        raise DataError(f"The split {split!r} is not known; choose from {', '.join(SPLITS)}.")
    if format == "auto":
        format = next((name for name, module in FORMATS.items() if module.recognises(root)), "")
        if not format:
            raise DataError(
                f"{root} is laid out like no data set known here ({', '.join(FORMATS)}). The simplest: "
                f"{root}/images/NAME.jpg and {root}/masks/NAME.png."
            )
    elif format not in FORMATS:
        raise ConfigError(f"The data set format {format!r} is not known; choose from auto, {', '.join(FORMATS)}.")
    samples: Samples = FORMATS[format].load(root, split)
    return samples
