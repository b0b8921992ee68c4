"""Reader of zip files that hold one volume: the DICOM images of a series, images as slices in the order of their names, or volumes
(NIfTI, NRRD) as its channels in that order.

A folder of them is packed into such a zip in memory (`pack_folder`), so that both take the same way.
"""

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.errors import ImageTooLargeError, UnsupportedFormatError
from models.imaging.decode import IMAGE_SUFFIXES
from models.imaging.files import read_image_file
from models.readers import dicom, image, nifti, npy, nrrd, tiff
from models.readers.limits import ReadLimits
from models.readers.volume_channels import describe_mismatch, stack_channels
from models.readers.volume_limits import check_volume
from models.readers.zip_members import Readable, read_members
from models.sample import Sample

MAGIC = b"PK\3\4"
MAX_FILES = 5000
CHANNEL_SUFFIXES = (".nii", ".nii.gz", ".nrrd")
HEADER_BYTES = 64 << 10  # of each file, beside its samples
DICOM_START_BYTES = 132  # by which a file is known as DICOM
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like a zip file that is no npz."""
    return data.startswith(MAGIC) and not npy.sniff(data)


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read the one volume of a zip file. Raises: ImageError; EngineError without pydicom."""
    files = _unpack(data, limits)
    names = sorted(files, key=natural_key)
    images = [files[name] for name in names if dicom.sniff(files[name])]
    if images:
        return dicom.decode_series(images, limits)
    channels = [files[name] for name in names if name.lower().endswith(CHANNEL_SUFFIXES)]
    if channels:
        return decode_channels(channels, limits)
    slices = [files[name] for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not slices:
        raise UnsupportedFormatError(
            f"The zip holds {len(files):,} files, and none is a DICOM image, a slice as PNG or TIFF, or a channel as .nii.gz or "
            ".nrrd. Send a TIFF stack or an npz as it is."
        )
    return decode_slices(slices, limits)


def decode_channels(files: list[bytes], limits: ReadLimits) -> Sample:
    """NIfTI and NRRD files of one grid as the channels of a volume, D x H x W x C. Raises: ImageError."""
    share = replace(limits, max_voxels=limits.max_voxels // len(files))
    parts = []
    for index, data in enumerate(files):
        reader = next((reader for reader in (nifti, nrrd) if reader.sniff(data)), None)
        if reader is None:
            raise UnsupportedFormatError(f"Channel {index + 1} of the zip is neither NIfTI nor NRRD. Pack it again.")
        parts.append(reader.decode(data, share))
        if problem := describe_mismatch(parts[0], parts[-1]):
            raise UnsupportedFormatError(
                f"The files of the zip are channels of one volume, but {problem} (channel {index + 1}). Resample one to the other."
            )
    return stack_channels(parts)


def decode_slices(slices: list[bytes], limits: ReadLimits) -> Sample:
    """Images of one size and type as the slices of a volume, D x H x W x C. Raises: ImageError."""
    first = _decode_slice(slices[0], limits)
    height, width, channels = first.values.shape
    check_volume((len(slices), height, width), channels, first.values.itemsize, limits)
    values = np.empty((len(slices), *first.values.shape), first.values.dtype)
    values[0] = first.values
    same = replace(limits, max_pixels=height * width)
    for index, data in enumerate(slices[1:], 1):
        try:
            each = _decode_slice(data, same)
        except ImageTooLargeError as error:  # by its header
            raise UnsupportedFormatError(
                f"Slices 1 and {index + 1} differ: slice 1 has {width} x {height} pixels, the other one more; expected slices of "
                "one volume."
            ) from error
        if (each.values.shape, each.dtype) != (first.values.shape, first.dtype):
            sizes = " and ".join(
                f"{one.values.shape[1]} x {one.values.shape[0]} of {one.describe()}" for one in (first, each)
            )
            raise UnsupportedFormatError(f"Slices 1 and {index + 1} differ: {sizes}; expected slices of one volume.")
        values[index] = each.values
    return Sample(values, "DHW", first.channels)


def pack_folder(folder: Path) -> bytes:
    """The files of a folder that are slices or DICOM images, as an uncompressed zip. Raises: DataError, OSError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file() and (file.suffix.lower() in DICOM_SUFFIXES | IMAGE_SUFFIXES or not file.suffix):
                archive.writestr(file.name, read_image_file(file))
    return buffer.getvalue()


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts `slice2` before `slice10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,99})", name)]


def _decode_slice(data: bytes, limits: ReadLimits) -> Sample:
    return tiff.decode(data, limits) if tiff.sniff(data) else image.decode(data, limits)


def _unpack(data: bytes, limits: ReadLimits) -> dict[str, bytes]:
    """The files of the zip by name. Raises: ImageError for more than the limits, before anything is inflated."""

    def check(members: Sequence[zipfile.ZipInfo]) -> None:
        budget, total = 8 * limits.max_voxels + HEADER_BYTES * len(members), sum(member.file_size for member in members)
        if len(members) > MAX_FILES or total > budget:
            raise ImageTooLargeError(
                f"The zip holds {len(members):,} files of {total:,} bytes; the limits are {MAX_FILES:,} files and {budget:,} "
                "bytes. Send one volume."
            )

    # Libraries name the file, which may be named after the patient: their text is left out.
    broken = "The zip is truncated, corrupt or encrypted. Pack it again."
    return read_members(data, check, _read_known, lambda error: broken)


def _read_known(name: str, file: Readable) -> bytes:
    """The bytes of a slice, a channel or a DICOM image; of another file, those by which it is known as DICOM."""
    start = file.read(DICOM_START_BYTES)
    by_name = name.lower().endswith(CHANNEL_SUFFIXES) or Path(name).suffix.lower() in IMAGE_SUFFIXES
    is_read = by_name or dicom.sniff(start)
    return start + file.read() if is_read else start
