"""A sample: what a network segments, whatever file it came from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import RGB_CHANNELS, Spacing

Values = NDArray[Any]  # [*axes, C], one of SAMPLE_DTYPES
Valid = NDArray[np.bool_]  # [*axes], False where data is missing
Statistics = NDArray[np.float32]  # 2 x C: what is subtracted from each channel, and by what the rest is divided

MM3_PER_ML = 1000.0

Affine4 = tuple[tuple[float, float, float, float], ...]  # 4 rows, the last (0, 0, 0, 1)


@dataclass(frozen=True)
class NiftiPlacement:
    """The fields of a NIfTI header that say where its voxels lie, as they are stored (nifti1.h)."""

    version: int  # 1 or 2
    units: int  # `xyzt_units`
    pixdim: tuple[float, ...]  # 4 numbers: the handedness of the qform, then the spacing of i, j, k
    codes: tuple[int, int]  # `qform_code`, `sform_code`
    quaternion: tuple[float, ...]  # 6 numbers: b, c, d and the offsets
    sform: tuple[float, ...]  # 12 numbers: 3 rows


@dataclass(frozen=True)
class VolumeGrid:
    """The grid of a volume's file, to put an answer back into it voxel for voxel (`models/readers/orientation.py`).

    A file counts its axes in its own order, here `i, j, k`; a sample's axes are D, H, W.
    """

    shape: tuple[int, int, int]  # voxels along i, j, k
    affine: Affine4  # from (i, j, k, 1) to (x, y, z, 1) in mm: x to the patient's right, y to the front, z to the head
    order: tuple[int, int, int] = (0, 1, 2)  # for D, H and W: the file's axis
    flipped: tuple[bool, bool, bool] = (False, False, False)  # for D, H and W: whether they run against that axis
    dtype: str = "float32"  # of the file's samples
    nifti: NiftiPlacement | None = None  # of a NIfTI, so that an answer has the same header


@dataclass(frozen=True)
class Frame:
    """Where a sample lies in the world, to put an answer back there; when a recording began."""

    affine: tuple[float, float, float, float, float, float] | None = (
        None  # a b c d e f: x = a col + b row + c, y = d ...
    )
    crs: str = ""  # such as EPSG:32633; empty if unknown
    grid: VolumeGrid | None = None  # of a volume whose file says how it lies in the patient
    start: str = ""  # of a recording, such as 2026-03-01T12:30:00; empty if unknown


@dataclass(frozen=True)
class Sample:
    """Values with their axes and channels. An RGB photograph is one case of it.

    `axes` are HW for an image, T for a signal, DHW for a volume. The channels of a signal are its leads, and its `spacing` is
    the sampling rate, one value with the unit Hz.

    `valid` is False where a file marks pixels as missing (an alpha band, a mask); None if it marks none. `nodata` is the value
    that the file names for missing samples. `statistics` are those of the whole sample, for the scaling `zscore`.
    """

    values: Values
    axes: str = "HW"
    channels: tuple[str, ...] = RGB_CHANNELS
    spacing: Spacing | None = None
    frame: Frame | None = None
    nodata: float | None = None
    valid: Valid | None = None
    statistics: Statistics | None = None
    units: tuple[str, ...] = ()  # of the values, by channel, such as mV; empty if the file states none

    @property
    def size(self) -> tuple[int, ...]:
        """The length of each axis: (height, width) of an image in pixels, (time steps,) of a signal."""
        return self.values.shape[: len(self.axes)]

    @property
    def rate(self) -> float | None:
        """The sampling rate of a signal in Hz; None if it is not known, and for other axes."""
        return self.spacing.values[0] if self.axes == "T" and self.spacing else None

    @property
    def dtype(self) -> str:
        """The type of the values, such as `uint16`."""
        return str(self.values.dtype)

    def describe(self) -> str:
        """Channels and type, such as "4 channels of uint16 (red, green, blue, nir)"."""
        count = f"{len(self.channels)} channel{'s' * (len(self.channels) > 1)}"
        return f"{count} of {self.dtype} ({', '.join(self.channels)})"
