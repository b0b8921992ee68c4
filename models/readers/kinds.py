"""Says in one sentence that a file is of other axes than the model: a photograph for a model of signals, or the reverse."""

from models.errors import ImageError, UnsupportedFormatError
from models.imaging.detect_format import detect_format
from models.readers import edf, wav, wfdb

RECORDINGS = {
    "a WFDB record": wfdb,
    "an EDF recording": edf,
    "a WAV recording": wav,
}  # those that no text or array is taken for


def check_kind(data: bytes, axes: str) -> None:
    """Raises: UnsupportedFormatError if the bytes begin as a file of other axes than the model's."""
    if axes == "T":
        found, taken = _image_format(data), "signals: WFDB (a zip file), EDF, WAV, CSV, npy or npz"
    else:
        found, taken = next((name for name, reader in RECORDINGS.items() if reader.sniff(data)), ""), "images"
    if found:
        raise UnsupportedFormatError(
            f"This is {found}; the model takes {taken}. Choose another model, or another file."
        )


def _image_format(data: bytes) -> str:
    """Such as "a PNG image"; empty for anything else."""
    try:
        name = detect_format(data)
    except ImageError:
        return ""
    return f"a{'n' * (name[0] in 'A')} {name} image"
