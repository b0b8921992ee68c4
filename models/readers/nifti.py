"""Reader of NIfTI-1 and NIfTI-2 volumes, `.nii` and `.nii.gz` (nifti.nimh.nih.gov, nifti1.h and nifti2.h).

The header is parsed here and not by nibabel: the bytes are untrusted, and their size must be known before anything is inflated.
Tests compare with nibabel.
"""

import gzip
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers.limits import ReadLimits
from models.readers.names import to_sample_dtype
from models.readers.orientation import spacing_of, to_canonical
from models.readers.volume_limits import check_volume, inflate_start, read_exactly
from models.sample import Frame, Sample
from models.spec import Spacing

GZIP = b"\x1f\x8b"
MAGIC = (b"n+1\0", b"n+2\0")
PAIR_MAGIC = (b"ni1\0", b"ni2\0")  # the header of a pair of files, .hdr and .img
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
# Codes of `datatype` (nifti1.h). Colors and complex numbers are no measurements of one channel.
DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
MM_PER_UNIT = {
    0: 1.0,
    1: 1000.0,
    2: 1.0,
    3: 0.001,
}  # by the low bits of `xyzt_units`; most files without a unit mean mm


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI file says about its voxels."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int  # bytes before the voxels
    slope: float  # a voxel's value is slope * stored + intercept
    intercept: float
    affine: NDArray[np.float64]  # 4 x 4, to mm (RAS)


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like a NIfTI file, compressed or not."""
    if data.startswith(GZIP):
        try:
            data = inflate_start(memoryview(data), HEADER_BYTES)
        except CorruptImageError:
            return False
    return data[344:348] in MAGIC + PAIR_MAGIC or data[4:8] in MAGIC + PAIR_MAGIC


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read a volume: values D x H x W x 1 in canonical orientation, in the file's type; float32 if the file scales them.

    Raises: ImageError.
    """
    stored, header = read_stored(data, limits)
    array = to_sample_dtype(stored)
    if (header.slope, header.intercept) != (1.0, 0.0):
        array = stored.astype(np.float32) * np.float32(header.slope) + np.float32(header.intercept)
    values, grid = to_canonical(array, header.affine)
    spacing = Spacing(values=spacing_of(grid), unit="mm")
    return Sample(values[..., None], "DHW", ("gray",), spacing, Frame(grid=grid))


def read_stored(data: bytes, limits: ReadLimits) -> tuple[NDArray[Any], NiftiHeader]:
    """The voxels as they are stored, i x j x k, and the header. Raises: ImageError."""
    content, compressed = memoryview(data), data.startswith(GZIP)
    header = parse_header(inflate_start(content, HEADER_BYTES) if compressed else bytes(content[:HEADER_BYTES]))
    check_volume(header.shape, 1, header.dtype.itemsize, limits)
    count = math.prod(header.shape) * header.dtype.itemsize
    raw = read_exactly(content, count, "gzip" if compressed else "raw", header.offset)
    return raw.view(header.dtype).reshape(header.shape, order="F"), header


