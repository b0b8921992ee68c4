"""What may be wrong with one image and its mask."""

import math

import numpy as np

from models.spec import IGNORE_INDEX
from training.data.dataset import Pair
from training.data.scan.label_stats import ValueLabels
from training.data.scan.scanner import SampleStats
from training.lint.findings import Finding

MIN_SIDE, MAX_ASPECT_RATIO = 32, 10  # pixels of the shorter side; the longer side by the shorter
ROTATED_ORIENTATIONS = range(5, 9)  # EXIF orientations that swap height and width


def check_sample(
    pair: Pair, facts: SampleStats, labelled: ValueLabels, classes: int, where: tuple[str, int]
) -> list[Finding]:
    """The findings of one pair."""
    if facts.errors:
        return [Finding("error", "unreadable file", sentence, locations=(where,)) for sentence in facts.errors]
    return [
        *_check_size(pair, facts, where),
        *_check_values(pair, facts, labelled, classes, where),
        *_check_shape(pair, facts, where),
    ]


def _check_size(pair: Pair, facts: SampleStats, where: tuple[str, int]) -> list[Finding]:
    """Whether the mask lies on the image."""
    size, mask, turned = facts.size, facts.mask_size, facts.orientation in ROTATED_ORIENTATIONS
    if size is None or mask is None:
        return []
    fits = (
        f"{pair.image} is {_format_size(size)} (width x height, upright, EXIF orientation {facts.orientation}) "
        f"and {pair.mask} is {_format_size(mask)}"
    )
    if size != mask:
        if turned and mask == size[::-1]:
            return [Finding("error", "mask in the raw frame", f"{fits}, as the camera held it.", locations=(where,))]
        apart = abs(np.log(size[0] * size[1]) - np.log(mask[0] * mask[1]))
        return [Finding("error", "size mismatch", f"{fits}; a mask must have its image's size.", apart, (where,))]
    if facts.orientation != 1 and (not turned or size[0] == size[1]):
        detail = f"{pair.image} is turned by its EXIF orientation {facts.orientation}; {pair.mask} may be or not."
        return [Finding("warning", "rotation that cannot be told", detail, locations=(where,))]
    return []


def _check_values(
    pair: Pair, facts: SampleStats, labelled: ValueLabels, classes: int, where: tuple[str, int]
) -> list[Finding]:
    """Whether each value of the mask is a class or void."""
    pixels = facts.quarters.sum(axis=(1, 2))
    total = max(1, (facts.mask_size or (0, 0))[0] * (facts.mask_size or (0, 0))[1])
    if labelled.invalid or facts.extra_values:
        share = (pixels[list(labelled.invalid)].sum() + total - pixels.sum()) / total
        more = f" and {facts.extra_values:,} more" if facts.extra_values else ""
        if facts.lossy:
            detail = (
                f"{pair.mask} is a lossy {facts.mask_format} and holds {len(facts.values) + facts.extra_values:,} values; "
                f"{_format_fraction(share)} of its pixels are no class."
            )
            return [Finding("error", "lossy mask", detail, share, (where,))]
        if facts.kind == "colour" or any(labelled.labels[place] < 0 for place in labelled.invalid):
            shown = _join_limited([_describe_value(facts, place) for place in labelled.invalid]) + more
            detail = f"{pair.mask} holds {shown}, {_format_fraction(share)} of its pixels, which no class has."
            return [Finding("error", "colour without meaning", detail, share, (where,))]
        shown = _join_limited([str(value) for value in facts.values[list(labelled.invalid)].tolist()]) + more
        detail = (
            f"{pair.mask} holds the labels {shown} on {_format_fraction(share)} of its pixels, but the "
            f"{classes} classes are 0 to {classes - 1}, and void is 255.{_scaled_labels_hint(facts.values.tolist())}"
        )
        return [Finding("error", "label out of range", detail, share, (where,))]
    if facts.lossy:
        detail = f"{pair.mask} is a lossy {facts.mask_format}; its labels may be others than were drawn."
        return [Finding("warning", "lossy mask", detail, locations=(where,))]
    if labelled.present_labels.tolist() == [IGNORE_INDEX]:
        detail = f"{pair.mask} is void on every pixel and teaches nothing."
        return [Finding("warning", "all void", detail, locations=(where,))]
    return []


def _check_shape(pair: Pair, facts: SampleStats, where: tuple[str, int]) -> list[Finding]:
    if facts.size is None:
        return []
    short, long = sorted(facts.size)
    if short < MIN_SIDE:
        return [
            Finding("warning", "tiny image", f"{pair.image} is {_format_size(facts.size)} pixels.", -short, (where,))
        ]
    if long > MAX_ASPECT_RATIO * short:
        return [
            Finding(
                "warning",
                "extreme shape",
                f"{pair.image} is {_format_size(facts.size)} pixels.",
                long / short,
                (where,),
            )
        ]
    return []


def label_step(values: list[int]) -> int | None:
    """The step of values that lie far apart from 0 on, such as 0, 127, 255 or 0, 50, 150; None otherwise."""
    if len(values) < 2 or values[0] != 0 or values == [0, IGNORE_INDEX] or (len(values) == 2 and values[1] < 100):
        return None
    multiples = math.gcd(*(value for value in values if value != IGNORE_INDEX))
    if multiples >= 3:
        return multiples
    step = values[-1] / (len(values) - 1)
    even = all(abs(value - place * step) <= 1 for place, value in enumerate(values))
    return round(step) if even and step >= 3 else None


def _scaled_labels_hint(values: list[int]) -> str:
    step = label_step(values)
    return f" They lie {step} apart: labels times {step}, to be seen by eye? Divide them." if step else ""


def _describe_value(facts: SampleStats, place: int) -> str:
    value = int(facts.values[place])
    if facts.kind == "grey":
        return f"the value {value}"
    colour = int(facts.palette_colors[place]) if len(facts.palette_colors) else value
    told = f"{colour >> 16},{colour >> 8 & 255},{colour & 255}"
    return f"palette place {value} ({told})" if facts.kind == "palette" else f"the colour {told}"


def _join_limited(values: list[str], most: int = 8) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _format_fraction(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
