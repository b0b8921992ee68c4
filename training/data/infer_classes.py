"""Infers what a data set does not state from its training masks: classes, and the meaning of 255, black, and palette indices.

Assumptions that may be wrong become notes, which the lint reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, MaskserveError
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.class_file import INVALID_LABEL, class_line
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import MaskEncoding, MaskKind, format_rgb
from training.data.scan.scanner import SampleStats
from training.data.tree import CLASS_FILE

SAMPLED_MASKS = 8  # masks read to learn how palettes and gray colors are used, if the classes are known
MIN_FOREGROUND_VALUE = 100  # a second value this far from 0 is not a label but scaled for viewing
BINARY_TOLERANCE, MIN_BINARY_FRACTION = 16, 0.9  # gray levels; fraction of the pixels: a lossy mask of 0 and 255
MAX_DISTINCT_VALUES = 8  # more values in a mask of two classes are mixtures at borders
MAX_UNNAMED_LABEL = 100  # a higher unnamed label is likely a mixture at a border, a gray for viewing, or an instance id
MAX_LISTED_COLORS = MAX_LISTED_VALUES = 12
LOSSY_SUFFIXES = (".jpg", ".jpeg")  # of masks, as far as the name says it
MAX_UNNAMED_COLORS = 12  # exact colors in all training masks that are taken as classes without a class file
COLOR_NAMES = {
    0x000000: "black", 0xFFFFFF: "white", 0xFF0000: "red", 0x00FF00: "green", 0x0000FF: "blue", 0xFFFF00: "yellow",
    0x00FFFF: "cyan", 0xFF00FF: "magenta", 0x808080: "gray",
}  # fmt: skip
BLACK, WHITE, GRAY_UNIT = 0, 0xFFFFFF, 0x010101
BINARY_CLASS_NAMES = ("background", "foreground")
LINT_ADVICE = "`maskserve data lint` names the reason for each"


class UnknownClassesError(DataError):
    """The masks do not show the classes. `datasets`: the splits, without classes, so that the lint can check their files."""

    datasets: dict[str, SegmentationDataset]


@dataclass(frozen=True)
class MaskValues:
    """The distinct values of one mask."""

    kind: MaskKind
    values: NDArray[np.int64]  # K
    palette_colors: NDArray[np.int64]  # K: of palette indices, 0xRRGGBB
    pixel_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # K
    extra_values: int = 0  # further values that are not listed
    lossy: bool = False


@dataclass(frozen=True)
class InferredClasses:
    """Classes and mask encoding, for every split of the data set."""

    classes: list[ClassInfo]
    mask_encoding: MaskEncoding
    notes: tuple[str, ...] = ()

    def apply_to(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """The data set with these classes, this encoding, and the added notes."""
        return replace(
            dataset, classes=self.classes, mask_encoding=self.mask_encoding, notes=dataset.notes + self.notes
        )


def mask_values_from_scan(stats: SampleStats) -> MaskValues | None:
    """The values of a scanned mask; None if it could not be read."""
    if stats.mask_size is None:
        return None
    return MaskValues(
        stats.kind, stats.values, stats.palette_colors, stats.quarters.sum(axis=(1, 2)), stats.extra_values, stats.lossy
    )


def sample_mask_values(dataset: SegmentationDataset) -> list[MaskValues]:
    """The values of a few masks, evenly spread over the data set."""
    found = []
    for index in dataset.evenly_spaced_indices(SAMPLED_MASKS):
        try:
            mask = dataset.raw_mask(index)
        except MaskserveError:
            continue  # the lint reports it
        found_values, counts = np.unique(mask.array, return_counts=True)
        values: NDArray[np.int64] = found_values.astype(np.int64)
        palette = np.array(mask.palette + (0,) * 256, np.int64)
        lossy = dataset.pairs[index].mask.suffix.lower() in LOSSY_SUFFIXES
        colors = palette[values] if mask.kind == "palette" else values[:0]
        found.append(MaskValues(mask.kind, values, colors, counts.astype(np.int64), lossy=lossy))
    return found


def infer_classes(dataset: SegmentationDataset, masks: Sequence[MaskValues], root: Path) -> InferredClasses:
    """Infer classes and mask encoding from the values of the training masks. Raises: UnknownClassesError."""
    encoding, notes = _infer_colors(dataset, masks, root)
    numbers = _numeric_values(masks, encoding)
    classes = dataset.classes
    if not classes and encoding.color_to_label:
        classes = [ClassInfo(name=_color_name(color), rgb=_unpack_rgb(color)) for color, _ in encoding.color_to_label]
        return InferredClasses(classes, encoding, tuple(notes))
    if gray_to_label := _gray_class_colors(numbers, dataset):
        return InferredClasses(classes, replace(encoding, gray_to_label=gray_to_label), tuple(notes))
    foreground = (
        None
        if len(classes) > 2 or encoding.gray_to_label or _palettes_match_labels(dataset.mask_encoding, masks)
        else _foreground_value(masks, numbers)
    )
    if foreground:
        encoding = replace(encoding, gray_to_label=((foreground, 1),))
        names = [entry.name for entry in classes] or list(BINARY_CLASS_NAMES)
        classes = classes or [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(names)]
        notes.append(_binary_note(foreground, names[1], len(numbers) == 2))
    if not classes and (first := _first_label(numbers)):
        highest = max(numbers - {IGNORE_INDEX})
        moved = tuple((value, value - first) for value in range(first, highest + 1))
        encoding = replace(encoding, gray_to_label=((0, INVALID_LABEL), *moved))  # a 0 in val or test is an error there
        classes = [
            ClassInfo(name=f"class{value}", rgb=default_rgb(value - first)) for value in range(first, highest + 1)
        ]
        notes.append(
            f"The training masks have the values {first} to {highest} and never 0, so {first} is read as label 0, and so on. "
            "If 0 is a class, name all classes in classes.csv."
        )
    if not classes:
        classes = _numbered_classes(numbers, masks, root)
    return InferredClasses(classes, encoding, tuple(notes))


def _infer_colors(
    dataset: SegmentationDataset, masks: Sequence[MaskValues], root: Path
) -> tuple[MaskEncoding, list[str]]:
    """The encoding of color and palette masks, and notes. Raises: UnknownClassesError for colors without a class file."""
    encoding, known = dataset.mask_encoding, dict(dataset.mask_encoding.color_to_label)
    colors = {value for mask in masks if mask.kind == "color" for value in mask.values.tolist()}
    unknown = colors - known.keys() - ({BLACK} if known else set())
    if unknown and all(value % GRAY_UNIT == 0 for value in colors):
        encoding = replace(encoding, accept_gray_rgb=True)
        colors = set()
    if colors and not dataset.classes and _are_class_colors(masks):
        ordered = sorted(colors)  # black, most often the background, first
        return replace(encoding, color_to_label=tuple((color, label) for label, color in enumerate(ordered))), [
            f"No class file: each of the {len(ordered)} colors of the training masks is a class, named after its color. Name them "
            f"in {root / CLASS_FILE}, such as `background,{format_rgb(ordered[0])}`, one line per color: "
            f"{'; '.join(map(format_rgb, ordered))}."
        ]
    if colors and not dataset.classes:
        listed = "; ".join(map(format_rgb, sorted(colors)[:MAX_LISTED_COLORS])) + (
            "; ..." if len(colors) > MAX_LISTED_COLORS else ""
        )
        raise UnknownClassesError(
            f"{root}: the masks are in color ({listed}), but no classes.csv maps the colors to classes; "
            "add one with a line `name,r,g,b` per class."
        )
    entries = _palette_entries(masks) - {(IGNORE_INDEX, BLACK)}  # palettes of few classes are padded with black
    label_by_color = {BLACK: IGNORE_INDEX, **known}
    if known and entries and all(color in label_by_color for _, color in entries):
        encoding = replace(
            encoding,
            use_palette_colors=any(
                encoding.decode_value(index, "gray") != label_by_color[color] for index, color in entries
            ),
        )
        colors |= {color for _, color in entries if encoding.use_palette_colors}
    if known and BLACK in colors and BLACK not in known:
        line = class_line(dataset.files, "0,0,0")
        note = f"Black (0,0,0) belongs to no class and is ignored. If it is a class, add {line}."
        return replace(encoding, color_to_label=(*encoding.color_to_label, (BLACK, IGNORE_INDEX))), [note]
    return encoding, []


def _are_class_colors(masks: Sequence[MaskValues]) -> bool:
    """Whether all masks have a few exact colors: more, or lossy files, are mixtures at borders."""
    colors = {value for mask in masks for value in mask.values.tolist()}
    return (
        2 <= len(colors) <= MAX_UNNAMED_COLORS
        and all(mask.kind == "color" and not mask.lossy and not mask.extra_values for mask in masks)
        and len(masks) > 1
    )


def _color_name(color: int) -> str:
    return COLOR_NAMES.get(color) or f"color_{format_rgb(color).replace(',', '_')}"


def _unpack_rgb(color: int) -> tuple[int, int, int]:
    return color >> 16, color >> 8 & 255, color & 255


def _palette_entries(masks: Sequence[MaskValues]) -> set[tuple[int, int]]:
    """The palette indices that occur, with their colors."""
    return {
        pair
        for mask in masks
        if mask.kind == "palette"
        for pair in zip(mask.values.tolist(), mask.palette_colors.tolist(), strict=False)
    }


def _numeric_values(masks: Sequence[MaskValues], encoding: MaskEncoding) -> set[int]:
    """The values that are numbers: gray values, palette indices, and gray values saved as RGB."""
    found: set[int] = set()
    for mask in masks:
        if mask.kind == "gray" or (mask.kind == "palette" and not encoding.use_palette_colors):
            found.update(mask.values.tolist())
        elif mask.kind == "color" and encoding.accept_gray_rgb:
            found.update(value // GRAY_UNIT for value in mask.values.tolist())
    return found


def _palettes_match_labels(encoding: MaskEncoding, masks: Sequence[MaskValues]) -> bool:
    """Whether palettes show a label in its class color, and 255 not in white: then 255 is ignored, as `data remap` writes it."""
    known, entries = dict(encoding.color_to_label), _palette_entries(masks)
    return any(known.get(color) == index for index, color in entries) and (IGNORE_INDEX, WHITE) not in entries


def _gray_class_colors(numbers: set[int], dataset: SegmentationDataset) -> tuple[tuple[int, int], ...]:
    """Gray value -> label, if the gray values are not labels but gray colors of the class file, such as 0 and 255."""
    known = dict(dataset.mask_encoding.color_to_label)
    found = tuple((number, known[number * GRAY_UNIT]) for number in sorted(numbers) if number * GRAY_UNIT in known)
    return found if found and len(found) == len(numbers) and max(numbers) >= len(dataset.classes) else ()


def _foreground_value(masks: Sequence[MaskValues], numbers: set[int]) -> int | None:
    """The value that means foreground in masks of two values; None if the masks have other values."""
    if (
        len(numbers) == 2
        and min(numbers) == 0
        and max(numbers) >= MIN_FOREGROUND_VALUE
        and not any(mask.extra_values for mask in masks)
    ):
        return max(numbers)
    # Mixtures of 0 and 255 lie on both sides of the middle; unnamed labels do not.
    dark, bright = (
        any(low < number <= high for number in numbers)
        for low, high in ((BINARY_TOLERANCE, 127), (127, 254 - BINARY_TOLERANCE))
    )
    antialiased = dark and bright and len(numbers) > MAX_DISTINCT_VALUES
    if not masks or any(mask.kind != "gray" or not (antialiased or mask.lossy) for mask in masks):
        return None
    values, pixels = (np.concatenate([getattr(mask, name) for mask in masks]) for name in ("values", "pixel_counts"))
    low, high = pixels[values <= BINARY_TOLERANCE].sum(), pixels[values >= 255 - BINARY_TOLERANCE].sum()
    return 255 if low and high and low + high >= MIN_BINARY_FRACTION * pixels.sum() else None


def _first_label(numbers: set[int]) -> int | None:
    """1 if the labels start there, without gaps; None if they start at 0, or otherwise."""
    labels = sorted(numbers - {IGNORE_INDEX})
    starts_at_one = len(labels) >= 2 and labels == list(range(1, len(labels) + 1)) and labels[-1] <= MAX_UNNAMED_LABEL
    return 1 if starts_at_one else None


def _binary_note(foreground: int, name: str, exact: bool) -> str:
    if not exact:
        return (
            f"The masks are lossy or anti-aliased; nearly all pixels are close to 0 or {foreground}. {foreground} is read as "
            f"{name} (label 1). `maskserve data remap DATA OUT --nearest` maps each pixel to the nearer of the two."
        )
    not_ignored = ", not as ignored" if foreground == IGNORE_INDEX else ""
    return (
        f"The training masks have only the values 0 and {foreground}, so {foreground} is read as {name} (label 1){not_ignored}. "
        "To read the masks as written, name three or more classes in classes.csv."
    )


def _value_lines(numbers: set[int]) -> str:
    """The lines of a class file for these values."""
    lines = [f"`class{value},{value}`" for value in sorted(numbers - {IGNORE_INDEX})]
    if len(lines) <= MAX_LISTED_VALUES:
        return ", ".join(lines)
    return f"{lines[0]}, {lines[1]} and so on up to {lines[-1]}, for the {len(lines)} values that are classes"


def _numbered_classes(numbers: set[int], masks: Sequence[MaskValues], root: Path) -> list[ClassInfo]:
    """Classes class0, class1, ... up to the highest label. Raises: UnknownClassesError if that gives too few or too many."""
    if not masks:
        raise UnknownClassesError(f"{root}: no training mask can be read; {LINT_ADVICE}.")
    highest = max((number for number in numbers if number != IGNORE_INDEX), default=0)
    if highest < 1:
        raise UnknownClassesError(f"The masks of {root} have a single class; training needs at least two.")
    if MAX_UNNAMED_LABEL < highest <= IGNORE_INDEX:
        raise UnknownClassesError(
            f"The masks of {root} have {len(numbers)} values up to {highest}, which do not look like classes. Masks that are "
            "anti-aliased, saved as JPEG, scaled for viewing, or of instance ids have such values. Export labels as PNG. "
            f"If the values are classes, write them to {root / CLASS_FILE}, one per line: `name,value`, then "
            f"{_value_lines(numbers)}."
        )
    if highest > IGNORE_INDEX:
        raise UnknownClassesError(
            f"The masks of {root} have values up to {highest:,}, but labels are 0 to 254; instance ids? "
            "Export masks of classes."
        )
    return [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(highest + 1)]
