"""Reader of signals in NumPy arrays: `.npy`, T or T x C; `.npz` with the array as `values`, or as its only array.

An `.npz` may also hold `rate` (Hz), `channels` (C names), `units` (C names) and `valid` (bool T). Nothing is unpickled.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers.limits import ReadLimits
from models.readers.npy import MAGIC, load_array, read_members, sniff
from models.readers.signal import build_signal, check_axes, check_signal_size
from models.sample import Sample

__all__ = ["decode", "sniff"]

EXTRAS = ("rate", "channels", "units", "valid")


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read an array. Raises: ImageError."""
    arrays: dict[str, NDArray[Any]] = {}
    if data.startswith(MAGIC):
        arrays["values"] = load_array(data)
    else:
        arrays = {name: load_array(content) for name, content in read_members(data, limits).items()}
    signals = [name for name in arrays if name not in EXTRAS]
    if "values" not in arrays and len(signals) != 1:
        raise UnsupportedFormatError(
            f"The npz holds {', '.join(signals) or 'no array'}; expected the signal as `values`, or as its only array."
        )
    values = arrays["values" if "values" in arrays else signals[0]]
    if values.ndim not in (1, 2) or values.dtype.kind not in "uifb":
        raise UnsupportedFormatError(
            f"The array is {values.dtype} of {values.shape}; expected numbers, one row a time step: time, or time x channels."
        )
    values = values if values.ndim == 2 else values[:, None]
    length, channels = values.shape
    check_axes(length, channels)
    check_signal_size(limits, length, channels, values.itemsize)
    rate, valid = arrays.get("rate"), arrays.get("valid")
    if rate is not None and (rate.size != 1 or rate.dtype.kind not in "uif"):
        raise CorruptImageError("`rate` is not a number; expected the sampling rate in Hz.")
    names, units = (
        [str(name) for name in arrays[key].ravel()] if key in arrays else [] for key in ("channels", "units")
    )
    if names and len(names) != values.shape[1]:
        raise CorruptImageError(f"`channels` has {len(names)} names for an array of {values.shape[1]} channels.")
    sample = build_signal(values, None if rate is None else float(rate.item()), names, units)
    if valid is None or valid.all():
        return sample
    if valid.shape != values.shape[:1] or valid.dtype != np.bool_:
        raise CorruptImageError(f"`valid` is {valid.dtype} of {valid.shape}; expected bool of {values.shape[:1]}.")
    return replace(sample, valid=valid)
