"""Reader of NIfTI-1 and NIfTI-2 volumes, `.nii` and `.nii.gz` (nifti.nimh.nih.gov, nifti1.h and nifti2.h).

The header is parsed here and not by nibabel: the bytes are untrusted, and their size must be known before anything is inflated.
Tests compare with nibabel.
"""

import math
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers.limits import ReadLimits
from models.readers.names import to_sample_dtype
from models.readers.orientation import spacing_of, to_canonical
from models.readers.volume_limits import check_volume, inflate_start, read_exactly
from models.sample import Frame, NiftiPlacement, Sample
from models.spec import Spacing

GZIP = b"\x1f\x8b"
MAGIC = (b"n+1\0", b"n+2\0")
PAIR_MAGIC = (b"ni1\0", b"ni2\0")  # the header of a pair of files, .hdr and .img
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
# (format, offset) of the fields, by the bytes of the header: NIfTI-1, NIfTI-2.
FIELDS = {
    348: {
        "dim": ("8h", 40), "datatype": ("2h", 70), "pixdim": ("8f", 76), "vox_offset": ("f", 108), "scaling": ("2f", 112),
        "units": ("B", 123), "codes": ("2h", 252), "quaternion": ("6f", 256), "sform": ("12f", 280),
    },
    540: {
        "dim": ("8q", 16), "datatype": ("2h", 12), "pixdim": ("8d", 104), "vox_offset": ("q", 168), "scaling": ("2d", 176),
        "units": ("i", 500), "codes": ("2i", 344), "quaternion": ("6d", 352), "sform": ("12d", 400),
    },
}  # fmt: skip
MAX_NIFTI1_LENGTH = 32767  # of an axis
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
    placement: NiftiPlacement


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
        array = stored.astype(np.float32)
        array *= np.float32(header.slope)
        array += np.float32(header.intercept)
    values, grid = to_canonical(array, header.affine)
    grid = replace(grid, nifti=header.placement)
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

    def read(name: str) -> tuple[Any, ...]:
        form, place = FIELDS[size][name]
        return struct.unpack_from(order + form, head, place)

    try:
        lengths, steps = read("dim"), read("pixdim")
        kind, offset = int(read("datatype")[0]), read("vox_offset")[0]
        (slope, intercept), (qform_code, sform_code) = read("scaling"), read("codes")
        units = int(read("units")[0])
        rotation, rows = read("quaternion"), read("sform")
    except struct.error as error:
        raise CorruptImageError("The NIfTI header is truncated. Save the volume again.") from error
    shape, spacing = _check_lengths(lengths), _check_spacing(lengths, steps)
    if kind not in DTYPES:
        raise UnsupportedFormatError(
            f"The NIfTI has voxels of datatype {kind}; expected integers or floats of up to 64 bits. Save it as float32."
        )
    unit = MM_PER_UNIT.get(units & 7)
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
        NiftiPlacement(
            1 if size == 348 else 2, units & 255, (steps[0], *spacing), (qform_code, sform_code), rotation, rows
        ),
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


def write(array: NDArray[Any], affine: NDArray[np.float64], placement: NiftiPlacement | None = None) -> bytes:
    """A `.nii.gz` of an array i x j x k. The same arguments give the same bytes.

    With `placement`, position and orientation are stored exactly as in the file that it comes from; else the affine, to mm (RAS),
    is the sform of a NIfTI-1, or of a NIfTI-2 for more than 32767 voxels along an axis.
    """
    codes = {np.dtype(name).newbyteorder("=").name: code for code, name in DTYPES.items()}
    if placement is None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        placement = NiftiPlacement(
            1 if max(array.shape) <= MAX_NIFTI1_LENGTH else 2, units=2, pixdim=(1.0, *spacing), codes=(0, 1),
            quaternion=(0.0,) * 6, sform=tuple(affine[:3].ravel().tolist()),
        )  # fmt: skip
    size, magic_place, magic = (348, 344, b"n+1\0") if placement.version == 1 else (540, 4, b"n+2\0\r\n\x1a\n")
    offset = size + 4  # no extension
    header = bytearray(offset)
    struct.pack_into("<i", header, 0, size)
    header[magic_place : magic_place + len(magic)] = magic
    fields: dict[str, tuple[float, ...]] = {
        "dim": (3, *array.shape, 1, 1, 1, 1),
        "datatype": (codes[array.dtype.name], 8 * array.itemsize),
        "pixdim": (*placement.pixdim, 1.0, 1.0, 1.0, 1.0),
        "vox_offset": (offset,),
        "scaling": (1.0, 0.0),
        "units": (placement.units,),
        "codes": placement.codes,
        "quaternion": placement.quaternion,
        "sform": placement.sform,
    }
    for name, numbers in fields.items():
        form, place = FIELDS[size][name]
        struct.pack_into(f"<{form}", header, place, *numbers)
    deflater = zlib.compressobj(level=6, wbits=31)  # slice by slice: the whole array is not copied
    parts = [deflater.compress(header)]
    for k in range(array.shape[2]):
        plane = np.asarray(array[:, :, k], array.dtype.newbyteorder("<"))
        parts.append(deflater.compress(plane.tobytes(order="F")))
    return b"".join([*parts, deflater.flush()])
