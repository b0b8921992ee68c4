"""What may be wrong with one picture and its mask."""

import math

import numpy as np

from models.spec import VOID
from training.data.dataset import Pair
from training.data.scan.label_stats import Labelled
from training.data.scan.scanner import Facts
from training.lint.findings import Finding

SMALL, LONG = 32, 10  # pixels of the shorter side; the longer side by the shorter
TURNED = range(5, 9)  # EXIF orientations that swap height and width


def judge(pair: Pair, facts: Facts, labelled: Labelled, classes: int, where: tuple[str, int]) -> list[Finding]:
    """The findings of one pair."""
    if facts.errors:
        return [Finding("error", "unreadable file", sentence, where=(where,)) for sentence in facts.errors]
    return [*_frame(pair, facts, where), *_values(pair, facts, labelled, classes, where), *_shape(pair, facts, where)]


def _frame(pair: Pair, facts: Facts, where: tuple[str, int]) -> list[Finding]:
    """Whether the mask lies on the picture."""
    size, mask, turned = facts.size, facts.mask_size, facts.orientation in TURNED
    if size is None or mask is None:
        return []
    fits = (
        f"{pair.image} is {_by(size)} (width x height, upright, EXIF orientation {facts.orientation}) "
        f"and {pair.mask} is {_by(mask)}"
    )
    if size != mask:
        if turned and mask == size[::-1]:
            return [Finding("error", "mask in the raw frame", f"{fits}, as the camera held it.", where=(where,))]
        apart = abs(np.log(size[0] * size[1]) - np.log(mask[0] * mask[1]))
        return [Finding("error", "size mismatch", f"{fits}; a mask must have its picture's size.", apart, (where,))]
    if facts.orientation != 1 and (not turned or size[0] == size[1]):
        detail = f"{pair.image} is turned by its EXIF orientation {facts.orientation}; {pair.mask} may be or not."
        return [Finding("warning", "rotation that cannot be told", detail, where=(where,))]
    return []


def _values(pair: Pair, facts: Facts, labelled: Labelled, classes: int, where: tuple[str, int]) -> list[Finding]:
    """Whether each value of the mask is a class or void."""
    pixels = facts.quarters.sum(axis=(1, 2))
    total = max(1, (facts.mask_size or (0, 0))[0] * (facts.mask_size or (0, 0))[1])
    if labelled.wrong or facts.more:
        share = (pixels[list(labelled.wrong)].sum() + total - pixels.sum()) / total
        more = f" and {facts.more:,} more" if facts.more else ""
        if facts.lossy:
            detail = (
                f"{pair.mask} is a lossy {facts.mask_format} and holds {len(facts.values) + facts.more:,} values; "
                f"{_share(share)} of its pixels are no class."
            )
            return [Finding("error", "lossy mask", detail, share, (where,))]
        if facts.kind == "colour" or any(labelled.labels[place] < 0 for place in labelled.wrong):
            shown = _listed([_colour(facts, place) for place in labelled.wrong]) + more
            detail = f"{pair.mask} holds {shown}, {_share(share)} of its pixels, which no class has."
            return [Finding("error", "colour without meaning", detail, share, (where,))]
        shown = _listed([str(value) for value in facts.values[list(labelled.wrong)].tolist()]) + more
        detail = (
            f"{pair.mask} holds the labels {shown} on {_share(share)} of its pixels, but the "
            f"{classes} classes are 0 to {classes - 1}, and void is 255.{_scaled(facts.values.tolist())}"
        )
        return [Finding("error", "label out of range", detail, share, (where,))]
    if facts.lossy:
        detail = f"{pair.mask} is a lossy {facts.mask_format}; its labels may be others than were drawn."
        return [Finding("warning", "lossy mask", detail, where=(where,))]
    if labelled.kept.tolist() == [VOID]:
        detail = f"{pair.mask} is void on every pixel and teaches nothing."
        return [Finding("warning", "all void", detail, where=(where,))]
    return []


def _shape(pair: Pair, facts: Facts, where: tuple[str, int]) -> list[Finding]:
    if facts.size is None:
        return []
    short, long = sorted(facts.size)
    if short < SMALL:
        return [Finding("warning", "tiny picture", f"{pair.image} is {_by(facts.size)} pixels.", -short, (where,))]
    if long > LONG * short:
        return [
            Finding("warning", "extreme shape", f"{pair.image} is {_by(facts.size)} pixels.", long / short, (where,))
        ]
    return []


def spread(values: list[int]) -> int | None:
    """The step of values that lie far apart from 0 on, such as 0, 127, 255 or 0, 50, 150; None otherwise."""
    if len(values) < 2 or values[0] != 0 or values == [0, VOID] or (len(values) == 2 and values[1] < 100):
        return None
    multiples = math.gcd(*(value for value in values if value != VOID))
    if multiples >= 3:
        return multiples
    step = values[-1] / (len(values) - 1)
    even = all(abs(value - place * step) <= 1 for place, value in enumerate(values))
    return round(step) if even and step >= 3 else None


def _scaled(values: list[int]) -> str:
    step = spread(values)
    return f" They lie {step} apart: labels times {step}, to be seen by eye? Divide them." if step else ""


def _colour(facts: Facts, place: int) -> str:
    value = int(facts.values[place])
    if facts.kind == "grey":
        return f"the value {value}"
    colour = int(facts.colours[place]) if len(facts.colours) else value
    told = f"{colour >> 16},{colour >> 8 & 255},{colour & 255}"
    return f"palette place {value} ({told})" if facts.kind == "palette" else f"the colour {told}"


def _listed(values: list[str], most: int = 8) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
