"""What a data set leaves unsaid, found in its training masks: classes, and whether 255, black or a palette's places mean what they
usually do. What was understood and may have been meant otherwise is noted, for the lint to tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, MaskserveError
from models.spec import VOID, ClassInfo, default_rgb
from training.data.dataset import Samples
from training.data.mask_decoding import Kind, Meaning, spelled
from training.data.scan.scanner import Facts

PEEKED = 8  # masks that tell a palette's or grey colours' use where the classes are known
FAR = 100  # a second value so far from 0 is no label 1..99 but drawn to be seen
NEAR, NEARLY_ALL = 16, 0.9  # levels; share of pixels: a lossy mask of 0 and 255
SOFT = 8  # values in masks of two classes, from which their borders are mixtures
MANY = 100  # a label that nobody named: rather a mixture at a border, a grey to be seen, or a number of an instance
MOST_LISTED = 12
BLACK, WHITE, GREY = 0, 0xFFFFFF, 0x010101
BINARY = ("background", "foreground")


@dataclass(frozen=True)
class Seen:
    """What one mask holds."""

    kind: Kind
    values: NDArray[np.int64]  # K
    colours: NDArray[np.int64]  # K: of a palette's places, 0xRRGGBB
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # K
    more: int = 0  # values beyond those
    lossy: bool = False


@dataclass(frozen=True)
class Understood:
    """What the masks say, for every split of the data set."""

    classes: list[ClassInfo]
    meaning: Meaning
    notes: tuple[str, ...] = ()

    def of(self, samples: Samples) -> Samples:
        """The same samples, understood."""
        return replace(samples, classes=self.classes, meaning=self.meaning, notes=samples.notes + self.notes)


def seen(facts: Facts) -> Seen | None:
    """Of a mask that was scanned; None of one that could not be read."""
    if facts.mask_size is None:
        return None
    return Seen(facts.kind, facts.values, facts.colours, facts.quarters.sum(axis=(1, 2)), facts.more, facts.lossy)


def peek(samples: Samples) -> list[Seen]:
    """Of a few masks, evenly spread over the data set."""
    found = []
    for index in samples.spread(PEEKED):
        try:
            values = samples.values(index)
        except MaskserveError:
            continue  # the lint will name it, with the others of its kind
        there = np.unique(values.array).astype(np.int64)
        palette = np.array(values.palette + (0,) * 256, np.int64)
        found.append(Seen(values.kind, there, palette[there] if values.kind == "palette" else there[:0]))
    return found


def infer(samples: Samples, masks: Sequence[Seen], root: Path) -> Understood:
    """From what the training masks hold. Raises: DataError where no classes can be found in them."""
    meaning, notes = _of_colours(samples, masks, root)
    numbers = _numbers(masks, meaning)
    classes = samples.classes
    if told := _by_grey_colours(numbers, samples):
        return Understood(classes, replace(meaning, grey=told), tuple(notes))
    high = None if len(classes) > 2 or meaning.grey or _by_label(samples.meaning, masks) else _high(masks, numbers)
    if high:
        meaning = replace(meaning, grey=((high, 1),))
        names = [entry.name for entry in classes] or list(BINARY)
        classes = classes or [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(names)]
        notes.append(_binary_note(high, names[1], len(numbers) == 2))
    if not classes:
        classes = _numbered(numbers, masks, root)
    return Understood(classes, meaning, tuple(notes))


def _of_colours(samples: Samples, masks: Sequence[Seen], root: Path) -> tuple[Meaning, list[str]]:
    """What is said of colour and palette files."""
    meaning, known = samples.meaning, dict(samples.meaning.colours)
    colours = {value for mask in masks if mask.kind == "colour" for value in mask.values.tolist()}
    strange = colours - known.keys() - ({BLACK} if known else set())
    if strange and all(value % GREY == 0 for value in colours):
        meaning = replace(meaning, grey_colours=True)
        colours = set()
    if colours and not samples.classes:
        shown = "; ".join(map(spelled, sorted(colours)[:MOST_LISTED])) + ("; ..." if len(colours) > MOST_LISTED else "")
        raise DataError(
            f"{root}: the masks are in colours ({shown}), and no classes.csv says which class each is; "
            "write one there with a line `name,r,g,b` for each."
        )
    places = _places(masks) - {(VOID, BLACK)}  # what a palette of few classes is filled up with
    told = {BLACK: VOID, **known}
    if known and places and all(colour in told for _, colour in places):
        meaning = replace(
            meaning, by_palette=any(meaning.label(place, "grey") != told[colour] for place, colour in places)
        )
        colours |= {colour for _, colour in places if meaning.by_palette}
    if known and BLACK in colours and BLACK not in known:
        note = (
            "Black (0,0,0), which no class has, is void; where it is a class, add a line `name,0,0,0` to classes.csv."
        )
        return replace(meaning, colours=(*meaning.colours, (BLACK, VOID))), [note]
    return meaning, []


def _places(masks: Sequence[Seen]) -> set[tuple[int, int]]:
    """The palette places that occur, with their colours."""
    return {
        pair
        for mask in masks
        if mask.kind == "palette"
        for pair in zip(mask.values.tolist(), mask.colours.tolist(), strict=False)
    }


def _numbers(masks: Sequence[Seen], meaning: Meaning) -> set[int]:
    """The values that are numbers: grey, palette places, and grey saved in colours."""
    found: set[int] = set()
    for mask in masks:
        if mask.kind == "grey" or (mask.kind == "palette" and not meaning.by_palette):
            found.update(mask.values.tolist())
        elif mask.kind == "colour" and meaning.grey_colours:
            found.update(value // GREY for value in mask.values.tolist())
    return found


def _by_label(meaning: Meaning, masks: Sequence[Seen]) -> bool:
    """Whether palettes show a label in its class's colour, and 255 not in white: then 255 is void, as `data remap` writes it."""
    known, places = dict(meaning.colours), _places(masks)
    return any(known.get(colour) == place for place, colour in places) and (VOID, WHITE) not in places


