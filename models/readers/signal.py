"""What all readers of signals share: the checks of rate and length, and the names of channels."""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import CorruptImageError, UnsupportedFormatError
from models.readers.limits import ReadLimits
from models.readers.names import is_generic
from models.sample import Sample, Values
from models.spec import Spacing

HERTZ = "Hz"  # the unit of `Spacing` whose value is the sampling rate, not the distance of two samples
LEAD = "lead"  # the one channel of a network that takes each lead of a recording by itself, whatever its name
MIN_STEPS = 2  # a shorter signal has no duration


def decode_24(data: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Samples of 24 bits, lowest byte first, with their sign; `data`: three bytes a sample, in any shape."""
    parts = data.reshape(-1, 3).astype(np.int32)
    return (parts[:, 0] | parts[:, 1] << 8 | parts[:, 2] << 16) << 8 >> 8


def build_signal(values: Values, rate: float | None, names: Sequence[str] = (), units: Sequence[str] = ()) -> Sample:
    """A `Sample` with the axes `T` of values T x C, as float32; `rate` in Hz, None where the file states none.

    Raises: CorruptImageError for a rate that is not above 0, or fewer than 2 time steps.
    """
    length, count = values.shape
    check_length(length, count)
    spacing = None if rate is None else Spacing(values=(check_rate(rate),), unit=HERTZ)
    return Sample(
        np.ascontiguousarray(values, np.float32),
        "T",
        signal_names(names, count),
        spacing,
        units=tuple(unit.strip() for unit in units) if any(unit.strip() for unit in units) else (),
    )


def allocate_columns(lengths: Sequence[int]) -> tuple[Values | None, list[NDArray[np.float32]]]:
    """An array for each channel, of these lengths, to be filled; where all are equal, columns of one table T x C, else None."""
    if len(set(lengths)) > 1:
        return None, [np.empty(length, np.float32) for length in lengths]
    table = np.empty((lengths[0], len(lengths)), np.float32)
    return table, list(table.T)


def check_rate(rate: float) -> float:
    """The rate. Raises: CorruptImageError if it is not a number above 0."""
    if not (math.isfinite(rate) and rate > 0):
        raise CorruptImageError(
            f"The signal has the sampling rate {rate:g} Hz; expected a number above 0. Correct it in the file's header."
        )
    return float(rate)


def check_length(length: int, channels: int) -> None:
    """Raises: CorruptImageError for a signal without channels, or with fewer than 2 time steps."""
    if channels < 1:
        raise CorruptImageError("The signal has no channels; expected at least 1. Export it again, with its leads.")
    if length < MIN_STEPS:
        raise CorruptImageError(
            f"The signal has {length} time step{'s' * (length != 1)}; expected at least {MIN_STEPS}. Export it again."
        )


def check_signal_size(limits: ReadLimits, length: int, channels: int, sample_bytes: int = 4) -> None:
    """Check what a header states, before samples are read. Raises: ImageTooLargeError, ImageError."""
    check_length(length, channels)
    limits.check_signal(length, channels, sample_bytes)


def check_axes(length: int, channels: int) -> None:
    """Raises: UnsupportedFormatError for an array of channels x time steps: its axes are the wrong way round."""
    if channels > length >= 1:
        raise UnsupportedFormatError(
            f"The array has {length:,} time steps of {channels:,} channels; the axes are time, channels. Transpose it."
        )


def signal_names(found: Sequence[str], count: int) -> tuple[str, ...]:
    """One name for each channel: those that were found, cleaned and unique; `channel1`, `channel2` ... for others."""
    names: list[str] = []
    for index in range(count):
        name = re.sub(r"[\s,=]+", "_", found[index].strip())[:64] if index < len(found) else ""
        if not name.isprintable() or not name or name.lower() in (other.lower() for other in names):
            name = f"channel{index + 1}"
        names.append(name)
    return tuple(names)


def is_lead_of_any_name(channels: tuple[str, ...]) -> bool:
    """Whether a network with these channels takes any one lead: its only channel is `lead`, or only counts."""
    return len(channels) == 1 and (channels[0].lower() == LEAD or is_generic(channels[0]))
