"""Reader of DICOM: one image, or the images of one series, sorted by their position (PS3.3 C.7.6.2).

Needs pydicom. Only the elements that are listed here are read, so that nothing about the patient can reach a log, an error or an
answer; for the same reason, messages count files and do not name them. A series with a missing slice, or with a tilted gantry,
is refused: its voxels lie on no grid.
"""

import io
import logging
import math
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.errors import CorruptImageError, EngineError, UnsupportedFormatError
from models.imaging.header_limits import check_jpeg
from models.readers.limits import ReadLimits
from models.readers.names import to_sample_dtype
from models.readers.orientation import spacing_of, to_canonical
from models.readers.volume_limits import check_volume
from models.sample import Frame, Sample
from models.spec import Spacing

MISSING_PACKAGE = "Reading DICOM needs pydicom: pip install maskserve[volumes]"
KEYWORDS = (
    "SOPClassUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PixelData",
)  # fmt: skip
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax, which pydicom inflates whole, whatever its size
# Items of sequences and their ends (PS3.5, 7.5), with the lowest byte first or last. pydicom takes 0.1 ms for each.
ITEM_TAGS, MAX_ITEMS = (b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\x00", b"\xff\xfe\xe0\xdd"), 4000
MAX_STEP_DEVIATION = 0.05  # of the usual distance of slices
MAX_TILT_DEGREES = 0.5
CONVERT_ADVICE = "Convert it to NIfTI (dcm2niix), and send that."


class _Slice(NamedTuple):
    dataset: Any  # of pydicom
    size: tuple[int, int]  # rows and columns
    position: NDArray[np.float64]  # mm, of the first voxel (LPS)
    row: NDArray[np.float64]  # direction of increasing columns
    column: NDArray[np.float64]  # direction of increasing rows


def sniff(data: bytes) -> bool:
    """Whether the bytes begin like a DICOM file (PS3.10)."""
    return data[128:132] == b"DICM"


def decode(data: bytes, limits: ReadLimits) -> Sample:
    """Read one image as a volume of one slice. Raises: as `decode_series`."""
    return decode_series([data], limits)


def decode_series(files: list[bytes], limits: ReadLimits) -> Sample:
    """The images of one series, in any order: values D x H x W x 1 in canonical orientation; float32 if they are rescaled.

    Raises: ImageError; EngineError without pydicom.
    """
    slices = [found for index, data in enumerate(files) if (found := _read_slice(data, index, len(files)))]
    if not slices:
        raise UnsupportedFormatError("The DICOM files hold no images. Send the images of one series.")
    _check_one_series(slices)
    check_volume((len(slices), *slices[0].size), 1, max(1, slices[0].dataset.BitsAllocated // 8), limits)
    slices, step = _sort(slices)
    array = _pixels(slices)
    first, spacing = slices[0], _numbers(slices[0].dataset.PixelSpacing, 2, "pixel spacing")
    if min(spacing) <= 0:
        raise CorruptImageError(
            f"The DICOM has a pixel spacing of {spacing[0]:g} x {spacing[1]:g} mm; expected more than 0."
        )
    affine = np.eye(4)
    affine[:3] = np.column_stack([first.row * spacing[1], first.column * spacing[0], step, first.position])
    affine[:2] *= -1  # DICOM's x and y run to the left and to the back
    values, grid = to_canonical(array.transpose(2, 1, 0), affine)
    return Sample(values[..., None], "DHW", ("gray",), Spacing(values=spacing_of(grid), unit="mm"), Frame(grid=grid))


def _read_slice(data: bytes, index: int, count: int) -> _Slice | None:
    """One image; None for a file that holds none, such as a DICOMDIR or a report."""
    try:
        import pydicom
    except ImportError as error:
        raise EngineError(MISSING_PACKAGE) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its messages may quote elements
    where = f"File {index + 1} of {count}"
    if DEFLATED in data:
        raise UnsupportedFormatError(f"{where} is a deflated DICOM. {CONVERT_ADVICE}")
    if sum(map(data.count, ITEM_TAGS)) > MAX_ITEMS:
        raise UnsupportedFormatError(
            f"{where} is a DICOM of more than {MAX_ITEMS:,} items of sequences. {CONVERT_ADVICE}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they may quote elements
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(KEYWORDS))
            if "PixelData" not in dataset:
                return None
            frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
            geometry = [dataset.get("ImagePositionPatient"), dataset.get("ImageOrientationPatient")]
            size = (int(dataset.Rows), int(dataset.Columns))
            dataset.BitsAllocated = int(dataset.BitsAllocated)
            scale = [float(dataset.get(name) or 0) for name in ("SliceThickness", "RescaleSlope", "RescaleIntercept")]
            if not all(map(math.isfinite, scale)):
                raise ValueError
    except Exception:  # pydicom raises exceptions of many classes, and quotes the file
        raise CorruptImageError(f"{where} is no valid DICOM. Export the series again.") from None
    if frames > 1:
        raise UnsupportedFormatError(f"{where} is a multi-frame DICOM of {frames:,} frames. {CONVERT_ADVICE}")
    if samples != 1:
        raise UnsupportedFormatError(
            f"{where} is a DICOM of {samples} samples per pixel, so a photograph; expected gray."
        )
    if None in geometry or dataset.get("PixelSpacing") is None:
        raise UnsupportedFormatError(
            f"{where} does not say how it lies in the patient (position, orientation, pixel spacing). Export the series again, or "
            "send the images as a TIFF stack."
        )
    position = _numbers(geometry[0], 3, "position")
    cosines = _numbers(geometry[1], 6, "orientation")
    row, column = cosines[:3], cosines[3:]
    if abs(row @ column) > 0.01 or abs(np.linalg.norm(row) - 1) > 0.01 or abs(np.linalg.norm(column) - 1) > 0.01:
        raise CorruptImageError(
            f"{where} has an orientation that is no pair of perpendicular directions. {CONVERT_ADVICE}"
        )
    return _Slice(dataset, size, position, row, column)


def _check_one_series(slices: list[_Slice]) -> None:
    series = Counter(str(each.dataset.get("SeriesInstanceUID", "")) for each in slices)
    if len(series) > 1:
        listed = " and ".join(f"{count:,}" for _, count in series.most_common(3))
        raise UnsupportedFormatError(
            f"The files are of {len(series)} DICOM series, of {listed} images{' ...' if len(series) > 3 else ''}; expected one. "
            "Send each series by itself."
        )
    first = slices[0]
    for each in slices:
        sizes = {first.size, each.size}
        if len(sizes) > 1:
            listed = " and ".join(f"{columns} x {rows}" for rows, columns in sorted(sizes))
            raise UnsupportedFormatError(
                f"The images of the DICOM series have different sizes, {listed}. {CONVERT_ADVICE}"
            )
        if each.row @ first.row < 0.9999 or each.column @ first.column < 0.9999:
            raise UnsupportedFormatError(
                "The images of the DICOM series lie in different planes, as those of a localizer do; expected parallel slices."
            )


def _sort(slices: list[_Slice]) -> tuple[list[_Slice], NDArray[np.float64]]:
    """The slices along their normal, and the step from one to the next in mm. Raises: ImageError if they lie on no grid."""
    normal = np.cross(slices[0].row, slices[0].column)
    normal /= np.linalg.norm(normal)
    slices = sorted(slices, key=lambda each: float(each.position @ normal))
    if len(slices) == 1:
        thickness = float(slices[0].dataset.get("SliceThickness") or 0)
        return slices, normal * (thickness if math.isfinite(thickness) and thickness > 0 else 1.0)
    positions = np.array([each.position for each in slices])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    if steps.min() <= 1e-4:
        same = int(steps.argmin()) + 1
        raise UnsupportedFormatError(
            f"Slices {same} and {same + 1} of the DICOM series, along its axis, lie at the same position: the series has images "
            "twice, or several times or echoes. Send one volume."
        )
    tolerance = max(MAX_STEP_DEVIATION * usual, 0.01)
    wrong = np.flatnonzero(np.abs(steps - usual) > tolerance)
    if len(wrong):
        place = int(wrong[np.abs(steps[wrong] - usual).argmax()])
        missing = round(float(steps[place] / usual)) - 1
        reason = (
            f"{missing} {'slice is' if missing == 1 else 'slices are'} missing" if missing > 0 else "uneven distances"
        )
        raise UnsupportedFormatError(
            f"The DICOM series has a gap: slices {place + 1} and {place + 2} along its axis are {steps[place]:.4g} mm apart, and "
            f"the others {usual:.4g} mm ({reason}). Export all slices of the series again."
        )
    whole = positions[-1] - positions[0]
    along = float(whole @ normal)
    tilt = math.degrees(math.atan2(float(np.linalg.norm(whole - along * normal)), along))
    if tilt > MAX_TILT_DEGREES:
        raise UnsupportedFormatError(
            f"The DICOM series was taken with a gantry tilt of {tilt:.1f} degrees: its voxels are no boxes. Correct the tilt "
            "(dcm2niix does), and send the NIfTI."
        )
    return slices, normal * along / (len(slices) - 1)


def _pixels(slices: list[_Slice]) -> NDArray[Any]:
    """The samples, D x H x W, rescaled where the images say so."""
    scales = [
        (float(each.dataset.get("RescaleSlope", 1) or 1), float(each.dataset.get("RescaleIntercept", 0) or 0))
        for each in slices
    ]
    rescaled = any(scale != (1.0, 0.0) for scale in scales)
    volume: NDArray[Any] | None = None
    for index, (each, (slope, intercept)) in enumerate(zip(slices, scales, strict=True)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _check_frame(each)
                plane = to_sample_dtype(np.asarray(each.dataset.pixel_array))
        except MemoryError:
            raise
        except Exception:  # the decoders of compressed pixels raise exceptions of many classes
            raise CorruptImageError(
                f"The pixels of slice {index + 1} of the DICOM series cannot be decoded: they are truncated, or compressed in a "
                f"way that is not supported. {CONVERT_ADVICE}"
            ) from None
        if rescaled:
            plane = plane.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        if volume is None:
            volume = np.empty((len(slices), *plane.shape), plane.dtype)
        if plane.shape != volume.shape[1:] or plane.dtype != volume.dtype:
            raise UnsupportedFormatError(
                f"The images of the DICOM series have different types, {volume.dtype} and {plane.dtype}. {CONVERT_ADVICE}"
            )
        volume[index] = plane
    assert volume is not None
    return volume


def _check_frame(each: _Slice) -> None:
    """Raises: ValueError for compressed pixels of another size than the elements state: they are decoded before it is noticed."""
    from pydicom.encaps import get_frame

    if not each.dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frame = get_frame(each.dataset.PixelData, 0, number_of_frames=1)
    if frame.startswith(b"\xff\xd8"):
        check_jpeg(frame, math.prod(each.size))
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            found = image.size
    except UnidentifiedImageError:  # run-length encoding, lossless JPEG and others, which have no header to trust
        return
    if found != each.size[::-1]:
        raise ValueError(f"{found} in {each.size}")


def _numbers(values: Any, count: int, name: str) -> NDArray[np.float64]:
    try:
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise CorruptImageError(f"The DICOM's {name} is not {count} numbers. Export the series again.") from None
    return found
