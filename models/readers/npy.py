"""Reader of NumPy arrays: `.npy`, H x W or H x W x C; `.npz` with the array as `values`, or as its only array of 2 or 3 axes.

An `.npz` may also hold `channels` (C names), `valid` (bool H x W) and `nodata` (a number). Nothing is unpickled.
"""

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageTooLargeError,
    UnsupportedFormatError,
    first_line,
    quoted,
)
from models.imaging.cpu_budget import allow_pixels
from models.readers import zip_members
from models.readers.limits import BYTES_PER_PIXEL, MIN_BYTES, ReadLimits
from models.readers.names import channel_names, to_sample_dtype
from models.readers.zip_members import Readable
from models.sample import Sample
from models.spec import RGB_CHANNELS

Check = Callable[[tuple[int, ...], np.dtype[Any]], None]  # of the shape and type that the header of an array states

EXTRAS = ("channels", "valid", "nodata")
MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\3\4"
SHAPE_ADVICE = "expected height x width, or height x width x channels"
MAX_MEMBERS = 64
MAX_SIDE = 1 << 62
MAX_OTHER_BYTES = 64 << 20  # of `valid`, a byte per pixel, and `channels`


def sniff(data: bytes) -> bool:
    """Whether the bytes are an array, or a zip file that begins with one."""
    return data.startswith(MAGIC) or (data.startswith(ZIP_MAGIC) and b".npy" in data[30:286])


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read an array. Raises: ImageError."""
    arrays = read_arrays(data, limits, lambda shape, dtype: _check_image(shape, dtype, limits), EXTRAS)
    values = arrays["values"]
    values = values if values.ndim == 3 else values[:, :, None]
    valid, nodata = arrays.get("valid"), arrays.get("nodata")
    if valid is not None and (valid.shape != values.shape[:2] or valid.dtype != np.bool_):
        raise CorruptImageError(f"`valid` is {valid.dtype} of {valid.shape}; expected bool of {values.shape[:2]}.")
    if nodata is not None and (nodata.size != 1 or nodata.dtype.kind not in "uif"):
        raise CorruptImageError("`nodata` is not a number.")
    names = read_names(arrays, "channels", values.shape[2])
    if not names and values.shape[2] == 3 and values.dtype == np.uint8:
        names = list(RGB_CHANNELS)
    return Sample(
        to_sample_dtype(values),
        channels=channel_names(names, values.shape[2]),
        valid=None if valid is None or valid.all() else valid,
        nodata=None if nodata is None else float(nodata.item()),
    )


def decode_npy_mask(data: bytes, max_pixels: int) -> NDArray[Any]:
    """The array of a `.npy` file as it is stored, H x W or H x W x C. Raises: ImageError."""
    if not data.startswith(MAGIC):
        raise UnsupportedFormatError("This is no NumPy array. Save the mask as PNG.")
    return load_array(data, ReadLimits(max_pixels))


def read_arrays(data: bytes, limits: ReadLimits, check: Check, extras: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an npy or npz file by name; the sample, as `values` or the only array beside the `extras`, as `values`.

    `check` raises an ImageError for the shape and type of a sample that cannot be read, before it is unpacked.
    Raises: ImageError.
    """
    if data.startswith(MAGIC):
        return {"values": _load(io.BytesIO(data), check)}

    wanted = ""

    def check_members(members: Sequence[zipfile.ZipInfo]) -> None:
        nonlocal wanted
        _check_members(members, limits)
        names = [member.filename.removesuffix(".npy") for member in members]
        samples = [name for name in names if name not in extras]
        if "values" not in samples and len(samples) != 1:
            raise UnsupportedFormatError(
                f"The npz holds {', '.join(samples) or 'no array'}; expected the sample as `values`, or as its only array."
            )
        wanted = "values" if "values" in samples else samples[0]

    def read(name: str, file: Readable) -> NDArray[Any] | None:
        name = name.removesuffix(".npy")
        if name == wanted:
            return _load(file, check)
        return _load(file, max_bytes=MAX_OTHER_BYTES) if name in extras else None

    found = zip_members.read_members(
        data,
        check_members,
        read,
        lambda error: f"The npz is truncated or corrupt ({quoted(first_line(error))}). Save it again.",
    )
    arrays = {name.removesuffix(".npy"): array for name, array in found.items() if array is not None}
    return {**arrays, "values": arrays.pop(wanted)}


def read_names(arrays: dict[str, NDArray[Any]], key: str, count: int) -> list[str]:
    """The strings of an array, such as the names of channels; none if it is not there. Raises: CorruptImageError."""
    if key not in arrays:
        return []
    if arrays[key].size != count:
        raise CorruptImageError(f"`{key}` has {arrays[key].size:,} names for an array of {count} channels.")
    return [str(name) for name in arrays[key].ravel()]


def load_array(data: bytes, limits: ReadLimits) -> NDArray[Any]:
    """The array of a `.npy` file, an image H x W or H x W x C. Raises: ImageError."""
    return _load(io.BytesIO(data), lambda shape, dtype: _check_image(shape, dtype, limits))


def _check_members(members: Sequence[zipfile.ZipInfo], limits: ReadLimits) -> None:
    budget = max(BYTES_PER_PIXEL * limits.max_pixels, MIN_BYTES) + (1 << 20)
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > budget:
        raise ImageTooLargeError(
            f"The npz unpacks to more than {budget:,} bytes or {MAX_MEMBERS} arrays. Save one array alone."
        )


def _check_image(shape: tuple[int, ...], dtype: np.dtype[Any], limits: ReadLimits) -> None:
    check_numbers(dtype)
    if len(shape) not in (2, 3):
        raise UnsupportedFormatError(f"The array has {len(shape)} axes, {shape}; {SHAPE_ADVICE}.")
    limits.check(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, dtype.itemsize)


def check_numbers(dtype: np.dtype[Any]) -> None:
    """Raises: UnsupportedFormatError for samples that are no integers or floats of up to 64 bits."""
    if dtype.kind not in "uifb" or dtype.itemsize > 8:
        raise UnsupportedFormatError(f"The array holds {dtype}; expected integers or floats of up to 64 bits.")


def _load(file: Readable, check: Check | None = None, max_bytes: int | None = None) -> NDArray[Any]:
    """An array whose header is checked before its samples are read: nothing is unpickled, and no more is read than it needs."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file, max_header_size=10_000)
    except EOFError as error:
        raise EmptyImageError("The array file is empty. Save it again.") from error
    except Exception as error:  # NumPy's parser raises several types
        raise CorruptImageError(
            f"The array has no valid header ({quoted(first_line(error))}). Save it again."
        ) from error
    if dtype.hasobject or not dtype.itemsize:
        raise UnsupportedFormatError(f"The array holds {dtype}; expected integers or floats of up to 64 bits.")
    if any(not 0 <= side < MAX_SIDE for side in shape):  # an integer of thousands of digits cannot be printed
        raise CorruptImageError("The array's header has sides that no array has. Save it again.")
    needed = math.prod(shape) * dtype.itemsize
    if check:
        check(shape, dtype)
    if max_bytes is not None and needed > max_bytes:
        raise ImageTooLargeError(f"An array beside the sample has {needed:,} bytes; the limit is {max_bytes:,}.")
    allow_pixels(needed)
    content = file.read(needed)
    if needed > len(content):
        raise CorruptImageError(f"The array is truncated: {shape} of {dtype} needs {needed:,} bytes.")
    flat = np.frombuffer(content, dtype, math.prod(shape))
    try:
        return flat.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # sides beside a 0 that NumPy cannot count
        raise CorruptImageError("The array's header has sides that no array has. Save it again.") from error
