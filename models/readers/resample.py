"""Resampling of signals to another rate, and of labels back onto the caller's time base.

A polyphase filter as `scipy.signal.resample_poly` designs it, which serving does without: a Kaiser window of beta 5, ten periods
of the lower rate on either side, cut off at half the lower rate. Beyond its ends a signal keeps its first and last value.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError, ImageTooLargeError, UnsupportedFormatError, quoted
from models.readers.signal import HERTZ, build_signal, check_rate
from models.readers.statistics import sample_statistics
from models.sample import Sample
from models.spec import Spacing

Signal = NDArray[np.float32]  # T x C
HALF_PERIODS, KAISER_BETA = 10, 5.0
MAX_DENOMINATOR = 1000  # of the ratio of two rates: odd rates such as 257.3 Hz become the nearest fraction, off by 1e-6
MAX_RATIO = 1000.0  # of two rates, either way; beyond, a signal is hardly of the kind that the network knows
MAX_GROWTH, MIN_SAMPLES = 32, 1 << 22  # samples for each one that a file holds; a signal of fewer samples may grow more
MAX_SAMPLES = 100_000_000  # of all channels
# Numbers of phases of taps, and of time steps that use the same one: with more phases and fewer steps, a call of NumPy for each
# phase takes longer than all steps at once.
MIN_PHASES, MIN_STEPS = 16, 64
CACHED_STEPS = 1 << 15  # time steps whose input stays in the processor's cache while one tap after the other is added
BLOCK_SAMPLES = 1 << 20  # that are handled together: a day's recording needs no second copy of all


def to_rate(sample: Sample, rate: float) -> Sample:
    """A signal resampled to `rate` Hz; unchanged if it has that rate, or states none. Time step k is at k / rate seconds.

    Values T x C must be finite (`prepare_sample` fills missing ones). `valid` goes by nearest time step.
    Raises: ConfigError if the rates differ by more than a factor of 1000; ImageTooLargeError.
    """
    if sample.spacing is None or sample.spacing.values[0] == rate:
        return sample
    ratio = rate_ratio(sample.spacing.values[0], rate)
    check_growth(sample.values.size, math.ceil(len(sample.values) * ratio) * sample.values.shape[1], rate)
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


def all_to_rate(samples: Sequence[Sample], rate: float) -> list[Sample]:
    """As `to_rate`, for signals of one length, rate and number of channels, such as the leads of a recording, together."""
    first = samples[0]
    if len(samples) == 1 or first.rate in (None, rate) or any(sample.valid is not None for sample in samples):
        return [to_rate(sample, rate) for sample in samples]
    columns = to_rate(
        replace(first, values=np.concatenate([sample.values for sample in samples], axis=1), statistics=None), rate
    )
    values, count = columns.values, first.values.shape[1]
    parts = [slice(start, start + count) for start in range(0, values.shape[1], count)]
    return [
        replace(
            sample,
            values=values[:, part],
            statistics=None if sample.statistics is None else sample_statistics(values[:, part]),
            spacing=columns.spacing,
        )
        for sample, part in zip(samples, parts, strict=True)
    ]


def rate_ratio(old: float, new: float) -> Fraction:
    """new / old, as a fraction of small numbers. Raises: ConfigError."""
    ratio = check_rate(new) / check_rate(old)
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        raise ConfigError(
            f"A signal of {old:g} Hz cannot be resampled to {new:g} Hz; the rates may differ by a factor of {MAX_RATIO:g}."
        )
    return Fraction(ratio).limit_denominator(MAX_DENOMINATOR)


def check_growth(stored: int, resampled: int, rate: float) -> None:
    """Raises: ImageTooLargeError for many more samples than the file holds, or more than any file may hold."""
    limit = min(MAX_SAMPLES, max(MIN_SAMPLES, MAX_GROWTH * stored))
    if resampled > max(stored, limit):
        raise ImageTooLargeError(
            f"At {rate:g} Hz the signal would have {resampled:,} samples, from {stored:,} in the file; the limit is {limit:,}. "
            "Correct the rate in the file, or send a shorter part."
        )


def resample(values: NDArray[np.floating], ratio: Fraction) -> Signal:
    """Values T x C at `ratio` times their rate, float32 ceil(T x ratio) x C."""
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return np.asarray(values, np.float32)
    taps = _make_taps(up, down)
    length = -(-len(values) * up // down)
    result = np.zeros((length, values.shape[1]), np.float32)
    together = max(1, BLOCK_SAMPLES // max(length, len(values)))
    for first in range(0, values.shape[1], together):
        channels = slice(first, first + together)
        result[:, channels] = _resample_channels(values[:, channels].T, up, down, taps, length).T
    return result


@lru_cache(maxsize=16)
def _make_taps(up: int, down: int) -> NDArray[np.float32]:
    half = HALF_PERIODS * max(up, down)
    times = np.arange(-half, half + 1)
    window = np.sinc(times / max(up, down)) * np.kaiser(2 * half + 1, KAISER_BETA)
    taps: NDArray[np.float32] = (window * (up / window.sum())).astype(np.float32)
    taps.flags.writeable = False  # it is in the cache
    return taps


def _resample_channels(
    values: NDArray[np.floating], up: int, down: int, taps: NDArray[np.float32], length: int
) -> Signal:
    """Channels C x T. Output k lies at k * down in steps of the upsampled signal; those with one remainder use the same taps."""
    half, old = len(taps) // 2, values.shape[1]
    reach = half // up + 1  # of input steps that one output step needs, on either side
    needed = (length - 1) * down // up + reach + 1 - old
    padded = np.pad(np.asarray(values, np.float32, order="C"), ((0, 0), (reach, max(0, needed))), mode="edge")
    result = np.zeros((len(values), length), np.float32)
    if MIN_PHASES < up > length / MIN_STEPS:  # few steps use the same taps: all steps at once, a tap of each at a time
        starts, phases = np.divmod(np.arange(length) * down, up)
        for offset in range(-((half + up - 1) // up), half // up + 1):
            tap = half + offset * up + phases
            weights = np.where((tap >= 0) & (tap < len(taps)), taps[tap.clip(0, len(taps) - 1)], np.float32(0))
            result += weights * padded.take((reach + starts - offset).clip(0, padded.shape[1] - 1), axis=1)
        return result
    for first in range(min(up, length)):
        start, phase = divmod(first * down, up)
        outputs = result[:, first::up]
        for left in range(0, outputs.shape[1], CACHED_STEPS):
            block = outputs[:, left : left + CACHED_STEPS]
            for offset in range(-((half + phase) // up), (half - phase) // up + 1):
                begin = reach + start - offset + left * down
                end = begin + (block.shape[1] - 1) * down + 1
                block += taps[half + offset * up + phase] * padded[:, begin:end:down]
    return result


def nearest_steps(length: int, old_length: int, ratio: float, first: int = 0) -> NDArray[np.int64]:
    """For each of `length` new time steps from `first` on, the nearest of the old ones; `ratio`: new rate / old rate."""
    return np.minimum((np.arange(first, first + length) / ratio + 0.5).astype(np.int64), old_length - 1)


def labels_to_length(
    labels: NDArray[np.uint8], confidence: NDArray[np.float32] | None, length: int, ratio: float | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Labels T, or N x T, and their confidence at another number of time steps, by nearest step.

    `ratio`: the rate wanted / the rate of the labels; by default that of the lengths, which is off by up to a step at the end.
    """
    old = labels.shape[-1]
    if length == old and ratio in (None, 1.0):
        return labels, confidence
    shape = (*labels.shape[:-1], length)
    new_labels, new_confidence = np.empty(shape, np.uint8), None if confidence is None else np.empty(shape, np.float32)
    for first in range(0, length, BLOCK_SAMPLES):
        block = slice(first, min(first + BLOCK_SAMPLES, length))
        steps = nearest_steps(block.stop - first, old, ratio or length / old, first)
        new_labels[..., block] = labels.take(steps, axis=-1)
        if confidence is not None and new_confidence is not None:
            new_confidence[..., block] = confidence.take(steps, axis=-1)
    return new_labels, new_confidence


