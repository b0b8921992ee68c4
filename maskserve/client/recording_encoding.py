"""Encodes recordings for a request: which arguments are recordings, and the bytes to send."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A path, the bytes of a file, or an array of time steps, or of time steps x leads.
RecordingLike = Path | str | bytes | bytearray | memoryview | NDArray[Any]

HEADER_SUFFIX = ".hea"
RECORDING_SUFFIXES = frozenset(
    {HEADER_SUFFIX, ".edf", ".bdf", ".wav", ".csv", ".tsv"}
)  # .npy and .npz may also be images
MAX_HEADER_SIGNALS = 1000


def is_recording(item: Any) -> bool:
    """Whether an argument is a recording by its file's suffix or first bytes, or as an array of one axis."""
    if isinstance(item, Path | str):
        return Path(item).suffix.lower() in RECORDING_SUFFIXES
    if isinstance(item, np.ndarray):
        return item.ndim == 1
    if isinstance(item, bytes | bytearray | memoryview):
        start = bytes(item[:12])
        is_zip = start.startswith(b"PK\3\4")
        return (
            start.startswith((b"0       ", b"\xffBIOSEMI"))
            or (start[:4], start[8:]) == (b"RIFF", b"WAVE")
            or (is_zip and HEADER_SUFFIX.encode() in bytes(item))
        )
    return False


def to_recording_body(recording: Any) -> bytes:
    """The bytes to send: files unchanged, a WFDB record as a zip file of its header and signal files, arrays as `.npy`.

    `recording`: a `RecordingLike`. Raises: OSError for a file that cannot be read; ValueError and TypeError for an argument that
    is not a recording.
    """
    if isinstance(recording, bytes | bytearray | memoryview):
        return bytes(recording)
    if isinstance(recording, Path | str):
        path = Path(recording)
        return pack_record(path) if path.suffix.lower() == HEADER_SUFFIX else path.read_bytes()
    if not isinstance(recording, np.ndarray):
        raise TypeError(f"The recording is a {type(recording).__name__}; send a path, bytes or an array.")
    if recording.dtype.kind not in "uifb" or recording.ndim not in (1, 2) or 0 in recording.shape:
        raise ValueError(
            f"The array is {recording.dtype} of shape {recording.shape}; send numbers of time steps, or of time steps x leads."
        )
    buffer = io.BytesIO()
    np.save(buffer, recording, allow_pickle=False)
    return buffer.getvalue()


def pack_record(header: Path) -> bytes:
    """A WFDB record as a zip file: its header, and the signal files that the header names, which lie beside it.

    Raises: OSError for a file that cannot be read, ValueError for a header that names files elsewhere.
    """
    content = header.read_bytes()
    lines = [line for line in content.decode("latin-1").splitlines() if line.strip() and not line.startswith("#")]
    files = dict.fromkeys(line.split()[0] for line in lines[1 : MAX_HEADER_SIGNALS + 1])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(header.name, content)
        for name in files:
            if not re.fullmatch(r"[\w.+-]+", name) or name in (".", ".."):
                raise ValueError(f"{header} names the signal file '{name}', which is not a file beside it.")
            archive.writestr(name, (header.parent / name).read_bytes())
    return buffer.getvalue()
