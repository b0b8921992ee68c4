"""Reader of signals in NumPy arrays: `.npy`, T or T x C; `.npz` with the array as `values`, or as its only array.

An `.npz` may also hold `rate` (Hz), `channels` (C names), `units` (C names) and `valid` (bool T). Nothing is unpickled.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers.limits import ReadLimits
from models.readers.npy import check_numbers, read_arrays, read_names, sniff
from models.readers.signal import build_signal, check_axes, check_signal_size
from models.sample import Sample

__all__ = ["decode", "sniff"]

EXTRAS = ("rate", "channels", "units", "valid")


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read an array. Raises: ImageError."""
    arrays = read_arrays(data, limits, lambda shape, dtype: _check(shape, dtype, limits), EXTRAS)
    values = arrays["values"]
    values = values if values.ndim == 2 else values[:, None]
    rate, valid = arrays.get("rate"), arrays.get("valid")
    if rate is not None and (rate.size != 1 or rate.dtype.kind not in "uif"):
        raise CorruptImageError("`rate` is not a number; expected the sampling rate in Hz.")
    names, units = (read_names(arrays, key, values.shape[1]) for key in ("channels", "units"))
    sample = build_signal(values, None if rate is None else float(rate.item()), names, units)
    if valid is None or valid.all():
        return sample
    if valid.shape != values.shape[:1] or valid.dtype != np.bool_:
        raise CorruptImageError(f"`valid` is {valid.dtype} of {valid.shape}; expected bool of {values.shape[:1]}.")
    return replace(sample, valid=valid)


def _check(shape: tuple[int, ...], dtype: np.dtype[Any], limits: ReadLimits) -> None:
    """Raises: ImageError if an array is no signal, or too large."""
    if len(shape) not in (1, 2) or dtype.kind not in "uifb":
        raise UnsupportedFormatError(
            f"The array is {dtype} of {shape}; expected numbers, one row a time step: time, or time x channels."
        )
    check_numbers(dtype)
    length, channels = shape if len(shape) == 2 else (shape[0], 1)
    check_axes(length, channels)
    check_signal_size(limits, length, channels, dtype.itemsize)
