"""What a data set leaves unsaid, found in its training masks: classes, and whether 255, black or a palette's places mean what they
usually do. What was understood and may have been meant otherwise is noted, for the lint to tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, MaskserveError
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import MaskEncoding, MaskKind, format_rgb
from training.data.scan.scanner import SampleStats

SAMPLED_MASKS = 8  # masks that tell a palette's or grey colours' use where the classes are known
MIN_FOREGROUND_VALUE = 100  # a second value so far from 0 is no label 1..99 but drawn to be seen
BINARY_TOLERANCE, MIN_BINARY_FRACTION = 16, 0.9  # levels; share of pixels: a lossy mask of 0 and 255
MAX_DISTINCT_VALUES = 8  # values in masks of two classes, from which their borders are mixtures
MAX_UNNAMED_LABEL = (
    100  # a label that nobody named: rather a mixture at a border, a grey to be seen, or a number of an instance
)
MAX_LISTED_COLORS = 12
BLACK, WHITE, GRAY_UNIT = 0, 0xFFFFFF, 0x010101
BINARY_CLASS_NAMES = ("background", "foreground")


@dataclass(frozen=True)
class MaskValues:
    """What one mask holds."""

    kind: MaskKind
    values: NDArray[np.int64]  # K
    palette_colors: NDArray[np.int64]  # K: of a palette's places, 0xRRGGBB
    pixel_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # K
    extra_values: int = 0  # values beyond those
    lossy: bool = False


@dataclass(frozen=True)
class InferredClasses:
    """What the masks say, for every split of the data set."""

    classes: list[ClassInfo]
    mask_encoding: MaskEncoding
    notes: tuple[str, ...] = ()

    def apply_to(self, samples: SegmentationDataset) -> SegmentationDataset:
        """The same samples, understood."""
        return replace(
            samples, classes=self.classes, mask_encoding=self.mask_encoding, notes=samples.notes + self.notes
        )


def mask_values_from_scan(facts: SampleStats) -> MaskValues | None:
    """Of a mask that was scanned; None of one that could not be read."""
    if facts.mask_size is None:
        return None
    return MaskValues(
        facts.kind, facts.values, facts.palette_colors, facts.quarters.sum(axis=(1, 2)), facts.extra_values, facts.lossy
    )


def sample_mask_values(samples: SegmentationDataset) -> list[MaskValues]:
    """Of a few masks, evenly spread over the data set."""
    found = []
    for index in samples.evenly_spaced_indices(SAMPLED_MASKS):
        try:
            values = samples.raw_mask(index)
        except MaskserveError:
            continue  # the lint will name it, with the others of its kind
        there = np.unique(values.array).astype(np.int64)
        palette = np.array(values.palette + (0,) * 256, np.int64)
        found.append(MaskValues(values.kind, there, palette[there] if values.kind == "palette" else there[:0]))
    return found


def infer_classes(samples: SegmentationDataset, masks: Sequence[MaskValues], root: Path) -> InferredClasses:
    """From what the training masks hold. Raises: DataError where no classes can be found in them."""
    meaning, notes = _infer_colors(samples, masks, root)
    numbers = _numeric_values(masks, meaning)
    classes = samples.classes
    if told := _gray_class_colors(numbers, samples):
        return InferredClasses(classes, replace(meaning, gray_to_label=told), tuple(notes))
    high = (
        None
        if len(classes) > 2 or meaning.gray_to_label or _palettes_match_labels(samples.mask_encoding, masks)
        else _foreground_value(masks, numbers)
    )
    if high:
        meaning = replace(meaning, gray_to_label=((high, 1),))
        names = [entry.name for entry in classes] or list(BINARY_CLASS_NAMES)
        classes = classes or [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(names)]
        notes.append(_binary_note(high, names[1], len(numbers) == 2))
    if not classes:
        classes = _numbered_classes(numbers, masks, root)
    return InferredClasses(classes, meaning, tuple(notes))


def _infer_colors(
    samples: SegmentationDataset, masks: Sequence[MaskValues], root: Path
) -> tuple[MaskEncoding, list[str]]:
    """What is said of colour and palette files."""
    meaning, known = samples.mask_encoding, dict(samples.mask_encoding.color_to_label)
    colours = {value for mask in masks if mask.kind == "colour" for value in mask.values.tolist()}
    strange = colours - known.keys() - ({BLACK} if known else set())
    if strange and all(value % GRAY_UNIT == 0 for value in colours):
        meaning = replace(meaning, accept_gray_rgb=True)
        colours = set()
    if colours and not samples.classes:
        shown = "; ".join(map(format_rgb, sorted(colours)[:MAX_LISTED_COLORS])) + (
            "; ..." if len(colours) > MAX_LISTED_COLORS else ""
        )
        raise DataError(
            f"{root}: the masks are in colours ({shown}), and no classes.csv says which class each is; "
            "write one there with a line `name,r,g,b` for each."
        )
    places = _palette_entries(masks) - {(IGNORE_INDEX, BLACK)}  # what a palette of few classes is filled up with
    told = {BLACK: IGNORE_INDEX, **known}
    if known and places and all(colour in told for _, colour in places):
        meaning = replace(
            meaning,
            use_palette_colors=any(meaning.decode_value(place, "grey") != told[colour] for place, colour in places),
        )
        colours |= {colour for _, colour in places if meaning.use_palette_colors}
    if known and BLACK in colours and BLACK not in known:
        note = (
            "Black (0,0,0), which no class has, is void; where it is a class, add a line `name,0,0,0` to classes.csv."
        )
        return replace(meaning, color_to_label=(*meaning.color_to_label, (BLACK, IGNORE_INDEX))), [note]
    return meaning, []


def _palette_entries(masks: Sequence[MaskValues]) -> set[tuple[int, int]]:
    """The palette places that occur, with their colours."""
    return {
        pair
        for mask in masks
        if mask.kind == "palette"
        for pair in zip(mask.values.tolist(), mask.palette_colors.tolist(), strict=False)
    }


def _numeric_values(masks: Sequence[MaskValues], meaning: MaskEncoding) -> set[int]:
    """The values that are numbers: grey, palette places, and grey saved in colours."""
    found: set[int] = set()
    for mask in masks:
        if mask.kind == "grey" or (mask.kind == "palette" and not meaning.use_palette_colors):
            found.update(mask.values.tolist())
        elif mask.kind == "colour" and meaning.accept_gray_rgb:
            found.update(value // GRAY_UNIT for value in mask.values.tolist())
    return found


def _palettes_match_labels(meaning: MaskEncoding, masks: Sequence[MaskValues]) -> bool:
    """Whether palettes show a label in its class's colour, and 255 not in white: then 255 is void, as `data remap` writes it."""
    known, places = dict(meaning.color_to_label), _palette_entries(masks)
    return any(known.get(colour) == place for place, colour in places) and (IGNORE_INDEX, WHITE) not in places


