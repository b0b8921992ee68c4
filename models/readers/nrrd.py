"""Reader of NRRD volumes, `.nrrd` with the voxels in the same file (teem.sourceforge.net/nrrd/format.html).

The header is parsed here and not by pynrrd: the bytes are untrusted, and their size must be known before anything is inflated.
Tests compare with pynrrd. One axis without a direction in space, as of colors or of several modalities, becomes the channels.
"""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError, quoted
from models.readers.limits import ReadLimits
from models.readers.names import channel_names, to_sample_dtype
from models.readers.orientation import spacing_of, to_canonical
from models.readers.volume_limits import check_volume, read_exactly
from models.sample import Frame, Sample
from models.spec import MAX_CHANNELS, Spacing

MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
MAX_HEADER_BYTES = 1 << 16
DTYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
NUMPY_TYPE = {name: dtype for dtype, names in DTYPES.items() for name in names}
# Spaces in mm, and the signs that turn their axes into right, front, head.
SPACES = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
CHANNEL_KINDS = (
    "list",
    "vector",
    "covariant-vector",
    "normal",
    "rgb-color",
    "rgba-color",
    "2-vector",
    "3-vector",
    "4-vector",
)
VECTOR = re.compile(r"none|\(([^()]*)\)")


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like an NRRD file."""
    return MAGIC.match(data) is not None


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read a volume: values D x H x W x C, in canonical orientation if the file says how it lies. Raises: ImageError."""
    fields, offset = _parse_header(data)
    sizes = _sizes(fields)
    directions = _directions(fields, len(sizes))
    spatial = [axis for axis, direction in enumerate(directions) if direction is not None]
    if len(spatial) != 3 or len(sizes) > 4:
        raise UnsupportedFormatError(
            f"The NRRD has {len(sizes)} axes, {' x '.join(map(str, sizes))}, and {len(spatial)} of them lie in space; expected 3, "
            "and one more at most, for channels. Save one volume per file."
        )
    channel_axis = next((axis for axis in range(len(sizes)) if axis not in spatial), None)
    channels = 1 if channel_axis is None else sizes[channel_axis]
    if channels > MAX_CHANNELS:
        raise UnsupportedFormatError(
            f"The NRRD has {channels:,} channels; the limit is {MAX_CHANNELS}. Is this a series in time? Save one volume per file."
        )
    dtype = np.dtype(f"{_byte_order(fields)}{_type(fields)}")
    check_volume([sizes[axis] for axis in spatial], channels, dtype.itemsize, limits)
    array = _read_samples(data, fields, offset, sizes, dtype)
    array = array[..., None] if channel_axis is None else np.moveaxis(array, channel_axis, -1)
    names = channel_names([], channels)
    array = to_sample_dtype(array)
    columns = np.array([directions[axis] for axis in spatial], np.float64).T
    if "space" not in fields:  # no patient: the last axis is D, as in a stack, and the first is W
        spacing = np.linalg.norm(columns, axis=0)
        _check_spacing(spacing)
        known = "spacings" in fields or "space directions" in fields
        unit = Spacing(values=tuple(spacing[::-1].tolist()), unit="mm") if known else None
        return Sample(array.transpose(2, 1, 0, 3), "DHW", names, unit)
    affine = np.eye(4)
    signs = np.array(_signs(fields["space"]))
    affine[:3, :3] = signs[:, None] * columns
    affine[:3, 3] = signs * _origin(fields)
    values, grid = to_canonical(array, affine)
    return Sample(values, "DHW", names, Spacing(values=spacing_of(grid), unit="mm"), Frame(grid=grid))


