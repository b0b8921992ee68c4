"""Readers: from the bytes of a file to a `Sample`. Lint, training, evaluation, service and predict all read through them.

A reader is a module with two functions:

    sniff(data) -> bool                 whether it reads files that begin like these bytes
    decode(data, limits) -> Sample      reads the file; raises ImageError and InsufficientMemoryError, nothing else

and one line in the dict of its axes; the first that accepts the bytes reads them. The axes are those of the network's rule: an
array of two axes is an image or a signal. Photographs never come here: for a network that takes them (`InputRule.is_photograph`)
`models/imaging/decode.py` is called as it is. A record of several files, and a folder of slices, are read as one zip file of them
(`read_file`).
"""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from models.errors import ChannelsError, EmptyImageError, UnsupportedFormatError
from models.imaging.decode import MAX_PIXELS, decode_file, decode_image
from models.imaging.files import read_image_file
from models.readers import (
    archive,
    csv_signal,
    dicom,
    edf,
    image,
    nifti,
    npy,
    npy_signal,
    npy_volume,
    nrrd,
    tiff,
    tiff_stack,
    wav,
    wfdb,
)
from models.readers.limits import MAX_VOXELS, ReadLimits
from models.readers.prepare import prepare_sample
from models.readers.signal import HERTZ, check_rate
from models.sample import Sample
from models.spec import InputRule, Spacing

READERS: dict[str, ModuleType] = {"npy": npy, "tiff": tiff, "image": image}
SIGNAL_READERS: dict[str, ModuleType] = {"npy": npy_signal, "edf": edf, "wav": wav, "wfdb": wfdb, "csv": csv_signal}
VOLUME_READERS: dict[str, ModuleType] = {
    "nifti": nifti, "nrrd": nrrd, "npy": npy_volume, "tiff": tiff_stack, "dicom": dicom, "zip": archive,
}  # fmt: skip
READERS_BY_AXES: dict[str, dict[str, ModuleType]] = {"HW": READERS, "T": SIGNAL_READERS, "DHW": VOLUME_READERS}
# By axes: what a file holds, and which files are read. What is wrong with other bytes than an image's, the reader `image` says.
KNOWN_FILES = {
    "T": ("signal", "a WFDB record (a zip file of .hea and .dat), EDF, BDF, WAV, CSV, TSV, npy or npz"),
    "DHW": (
        "volume",
        "NIfTI (.nii, .nii.gz), NRRD, TIFF stack, npy, npz, or a zip file of a DICOM series or of slices",
    ),
}
SAMPLE_SUFFIXES = frozenset({".npy", ".npz"})  # of files that are read beside images (`IMAGE_SUFFIXES`)
VOLUME_SUFFIXES = frozenset({".nii", ".nii.gz", ".nrrd"})  # of files that hold nothing but volumes
SIGNAL_SUFFIXES = frozenset({wfdb.HEADER_SUFFIX, ".edf", ".bdf", ".wav", ".csv", ".tsv", ".npy", ".npz"})


def read_sample(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    axes: str = "HW",
    rate: float | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Sample:
    """Read a file as it is: all its channels, in their own type; signals as float32, in the units of the file.

    `rate`: of a signal whose file states none, in Hz; `max_voxels`: of a volume. Raises: ImageError, InsufficientMemoryError.
    """
    limits = ReadLimits(max_pixels, max_voxels)
    reader = next((reader for reader in READERS_BY_AXES[axes].values() if reader.sniff(data)), None)
    if reader is None and axes in KNOWN_FILES:
        kind, expected = KNOWN_FILES[axes]
        if not data:
            raise EmptyImageError(f"The {kind} is empty (0 bytes). Send the bytes of a file.")
        raise UnsupportedFormatError(
            f"The bytes are no {kind} in a known format; expected {expected}. Convert it to one of them."
        )
    sample: Sample = (reader or image).decode(data, limits)  # `image` says what other bytes are
    if rate is not None and sample.rate not in (None, rate):
        raise ChannelsError(
            f"The file states a sampling rate of {sample.rate:g} Hz, the request rate={rate:g}. Leave rate out."
        )
    if axes == "T" and sample.spacing is None and rate is not None:
        return replace(sample, spacing=Spacing(values=(check_rate(rate),), unit=HERTZ))
    return sample


def read_input(
    data: bytes,
    rule: InputRule,
    max_pixels: int = MAX_PIXELS,
    rate: float | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Sample:
    """Read a file as the network takes it: its channels by name, in order, with missing pixels marked and filled.

    A signal keeps its own rate (`resample.to_rate` changes it), and for a network of the one channel `lead` all its channels.
    Raises: ImageError, InsufficientMemoryError; ChannelsError if the file has other channels or another type of samples.
    """
    if is_photograph(data, rule):
        return Sample(decode_image(data, max_pixels))
    return prepare_sample(read_sample(data, max_pixels, rule.axes, rate, max_voxels), rule)


def is_photograph(data: bytes, rule: InputRule) -> bool:
    """Whether `decode_image` reads the file for the network: it takes photographs, and this is no array."""
    return rule.is_photograph and not npy.sniff(data)


def read_input_file(path: Path, rule: InputRule) -> Sample:
    """As `read_input`, in the sandbox if that is on, with the path at the start of every error message. Raises: also DataError."""
    return decode_file(path, read_input, read=read_file, rule=rule)


def read_file(path: Path) -> bytes:
    """The bytes of a file; of the header of a WFDB record, a zip file of it and its signal files; of a folder, one of its slices.

    Raises: OSError, DataError.
    """
    if path.is_dir():
        return archive.pack_folder(path)
    if path.suffix.lower() != wfdb.HEADER_SUFFIX:
        return read_image_file(path)
    return wfdb.pack_record(path.name, lambda name: read_image_file(path.parent / name))