def parse_header(head: bytes) -> NiftiHeader:
    """Parse the first 540 bytes of an uncompressed file (348 of NIfTI-1). Raises: CorruptImageError, UnsupportedFormatError."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", head)[0] if len(head) >= 348 else 0
        if size in (348, 540):
            break
    else:
        raise CorruptImageError("The NIfTI header is truncated or corrupt. Save the volume again.")
    if (head[344:348] if size == 348 else head[4:8]) in PAIR_MAGIC:
        raise UnsupportedFormatError(
            "This is the header of a NIfTI pair (.hdr and .img). Save the volume as one file, .nii or .nii.gz."
        )
    # (format, offset) of the fields in NIfTI-1 and NIfTI-2.
    one, two = ("8h", 40), ("8q", 16)
    dim, datatype, pixdim, vox_offset, scaling, units, codes, quaternion, sform = (
        (one, ("h", 70), ("8f", 76), ("f", 108), ("2f", 112), ("B", 123), ("2h", 252), ("6f", 256), ("12f", 280))
        if size == 348
        else (two, ("h", 12), ("8d", 104), ("q", 168), ("2d", 176), ("i", 500), ("2i", 344), ("6d", 352), ("12d", 400))
    )

    def read(field: tuple[str, int]) -> tuple[Any, ...]:
        return struct.unpack_from(order + field[0], head, field[1])

    try:
        lengths = read(dim)
        steps = read(pixdim)
        kind, offset = int(read(datatype)[0]), read(vox_offset)[0]
        (slope, intercept), (qform_code, sform_code) = read(scaling), read(codes)
        unit = MM_PER_UNIT.get(int(read(units)[0]) & 7)
        rotation, rows = read(quaternion), read(sform)
    except struct.error as error:
        raise CorruptImageError("The NIfTI header is truncated. Save the volume again.") from error
    shape, spacing = _check_lengths(lengths), _check_spacing(lengths, steps)
    if kind not in DTYPES:
        raise UnsupportedFormatError(
            f"The NIfTI has voxels of datatype {kind}; expected integers or floats of up to 64 bits. Save it as float32."
        )
    if unit is None:
        raise CorruptImageError(
            "The NIfTI has a spatial unit that is neither m, mm nor micrometers. Correct the header."
        )
    if not math.isfinite(offset) or not size <= offset < 1 << 31:
        offset = 352 if size == 348 else 544  # what every writer means where it left the field 0
    affine = _affine(shape, spacing, steps[0], qform_code, sform_code, rotation, rows)
    affine[:3] *= unit
    scaled = math.isfinite(slope) and slope != 0 and math.isfinite(intercept)  # a slope of 0 means none (nifti1.h)
    return NiftiHeader(
        shape, np.dtype(order + DTYPES[kind]), int(offset), float(slope) if scaled else 1.0,
        float(intercept) if scaled else 0.0, affine,
    )  # fmt: skip


def _check_lengths(dim: tuple[int, ...]) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7:
        raise CorruptImageError(f"The NIfTI header has {dim[0]} axes; expected 3. Save the volume again.")
    lengths = list(dim[1 : dim[0] + 1])
    while len(lengths) > 3 and lengths[-1] == 1:
        lengths.pop()
    if len(lengths) > 3:
        listed = " x ".join(map(str, lengths))
        raise UnsupportedFormatError(
            f"The NIfTI has {len(lengths)} axes, {listed}: a series in time or several channels; expected 3 axes. Save each "
            "volume as a file of its own, channels as NAME_0000.nii.gz, NAME_0001.nii.gz and so on."
        )
    lengths += [1] * (3 - len(lengths))
    return lengths[0], lengths[1], lengths[2]


def _check_spacing(dim: tuple[int, ...], pixdim: tuple[float, ...]) -> tuple[float, ...]:
    """The spacing of the axes in the file's unit; 1 for an axis that the file does not have."""
    spacing = tuple(pixdim[axis] if axis <= dim[0] else 1.0 for axis in (1, 2, 3))
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        listed = " x ".join(f"{step:g}" for step in spacing)
        raise CorruptImageError(
            f"The NIfTI has a spacing of {listed}; expected numbers above 0. Correct the header (pixdim), and save it again."
        )
    return spacing


def _affine(
    shape: tuple[int, int, int], spacing: tuple[float, ...], handedness: float, qform_code: int, sform_code: int,
    quaternion: tuple[float, ...], rows: tuple[float, ...],
) -> NDArray[np.float64]:  # fmt: skip
    """The file's affine: its sform; its qform without one; without both that of Analyze, as nibabel and SPM read it."""
    affine = np.eye(4)
    if sform_code > 0:
        affine[:3] = np.array(rows).reshape(3, 4)
        return affine
    if qform_code > 0:
        b, c, d = quaternion[:3]
        squared = 1.0 - (b * b + c * c + d * d)
        a = math.sqrt(squared) if squared > 0 else 0.0
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        affine[:3, :3] = rotation * np.array([*spacing[:2], spacing[2] * (-1 if handedness < 0 else 1)])
        affine[:3, 3] = quaternion[3:]
        return affine
    affine[:3, :3] = np.diag([-spacing[0], *spacing[1:]])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write(array: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """A `.nii.gz` of an array i x j x k and its affine to mm (RAS), in NIfTI-1. The same array gives the same bytes."""
    codes = {np.dtype(name).newbyteorder("=").name: code for code, name in DTYPES.items()}
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *array.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, codes[array.dtype.name], 8 * array.itemsize)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    struct.pack_into("<8f", header, 76, 1.0, *spacing.tolist(), 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    header[123] = 2  # mm
    struct.pack_into("<2h", header, 252, 0, 1)  # the affine is in the sform, to the scanner's axes
    struct.pack_into("<12f", header, 280, *affine[:3].ravel().tolist())
    header[344:348] = b"n+1\0"
    samples = np.asarray(array, array.dtype.newbyteorder("<")).tobytes(order="F")
    return gzip.compress(bytes(header) + samples, compresslevel=6, mtime=0)
