"""Encodes volumes for a request: which arguments are volumes, and the bytes to send."""

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskserve.client.recording_encoding import HEADER_SUFFIX

# A path, a folder of the DICOM images of one series, the bytes of a file, or an array D x H x W, or D x H x W x C.
VolumeLike = Path | str | bytes | bytearray | memoryview | NDArray[Any]

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".dcm")  # of files that hold nothing else: .tif and .npz may hold images
NIFTI_STARTS = (struct.pack("<i", 348), struct.pack(">i", 348), struct.pack("<i", 540), struct.pack(">i", 540))


def is_volume(item: Any) -> bool:
    """Whether an argument is a volume by its file's suffix or first bytes, as a folder, or as an array of four axes."""
    if isinstance(item, Path | str):
        return Path(item).name.lower().endswith(VOLUME_SUFFIXES) or Path(item).is_dir()
    if isinstance(item, np.ndarray):
        return item.ndim == 4
    if isinstance(item, bytes | bytearray | memoryview):
        start = bytes(item[:132])
        is_zip = (
            start.startswith(b"PK\3\4") and b".dcm" in bytes(item).lower() and HEADER_SUFFIX.encode() not in bytes(item)
        )
        return start.startswith((b"NRRD", b"\x1f\x8b", *NIFTI_STARTS)) or start[128:] == b"DICM" or is_zip
    return False


def to_volume_body(volume: Any, spacing: Sequence[float] | None = None) -> bytes:
    """The bytes to send: files unchanged, a folder as a zip file of its files, arrays as an npz with their spacing.

    `volume`: a `VolumeLike`; `spacing`: mm along D, H and W of an array. Raises: OSError for a file that cannot be read; ValueError
    and TypeError for an argument that is not a volume.
    """
    if isinstance(volume, np.ndarray):
        return _pack_array(volume, spacing)
    if spacing is not None:
        raise ValueError("`spacing` is for arrays: a file states its own.")
    if isinstance(volume, bytes | bytearray | memoryview):
        return bytes(volume)
    if isinstance(volume, Path | str):
        path = Path(volume)
        return _pack_folder(path) if path.is_dir() else path.read_bytes()
    raise TypeError(f"The volume is a {type(volume).__name__}; send a path, bytes or an array.")


def _pack_array(array: NDArray[Any], spacing: Sequence[float] | None) -> bytes:
    if array.dtype.kind not in "uifb" or array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"The array is {array.dtype} of shape {array.shape}; send numbers of D x H x W, or of D x H x W x C."
        )
    arrays: dict[str, Any] = {"values": array}
    if spacing is not None:
        arrays["spacing"] = steps = np.asarray(spacing, np.float64)
        if steps.shape != (3,) or not (steps > 0).all():
            raise ValueError(f"spacing is {spacing}; expected three numbers above 0, mm along D, H and W.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _pack_folder(folder: Path) -> bytes:
    """The files of a folder as a zip file, under numbers: their names may be those of patients."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        for index, file in enumerate(files):
            archive.writestr(f"{index:06}{file.suffix}", file.read_bytes())
    return buffer.getvalue()
