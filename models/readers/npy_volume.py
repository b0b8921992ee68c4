"""Reader of volumes as NumPy arrays: `.npy`, D x H x W or D x H x W x C; `.npz` with the array as `values`, or as its only array.

An `.npz` may also hold `channels` (C names), `spacing` (3 numbers, mm along D, H and W) and `affine` (4 x 4, from the array's
indices to mm, to the patient's right, front and head). Nothing is unpickled.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers import npy
from models.readers.limits import ReadLimits
from models.readers.names import channel_names, to_sample_dtype
from models.readers.orientation import spacing_of, to_canonical
from models.readers.volume_limits import check_volume
from models.sample import Frame, Sample
from models.spec import MAX_CHANNELS, Spacing

SHAPE_ADVICE = "expected depth x height x width, or depth x height x width x channels"
EXTRAS = ("channels", "spacing", "affine")

sniff = npy.sniff


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read an array. Raises: ImageError."""
    budget = ReadLimits(limits.max_voxels)
    arrays = npy.read_arrays(data, budget, lambda shape, dtype: _check(shape, dtype, limits), EXTRAS)
    values = arrays["values"]
    values = values if values.ndim == 4 else values[..., None]
    names = npy.read_names(arrays, "channels", values.shape[3])
    sample = Sample(to_sample_dtype(values), "DHW", channel_names(names, values.shape[3]))
    if "affine" in arrays:
        moved, grid = to_canonical(sample.values, _numbers(arrays["affine"], (4, 4), "affine"))
        return replace(
            sample, values=moved, spacing=Spacing(values=spacing_of(grid), unit="mm"), frame=Frame(grid=grid)
        )
    if "spacing" in arrays:
        spacing = _numbers(arrays["spacing"], (3,), "spacing")
        if not (spacing > 0).all():
            raise CorruptImageError(f"`spacing` is {spacing.tolist()}; expected three numbers above 0, in mm.")
        return replace(sample, spacing=Spacing(values=tuple(spacing.tolist()), unit="mm"))
    return sample


def _check(shape: tuple[int, ...], dtype: np.dtype[Any], limits: ReadLimits) -> None:
    """Raises: ImageError if an array is no volume, or too large."""
    if len(shape) not in (3, 4) or dtype.kind not in "uifb":
        raise UnsupportedFormatError(f"The array is {dtype} of {shape}; {SHAPE_ADVICE}.")
    npy.check_numbers(dtype)
    channels = shape[3] if len(shape) == 4 else 1
    if channels > MAX_CHANNELS:
        raise UnsupportedFormatError(
            f"The array has {channels:,} channels; the limit is {MAX_CHANNELS}. The axes are depth, height, width, channels."
        )
    check_volume(shape[:3], channels, dtype.itemsize, limits)


def _numbers(array: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise CorruptImageError(f"`{name}` is {array.dtype} of {array.shape}; expected finite numbers of {shape}.")
    return array.astype(np.float64)
