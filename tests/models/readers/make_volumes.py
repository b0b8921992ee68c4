"""Writes small volumes: NIfTI by nibabel, DICOM series by pydicom."""

import gzip
import io
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage


def nifti_bytes(array: NDArray[Any], affine: NDArray[np.float64] | None = None, compress: bool = False) -> bytes:
    data: bytes = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes()
    return gzip.compress(data) if compress else data


def patched_nifti(changes: dict[int, bytes], shape: tuple[int, ...] = (4, 5, 6)) -> bytes:
    """A NIfTI-1 file with other bytes at some offsets of its header."""
    data = bytearray(nifti_bytes(np.zeros(shape, np.int16)))
    for offset, content in changes.items():
        data[offset : offset + len(content)] = content
    return bytes(data)


def dim_bytes(*lengths: int) -> bytes:
    """The field `dim` of NIfTI-1, at offset 40."""
    return struct.pack("<8h", len(lengths), *lengths, *[1] * (7 - len(lengths)))


def dicom_bytes(
    pixels: NDArray[Any],
    position: Iterable[float],
    orientation: Iterable[float] = (1, 0, 0, 0, 1, 0),
    spacing: Iterable[float] = (1, 1),
    series: str = "1.2.3",
    **elements: Any,
) -> bytes:
    """One MR image. `elements`: more of them, by keyword."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.SeriesInstanceUID = "Doe^Jane", "ID-4711", series
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [*position], [*orientation]
    dataset.PixelSpacing, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = [*spacing], 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = 8 * pixels.itemsize - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
