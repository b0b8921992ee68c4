"""Rules for one image and its mask."""

import math

import numpy as np

from models.spec import IGNORE_INDEX
from training.data.dataset import Pair
from training.data.mask_decoding import format_rgb
from training.data.scan.label_stats import ValueLabels
from training.data.scan.scanner import SampleStats
from training.lint.findings import Finding

MIN_SIDE, MAX_ASPECT_RATIO = 32, 10  # pixels of the shorter side; longer side / shorter side
MAX_LISTED_VALUES = 8
ROTATED_ORIENTATIONS = range(5, 9)  # EXIF orientations that swap height and width
Location = tuple[str, int]  # split, index


def check_sample(
    pair: Pair, stats: SampleStats, value_labels: ValueLabels, num_classes: int, location: Location
) -> list[Finding]:
    """The findings about one pair."""
    if stats.errors:
        return [Finding("error", "unreadable file", message, locations=(location,)) for message in stats.errors]
    if not num_classes:
        return _check_size(pair, stats, location)
    return [
        *_check_size(pair, stats, location),
        *_check_values(pair, stats, value_labels, num_classes, location),
        *_check_shape(pair, stats, location),
    ]


def _check_size(pair: Pair, stats: SampleStats, location: Location) -> list[Finding]:
    """Whether the mask has the size and rotation of the image."""
    size, mask_size, rotated = stats.size, stats.mask_size, stats.orientation in ROTATED_ORIENTATIONS
    if size is None or mask_size is None:
        return []
    sizes = (
        f"{pair.image} has {_format_size(size)} pixels (width x height, upright, EXIF orientation {stats.orientation}), "
        f"and {pair.mask} has {_format_size(mask_size)}"
    )
    if size != mask_size:
        if rotated and mask_size == size[::-1]:
            detail = f"{sizes}, as the camera stored the image."
            return [Finding("error", "mask ignores EXIF rotation", detail, locations=(location,))]
        difference = abs(np.log(size[0] * size[1]) - np.log(mask_size[0] * mask_size[1]))
        detail = f"{sizes}; a mask must have the size of its image."
        return [Finding("error", "size mismatch", detail, difference, (location,))]
    if stats.orientation != 1 and (not rotated or size[0] == size[1]):
        detail = f"{pair.image} is rotated by its EXIF orientation {stats.orientation}; {pair.mask} may or may not be."
        return [Finding("warning", "ambiguous EXIF rotation", detail, locations=(location,))]
    return []


def _check_values(
    pair: Pair, stats: SampleStats, value_labels: ValueLabels, num_classes: int, location: Location
) -> list[Finding]:
    """Whether each value of the mask is a class or ignored."""
    if value_labels.invalid or stats.extra_values:
        return [_invalid_values_finding(pair, stats, value_labels, num_classes, location)]
    if stats.lossy:
        detail = f"{pair.mask} is a lossy {stats.mask_format}; its labels may have changed when it was saved."
        return [Finding("warning", "lossy mask", detail, locations=(location,))]
    if value_labels.present_labels.tolist() == [IGNORE_INDEX]:
        detail = f"Every pixel of {pair.mask} is ignored."
        return [Finding("warning", "unlabeled mask", detail, locations=(location,))]
    return []


def _invalid_values_finding(
    pair: Pair, stats: SampleStats, value_labels: ValueLabels, num_classes: int, location: Location
) -> Finding:
    invalid = list(value_labels.invalid)
    pixels = stats.quarters.sum(axis=(1, 2))
    total = max(1, math.prod(stats.mask_size or (0, 0)))
    fraction = (pixels[invalid].sum() + total - pixels.sum()) / total
    percentage = _format_fraction(fraction)
    if stats.lossy:
        count = len(stats.values) + stats.extra_values
        detail = f"{pair.mask} is a lossy {stats.mask_format} and has {count:,} values; {percentage} of its pixels are not a class."
        return Finding("error", "lossy mask", detail, fraction, (location,))
    more = f" and {stats.extra_values:,} more" if stats.extra_values else ""
    if stats.kind == "color" or any(value_labels.labels[index] < 0 for index in invalid):
        listed = _join_limited([_describe_value(stats, index) for index in invalid]) + more
        detail = f"{pair.mask} has {listed}, on {percentage} of its pixels, which are not in the class list."
        return Finding("error", "color not in class list", detail, fraction, (location,))
    listed = _join_limited([str(value) for value in stats.values[invalid].tolist()]) + more
    detail = (
        f"{pair.mask} has the labels {listed} on {percentage} of its pixels; expected 0 to {num_classes - 1} for the "
        f"{num_classes} classes, or 255 for ignored pixels."
    )
    if step := label_step(stats.values.tolist()):
        detail += f" The labels are {step} apart: multiplied by {step} for viewing? Then divide them."
    return Finding("error", "label out of range", detail, fraction, (location,))


def _check_shape(pair: Pair, stats: SampleStats, location: Location) -> list[Finding]:
    if stats.size is None:
        return []
    short, long = sorted(stats.size)
    detail = f"{pair.image} has {_format_size(stats.size)} pixels."
    if short < MIN_SIDE:
        return [Finding("warning", "tiny image", detail, -short, (location,))]
    if long > MAX_ASPECT_RATIO * short:
        return [Finding("warning", "extreme aspect ratio", detail, long / short, (location,))]
    return []


def label_step(values: list[int]) -> int | None:
    """The step of ascending values that look scaled for viewing, such as 0, 127, 255 or 0, 50, 150; otherwise None."""
    if len(values) < 2 or values[0] != 0 or values == [0, IGNORE_INDEX] or (len(values) == 2 and values[1] < 100):
        return None
    divisor = math.gcd(*(value for value in values if value != IGNORE_INDEX))
    if divisor >= 3:
        return divisor
    step = values[-1] / (len(values) - 1)
    even = all(abs(value - index * step) <= 1 for index, value in enumerate(values))
    return round(step) if even and step >= 3 else None


def _describe_value(stats: SampleStats, index: int) -> str:
    value = int(stats.values[index])
    if stats.kind == "gray":
        return f"the value {value}"
    rgb = format_rgb(int(stats.palette_colors[index]) if len(stats.palette_colors) else value)
    return f"the palette index {value} ({rgb})" if stats.kind == "palette" else f"the color {rgb}"


def _join_limited(values: list[str]) -> str:
    more = f" and {len(values) - MAX_LISTED_VALUES} more" if len(values) > MAX_LISTED_VALUES else ""
    return ", ".join(values[:MAX_LISTED_VALUES]) + more


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _format_fraction(fraction: float) -> str:
    return f"{fraction:.1%}" if fraction >= 0.001 else "under 0.1%"
