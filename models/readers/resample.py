"""Resampling of signals to another rate, and of labels back onto the caller's time base.

A polyphase filter as `scipy.signal.resample_poly` designs it, which serving does without: a Kaiser window of beta 5, ten periods
of the lower rate on either side, cut off at half the lower rate. Beyond its ends a signal keeps its first and last value.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from models.readers.signal import HERTZ, build_signal, check_rate
from models.readers.statistics import sample_statistics
from models.sample import Sample
from models.spec import Spacing

Signal = NDArray[np.float32]  # T x C
HALF_PERIODS, KAISER_BETA = 10, 5.0
MAX_DENOMINATOR = 1000  # of the ratio of two rates: odd rates such as 257.3 Hz become the nearest fraction, off by 1e-6
MAX_RATIO = 1000.0  # of two rates, either way; beyond, a signal is hardly of the kind that the network knows


def to_rate(sample: Sample, rate: float) -> Sample:
    """A signal resampled to `rate` Hz; unchanged if it has that rate, or states none. Time step k is at k / rate seconds.

    Values T x C must be finite (`prepare_sample` fills missing ones). `valid` goes by nearest time step.
    Raises: ConfigError if the rates differ by more than a factor of 1000.
    """
    if sample.spacing is None or sample.spacing.values[0] == rate:
        return sample
    ratio = rate_ratio(sample.spacing.values[0], rate)
    values = resample(sample.values, ratio)
    valid = sample.valid
    if valid is not None:
        valid = valid[nearest_steps(len(values), len(valid), float(ratio))]
    statistics = (
        None if sample.statistics is None else sample_statistics(values, valid)
    )  # as a recording at this rate has
    return replace(
        sample, values=values, valid=valid, statistics=statistics, spacing=Spacing(values=(rate,), unit=HERTZ)
    )


def rate_ratio(old: float, new: float) -> Fraction:
    """new / old, as a fraction of small numbers. Raises: ConfigError."""
    ratio = check_rate(new) / check_rate(old)
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        raise ConfigError(
            f"A signal of {old:g} Hz cannot be resampled to {new:g} Hz; the rates may differ by a factor of {MAX_RATIO:g}."
        )
    return Fraction(ratio).limit_denominator(MAX_DENOMINATOR)


def resample(values: NDArray[np.floating], ratio: Fraction) -> Signal:
    """Values T x C at `ratio` times their rate, float32 ceil(T x ratio) x C."""
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return np.asarray(values, np.float32)
    half = HALF_PERIODS * max(up, down)
    times = np.arange(-half, half + 1)
    taps = np.sinc(times / max(up, down)) * np.kaiser(2 * half + 1, KAISER_BETA)
    taps = (taps * (up / taps.sum())).astype(np.float32)
    length = -(-len(values) * up // down)
    result = np.zeros((length, values.shape[1]), np.float32)
    for channel in range(values.shape[1]):  # one at a time: a day's recording needs no second copy of all
        result[:, channel] = _resample_channel(values[:, channel], up, down, taps, length)
    return result


def _resample_channel(
    values: NDArray[np.floating], up: int, down: int, taps: NDArray[np.float32], length: int
) -> NDArray[np.float32]:
    """One channel, T. Output k lies at k * down in steps of the upsampled signal; those with one remainder use the same taps."""
    half = len(taps) // 2
    reach = half // up + 1  # of input steps that one output step needs, on either side
    needed = (length - 1) * down // up + reach + 1 - len(values)
    padded = np.pad(np.asarray(values, np.float32), (reach, max(0, needed)), mode="edge")
    result = np.zeros(length, np.float32)
    for first in range(min(up, length)):
        start, phase = divmod(first * down, up)
        outputs = result[first::up]
        for offset in range(-((half + phase) // up), (half - phase) // up + 1):
            begin = reach + start - offset
            outputs += taps[half + offset * up + phase] * padded[begin : begin + (len(outputs) - 1) * down + 1 : down]
    return result


def nearest_steps(length: int, old_length: int, ratio: float) -> NDArray[np.int64]:
    """For each of `length` new time steps, the nearest of the old ones; `ratio`: new rate / old rate."""
    return np.minimum((np.arange(length) / ratio + 0.5).astype(np.int64), old_length - 1)


def labels_to_length(
    labels: NDArray[np.uint8], confidence: NDArray[np.float32] | None, length: int, ratio: float | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Labels T and their confidence at another number of time steps, by nearest step.

    `ratio`: the rate wanted / the rate of the labels; by default that of the lengths, which is off by up to a step at the end.
    """
    if length == len(labels) and ratio in (None, 1.0):
        return labels, confidence
    steps = nearest_steps(length, len(labels), ratio or length / len(labels))
    return labels[steps], None if confidence is None else confidence[steps]


def join_rates(columns: Sequence[Signal], rates: Sequence[float], names: Sequence[str], units: Sequence[str]) -> Sample:
    """Channels of one recording, each T of its own rate, as one sample at the highest rate. Raises: ImageError."""
    highest = max(rates)
    if all(rate == highest for rate in rates):
        return build_signal(np.stack(columns, axis=1), highest, names, units)
    length = max(len(column) for column, rate in zip(columns, rates, strict=True) if rate == highest)
    values = np.empty((length, len(columns)), np.float32)
    for index, (column, rate) in enumerate(zip(columns, rates, strict=True)):
        finite = np.nan_to_num(column, nan=float(np.nanmean(column)) if np.isfinite(column).any() else 0.0)
        raised = resample(finite[:, None], rate_ratio(rate, highest))[:length, 0]
        values[:, index] = np.pad(raised, (0, length - len(raised)), mode="edge")
    return build_signal(values, highest, names, units)
