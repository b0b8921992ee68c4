"""A sample as an RGB image for display: three of its channels."""

from pathlib import Path

import numpy as np

from models.errors import ConfigError, ImageError, closest_names, quoted
from models.imaging.decode import MAX_PIXELS, RGB, decode_file, decode_image
from models.readers import npy, read_sample, tiff
from models.readers.prepare import MAX_MAGNITUDE, find_valid
from models.sample import Sample, Values
from models.spec import RGB_CHANNELS, InputRule

PERCENTILES = (2.0, 98.0)  # of the samples, which become black and white where no range is known
MAX_SAMPLED = 1_000_000  # samples whose percentiles are computed


def to_rgb(values: Values, rule: InputRule, bands: tuple[str, ...] = ()) -> RGB:
    """H x W x C values of the rule's channels as RGB uint8 H x W x 3; a photograph as it is.

    `bands`: one or three channels to show, by name; default: red, green and blue, or the first three.
    Raises: ConfigError for a channel that the rule does not have.
    """
    if rule.is_photograph and not bands:
        return np.asarray(values, np.uint8)
    indices = choose_bands(rule.channels, bands)
    ranges = None if rule.scaling.kind == "zscore" else [(rule.scaling.low[i], rule.scaling.high[i]) for i in indices]
    return _stretch(values, indices, ranges)


def choose_bands(channels: tuple[str, ...], bands: tuple[str, ...] = ()) -> list[int]:
    """The indices of the channels to show as red, green and blue. Raises: ConfigError."""
    names = [name.lower() for name in channels]
    for band in bands:
        if band.lower() not in names:
            close = closest_names(band, channels)
            hint = f"did you mean {close}?" if close else f"the channels are {', '.join(channels)}."
            raise ConfigError(f"There is no channel {quoted(band)}; {hint}")
    if bands:
        chosen = [names.index(band.lower()) for band in bands]
        if len(chosen) not in (1, 3):
            raise ConfigError(
                f"bands names {len(chosen)} channels; expected one, as gray, or three, as red, green, blue."
            )
    elif all(name in names for name in RGB_CHANNELS):
        chosen = [names.index(name) for name in RGB_CHANNELS]
    else:
        chosen = list(range(min(3, len(names)))) if len(names) >= 3 else [0]
    return chosen * 3 if len(chosen) == 1 else chosen


def _stretch(values: Values, indices: list[int], ranges: list[tuple[float, float]] | None) -> RGB:
    result = np.empty((*values.shape[:2], 3), np.uint8)
    for channel, index in enumerate(indices):
        plane = values[:, :, index].astype(np.float32)
        low, high = ranges[channel] if ranges else _percentiles(plane)
        inside = np.nan_to_num(plane, nan=low).clip(
            low, high
        )  # first, because a mark such as -3.4e38 overflows when it is scaled
        result[:, :, channel] = (inside - low) * (255.0 / max(high - low, 1e-12)) + 0.5
    return result


def _percentiles(plane: Values) -> tuple[float, float]:
    finite = plane.ravel()[:: max(1, plane.size // MAX_SAMPLED)]
    finite = finite[np.abs(finite) < MAX_MAGNITUDE]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def needs_reader(data: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a file holds more than `decode_image` shows: other bands, more than 8 bits, nodata, or an array."""
    if npy.sniff(data):
        return True
    if data.startswith(b"\x89PNG"):
        return data[24:26] == b"\x10\0"  # 16 bits of gray
    try:
        return tiff.sniff(data) and not tiff.is_photograph(data, max_pixels)
    except ImageError:  # the decoder says what is wrong
        return False


def read_preview(path: Path) -> RGB:
    """Any file that can be read, as RGB uint8 H x W x 3. Raises: ImageError, DataError, which name the file."""
    return decode_file(path, decode_preview)


def decode_preview(data: bytes) -> RGB:
    """As `read_preview`, from the bytes of a file."""
    return preview(read_sample(data)) if needs_reader(data) else decode_image(data)


def preview(sample: Sample) -> RGB:
    """A sample of unknown range as RGB uint8 H x W x 3: each channel from its 2% to its 98% quantile, without missing pixels."""
    indices = choose_bands(sample.channels)
    valid = find_valid(sample.values, sample.valid, {sample.nodata} - {None})
    known = sample.values if valid is None else sample.values[valid][:, None]
    ranges = [_percentiles(known[:, :, index].astype(np.float32)) for index in indices]
    return _stretch(sample.values, indices, ranges)