def _by_grey_colours(numbers: set[int], samples: Samples) -> tuple[tuple[int, int], ...]:
    """Grey values that are no labels, but the grey colours of the class file, such as 0 and 255 for black and white."""
    known = dict(samples.meaning.colours)
    told = tuple((number, known[number * GREY]) for number in sorted(numbers) if number * GREY in known)
    return told if told and len(told) == len(numbers) and max(numbers) >= len(samples.classes) else ()


def _high(masks: Sequence[Seen], numbers: set[int]) -> int | None:
    """The value of what is not 0 in masks of two values; None where they hold others."""
    if len(numbers) == 2 and min(numbers) == 0 and max(numbers) >= FAR and not any(mask.more for mask in masks):
        return max(numbers)
    # Mixtures of 0 and 255 lie on both sides of the middle, which labels that nobody has named do not.
    dark, bright = (any(low < number <= high for number in numbers) for low, high in ((NEAR, 127), (127, 254 - NEAR)))
    soft = dark and bright and len(numbers) > SOFT
    if not masks or any(mask.kind != "grey" or not (soft or mask.lossy) for mask in masks):
        return None
    values, pixels = (np.concatenate([getattr(mask, name) for mask in masks]) for name in ("values", "pixels"))
    low, high = pixels[values <= NEAR].sum(), pixels[values >= 255 - NEAR].sum()
    return 255 if low and high and low + high >= NEARLY_ALL * pixels.sum() else None


def _binary_note(high: int, name: str, exact: bool) -> str:
    if not exact:
        return (
            f"The masks are lossy or anti-aliased, with nearly all pixels near 0 or {high}: {high} is read as {name} (label 1). "
            "`maskserve data remap DATA OUT --nearest` gives each pixel the nearer of the two."
        )
    void = " and not as void" if high == VOID else ""
    return (
        f"The training masks hold 0 and {high} alone, so {high} is read as {name} (label 1){void}; "
        "to say otherwise, name three classes or more in classes.csv, and masks are read as written."
    )


def _numbered(numbers: set[int], masks: Sequence[Seen], root: Path) -> list[ClassInfo]:
    """Classes up to the highest label. Raises: DataError where that makes none or too many."""
    if not masks:
        raise DataError(
            f"{root}: none of the training masks can be read; see `maskserve data lint` or name another folder."
        )
    highest = max((number for number in numbers if number != VOID), default=0)
    if highest < 1:
        raise DataError(f"The masks of {root} hold one class alone; at least two are needed to tell pixels apart.")
    if MANY < highest <= VOID:
        raise DataError(
            f"The masks of {root} hold {len(numbers)} values up to {highest}, which are taken for no classes unseen: so look "
            "masks that are anti-aliased, went through JPEG or were made to be seen by eye, and numbers of instances. "
            "Export labels as PNG; or if they are classes, name them in classes.csv."
        )
    if highest > VOID:
        raise DataError(
            f"The masks of {root} hold values up to {highest:,}, but labels go from 0 to 254; "
            "are they numbers of instances? Masks of classes are wanted."
        )
    return [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(highest + 1)]