def _gray_class_colors(numbers: set[int], samples: SegmentationDataset) -> tuple[tuple[int, int], ...]:
    """Grey values that are no labels, but the grey colours of the class file, such as 0 and 255 for black and white."""
    known = dict(samples.mask_encoding.color_to_label)
    told = tuple((number, known[number * GRAY_UNIT]) for number in sorted(numbers) if number * GRAY_UNIT in known)
    return told if told and len(told) == len(numbers) and max(numbers) >= len(samples.classes) else ()


def _foreground_value(masks: Sequence[MaskValues], numbers: set[int]) -> int | None:
    """The value of what is not 0 in masks of two values; None where they hold others."""
    if (
        len(numbers) == 2
        and min(numbers) == 0
        and max(numbers) >= MIN_FOREGROUND_VALUE
        and not any(mask.extra_values for mask in masks)
    ):
        return max(numbers)
    # Mixtures of 0 and 255 lie on both sides of the middle, which labels that nobody has named do not.
    dark, bright = (
        any(low < number <= high for number in numbers)
        for low, high in ((BINARY_TOLERANCE, 127), (127, 254 - BINARY_TOLERANCE))
    )
    soft = dark and bright and len(numbers) > MAX_DISTINCT_VALUES
    if not masks or any(mask.kind != "grey" or not (soft or mask.lossy) for mask in masks):
        return None
    values, pixels = (np.concatenate([getattr(mask, name) for mask in masks]) for name in ("values", "pixel_counts"))
    low, high = pixels[values <= BINARY_TOLERANCE].sum(), pixels[values >= 255 - BINARY_TOLERANCE].sum()
    return 255 if low and high and low + high >= MIN_BINARY_FRACTION * pixels.sum() else None


def _binary_note(high: int, name: str, exact: bool) -> str:
    if not exact:
        return (
            f"The masks are lossy or anti-aliased, with nearly all pixels near 0 or {high}: {high} is read as {name} (label 1). "
            "`maskserve data remap DATA OUT --nearest` gives each pixel the nearer of the two."
        )
    void = " and not as void" if high == IGNORE_INDEX else ""
    return (
        f"The training masks hold 0 and {high} alone, so {high} is read as {name} (label 1){void}; "
        "to say otherwise, name three classes or more in classes.csv, and masks are read as written."
    )


def _numbered_classes(numbers: set[int], masks: Sequence[MaskValues], root: Path) -> list[ClassInfo]:
    """Classes up to the highest label. Raises: DataError where that makes none or too many."""
    if not masks:
        raise DataError(
            f"{root}: none of the training masks can be read; see `maskserve data lint` or name another folder."
        )
    highest = max((number for number in numbers if number != IGNORE_INDEX), default=0)
    if highest < 1:
        raise DataError(f"The masks of {root} hold one class alone; at least two are needed to tell pixels apart.")
    if MAX_UNNAMED_LABEL < highest <= IGNORE_INDEX:
        raise DataError(
            f"The masks of {root} hold {len(numbers)} values up to {highest}, which are taken for no classes unseen: so look "
            "masks that are anti-aliased, went through JPEG or were made to be seen by eye, and numbers of instances. "
            "Export labels as PNG; or if they are classes, name them in classes.csv."
        )
    if highest > IGNORE_INDEX:
        raise DataError(
            f"The masks of {root} hold values up to {highest:,}, but labels go from 0 to 254; "
            "are they numbers of instances? Masks of classes are wanted."
        )
    return [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(highest + 1)]