def join_rates(columns: Sequence[Signal], rates: Sequence[float], names: Sequence[str], units: Sequence[str]) -> Sample:
    """Channels of one recording, each T of its own rate, as one sample at the highest rate. Raises: ImageError."""
    highest = check_rate(max(rates))
    if all(rate == highest for rate in rates):
        return build_signal(np.stack(columns, axis=1), highest, names, units)
    length = max(len(column) for column, rate in zip(columns, rates, strict=True) if rate == highest)
    check_growth(sum(map(len, columns)), length * len(columns), highest)
    values = np.empty((length, len(columns)), np.float32)
    for rate in sorted(set(rates)):
        same = [index for index, each in enumerate(rates) if each == rate]
        try:
            ratio = rate_ratio(rate, highest)
        except ConfigError as error:
            raise UnsupportedFormatError(
                f"The channel {quoted(names[same[0]])} has {rate:g} Hz, and another one {highest:g} Hz; the rates of a recording "
                f"may differ by a factor of {MAX_RATIO:g}. Leave one of them out."
            ) from error
        together = max(1, BLOCK_SAMPLES // length)
        for first in range(0, len(same), together):
            indices = same[first : first + together]
            raised = resample(np.stack([_fill(columns[index]) for index in indices], axis=1), ratio)[:length]
            values[:, indices] = np.pad(raised, ((0, length - len(raised)), (0, 0)), mode="edge")
    return build_signal(values, highest, names, units)


def _fill(column: Signal) -> Signal:
    """A channel, T, with its mean in place of missing values."""
    return np.nan_to_num(column, nan=float(np.nanmean(column)) if np.isfinite(column).any() else 0.0)
