"""A sample: what a network segments, whatever file it came from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import RGB_CHANNELS, Spacing

Values = NDArray[Any]  # [*axes, C], one of SAMPLE_DTYPES
Valid = NDArray[np.bool_]  # [*axes], False where data is missing
Statistics = NDArray[np.float32]  # 2 x C: what is subtracted from each channel, and by what the rest is divided


@dataclass(frozen=True)
class Frame:
    """Where a sample lies in the world, to put an answer back there."""

    affine: tuple[float, float, float, float, float, float] | None = (
        None  # a b c d e f: x = a col + b row + c, y = d ...
    )
    crs: str = ""  # such as EPSG:32633; empty if unknown


@dataclass(frozen=True)
class Sample:
    """Values with their axes and channels. An RGB photograph is one case of it.

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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def dtype(self) -> str:
        """The type of the values, such as `uint16`."""
        return str(self.values.dtype)

    def describe(self) -> str:
        """Channels and type, such as "4 channels of uint16 (red, green, blue, nir)"."""
        count = f"{len(self.channels)} channel{'s' * (len(self.channels) > 1)}"
        return f"{count} of {self.dtype} ({', '.join(self.channels)})"