def _parse_header(data: bytes) -> tuple[dict[str, str], int]:
    """The fields by name, and the offset of what follows the header."""
    end = re.compile(rb"\r?\n\r?\n").search(data, 0, MAX_HEADER_BYTES)
    if end is None:
        raise CorruptImageError("The NRRD header does not end: there is no empty line after it. Save the volume again.")
    fields: dict[str, str] = {}
    for line in data[: end.start()].decode("ascii", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[" ".join(name.lower().split())] = value.strip()
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedFormatError(
            "The NRRD header names another file for its voxels (.nhdr). Save the volume as one file, .nrrd."
        )
    missing = [name for name in ("type", "dimension", "sizes", "encoding") if name not in fields]
    if missing:
        raise CorruptImageError(f"The NRRD header has no {', '.join(missing)}. Save the volume again.")
    return fields, end.end()


def _read_samples(
    data: bytes, fields: dict[str, str], offset: int, sizes: list[int], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The voxels in the file's order of axes, the fastest first."""
    encoding, count = fields["encoding"].lower(), math.prod(sizes) * dtype.itemsize
    skipped = [fields.get(f"{kind} skip", fields.get(f"{kind}skip", "0")) for kind in ("line", "byte")]
    content = memoryview(data)[offset:]
    if skipped == ["0", "-1"] and encoding == "raw":  # the voxels are the last bytes of the file
        content = content[max(0, len(content) - count) :]
    elif skipped != ["0", "0"]:
        raise UnsupportedFormatError(
            "The NRRD skips lines or bytes before its voxels. Save the volume again, as one file."
        )
    if encoding not in ("raw", "gzip", "gz"):
        raise UnsupportedFormatError(
            f"The NRRD has the encoding {quoted(encoding[:40])}; expected raw or gzip. Save the volume with one of them."
        )
    raw = read_exactly(content, count, "raw" if encoding == "raw" else "gzip")
    return raw.view(dtype).reshape(sizes, order="F")


def _sizes(fields: dict[str, str]) -> list[int]:
    """The length of each axis. Raises: CorruptImageError."""
    numbers = _numbers(fields, "sizes")
    if not all(0 < number < 1 << 31 for number in numbers):
        raise CorruptImageError(
            f"The NRRD has the sizes {quoted(fields['sizes'][:40])}; expected whole numbers above 0. Save it again."
        )
    return [int(number) for number in numbers]


def _directions(fields: dict[str, str], dimension: int) -> list[list[float] | None]:
    """The step of each axis in space; None for an axis that is not in space."""
    if not 1 <= dimension <= 16 or fields["dimension"].strip() != str(dimension):
        raise CorruptImageError("The NRRD header contradicts itself: `sizes` and `dimension`. Save the volume again.")
    if "space directions" in fields:
        found = [
            None if match[1] is None else [_number(part, "space directions") for part in match[1].split(",")]
            for match in VECTOR.finditer(fields["space directions"])
        ]
        if len(found) != dimension or any(each is not None and len(each) != 3 for each in found):
            raise CorruptImageError(
                f"The NRRD has {len(found)} space directions for {dimension} axes; expected one of 3 numbers for each. Save the "
                "volume again."
            )
        return found
    kinds = fields.get("kinds", "").lower().split()
    kinds = kinds if len(kinds) == dimension else ["domain"] * dimension
    spacings = _numbers(fields, "spacings") if "spacings" in fields else [1.0] * dimension
    if len(spacings) != dimension:
        raise CorruptImageError(f"The NRRD has {len(spacings)} spacings for {dimension} axes. Save the volume again.")
    unit, directions = iter(np.eye(max(3, dimension)).tolist()), list[list[float] | None]()
    for kind, spacing in zip(kinds, spacings, strict=True):
        directions.append(None if kind in CHANNEL_KINDS else [spacing * part for part in next(unit)[:3]])
    return directions


def _origin(fields: dict[str, str]) -> NDArray[np.float64]:
    match = VECTOR.search(fields.get("space origin", "(0,0,0)"))
    parts = [] if match is None or match[1] is None else [_number(part, "space origin") for part in match[1].split(",")]
    if len(parts) != 3:
        raise CorruptImageError("The NRRD's space origin is not three numbers. Save the volume again.")
    return np.array(parts)


def _signs(space: str) -> tuple[int, int, int]:
    if space.lower() not in SPACES:
        raise UnsupportedFormatError(
            f"The NRRD lies in the space {quoted(space[:60])}; expected right-anterior-superior, left-anterior-superior or "
            "left-posterior-superior. Export it in one of them."
        )
    return SPACES[space.lower()]


def _check_spacing(spacing: NDArray[np.float64]) -> None:
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        listed = " x ".join(f"{step:g}" for step in spacing)
        raise CorruptImageError(f"The NRRD has a spacing of {listed}; expected numbers above 0. Correct its header.")


def _numbers(fields: dict[str, str], name: str) -> list[float]:
    return [_number(part, name) for part in fields[name].split()]


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CorruptImageError(
            f"The NRRD's {name} has {quoted(text[:40])}; expected a number. Save the volume again."
        ) from error


def _type(fields: dict[str, str]) -> str:
    name = " ".join(fields["type"].lower().split())
    if name not in NUMPY_TYPE:
        raise UnsupportedFormatError(
            f"The NRRD has voxels of type {quoted(name[:40])}; expected integers or floats of up to 64 bits. Save it as float."
        )
    return NUMPY_TYPE[name]


def _byte_order(fields: dict[str, str]) -> str:
    return ">" if fields.get("endian", "little").lower() == "big" else "<"
