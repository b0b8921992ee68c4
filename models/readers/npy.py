"""Reader of NumPy arrays: `.npy`, H x W or H x W x C; `.npz` with the array as `values`, or as its only array of 2 or 3 axes.

An `.npz` may also hold `channels` (C names), `valid` (bool H x W) and `nodata` (a number). Nothing is unpickled.
"""

import io
import zipfile
import zlib
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
from models.readers.limits import BYTES_PER_PIXEL, MIN_BYTES, ReadLimits
from models.readers.names import channel_names, to_sample_dtype
from models.sample import Sample
from models.spec import RGB_CHANNELS

MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\3\4"
SHAPE_ADVICE = "expected height x width, or height x width x channels"
MAX_MEMBERS = 64


def sniff(data: bytes) -> bool:
    """Whether the bytes are an array, or a zip file that begins with one."""
    return data.startswith(MAGIC) or (data.startswith(ZIP_MAGIC) and b".npy" in data[30:286])


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read an array. Raises: ImageError."""
    arrays = {"values": _read_array(data, limits)} if data.startswith(MAGIC) else _read_archive(data, limits)
    values = arrays.pop("values")
    valid, nodata = arrays.get("valid"), arrays.get("nodata")
    if valid is not None and (valid.shape != values.shape[:2] or valid.dtype != np.bool_):
        raise CorruptImageError(f"`valid` is {valid.dtype} of {valid.shape}; expected bool of {values.shape[:2]}.")
    if nodata is not None and (nodata.size != 1 or nodata.dtype.kind not in "uif"):
        raise CorruptImageError("`nodata` is not a number.")
    names = [str(name) for name in arrays["channels"].ravel()] if "channels" in arrays else []
    if names and len(names) != values.shape[2]:
        raise CorruptImageError(f"`channels` has {len(names)} names for an array of {values.shape[2]} channels.")
    if not names and values.shape[2] == 3 and values.dtype == np.uint8:
        names = list(RGB_CHANNELS)
    return Sample(
        to_sample_dtype(values),
        channels=channel_names(names, values.shape[2]),
        valid=None if valid is None or valid.all() else valid,
        nodata=None if nodata is None else float(nodata.item()),
    )


def _read_archive(data: bytes, limits: ReadLimits) -> dict[str, NDArray[Any]]:
    """The arrays by name, the image as `values`."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, content in read_members(data, limits).items():
        is_image = name not in ("channels", "valid", "nodata")
        arrays[name] = _read_array(content, limits) if is_image else load_array(content)
    images = [name for name in arrays if name not in ("channels", "valid", "nodata")]
    if "values" not in images and len(images) != 1:
        raise UnsupportedFormatError(
            f"The npz holds {', '.join(images) or 'no array'}; expected the image as `values`, or as its only array."
        )
    if "values" not in images:
        arrays["values"] = arrays.pop(images[0])
    return arrays


def read_members(data: bytes, limits: ReadLimits) -> dict[str, bytes]:
    """The bytes of the arrays in an npz, by name. Raises: ImageTooLargeError, CorruptImageError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            budget = max(BYTES_PER_PIXEL * limits.max_pixels, MIN_BYTES) + (1 << 20)
            if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > budget:
                raise ImageTooLargeError(
                    f"The npz unpacks to more than {budget:,} bytes or {MAX_MEMBERS} arrays. Save one array alone."
                )
            allow_pixels(sum(member.file_size for member in members))
            found = {}
            for member in members:
                with archive.open(member) as file:
                    found[member.filename.removesuffix(".npy")] = file.read(member.file_size + 1)
            return found
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise CorruptImageError(
            f"The npz is truncated or corrupt ({quoted(first_line(error))}). Save it again."
        ) from error


def _read_array(data: bytes, limits: ReadLimits) -> NDArray[Any]:
    """An image, H x W x C, in its own type."""
    array = load_array(data, limits)
    return array if array.ndim == 3 else array[:, :, None]


def load_array(data: bytes, limits: ReadLimits | None = None) -> NDArray[Any]:
    """An array whose header was checked: nothing is unpickled, and no more is allocated than the bytes hold."""
    file = io.BytesIO(data)
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
    if dtype.hasobject or (limits and (dtype.kind not in "uifb" or dtype.itemsize > 8)):
        raise UnsupportedFormatError(f"The array holds {dtype}; expected integers or floats of up to 64 bits.")
    if limits:
        if len(shape) not in (2, 3):
            raise UnsupportedFormatError(f"The array has {len(shape)} axes, {shape}; {SHAPE_ADVICE}.")
        limits.check(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, dtype.itemsize)
    count = int(np.prod(shape, dtype=np.int64))
    content = memoryview(data)[file.tell() :]
    if count * dtype.itemsize > len(content):
        raise CorruptImageError(f"The array is truncated: {shape} of {dtype} needs {count * dtype.itemsize:,} bytes.")
    flat = np.frombuffer(content, dtype, count)
    return flat.reshape(shape, order="F" if fortran else "C")
