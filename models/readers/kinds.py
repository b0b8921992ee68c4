"""Says in one sentence that a file is of other axes than the model: a photograph for a model of volumes, or the reverse."""

from models.errors import ImageError, UnsupportedFormatError
from models.imaging.detect_format import detect_format
from models.readers import dicom, edf, nifti, nrrd, wav, wfdb

# Those that no text or array is taken for. A TIFF may be an image or a volume.
RECORDINGS = {"a WFDB record": wfdb, "an EDF recording": edf, "a WAV recording": wav}
VOLUMES = {"a NIfTI volume": nifti, "an NRRD volume": nrrd, "a DICOM image": dicom}
TIFF = "a TIFF image"
TAKEN = {
    "HW": "images",
    "T": "signals: WFDB (a zip file), EDF, WAV, CSV, npy or npz",
    "DHW": "volumes: NIfTI, NRRD, TIFF stack, npz, or a zip file of a DICOM series",
}


def check_kind(data: bytes, axes: str) -> None:
    """Raises: UnsupportedFormatError if the bytes begin as a file of other axes than the model's."""
    others = VOLUMES if axes == "T" else RECORDINGS  # for a model of images, the decoder says what a volume is
    found = next((name for name, reader in others.items() if reader.sniff(data)), "")
    if not found and axes != "HW":
        found = _image_format(data)
    if found and not (axes == "DHW" and found == TIFF):
        raise UnsupportedFormatError(
            f"This is {found}; the model takes {TAKEN[axes]}. Choose another model, or another file."
        )


def _image_format(data: bytes) -> str:
    """Such as "a PNG image"; empty for anything else."""
    try:
        name = detect_format(data)
    except ImageError:
        return ""
    return f"a{'n' * (name[0] in 'A')} {name} image"
