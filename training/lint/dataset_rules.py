"""Rules for a data set as a whole: its classes and splits."""

import cv2
import numpy as np

from models.errors import MaskserveError
from models.spec import IGNORE_INDEX
from training.data.dataset import SegmentationDataset
from training.data.mask_decoding import format_rgb
from training.lint.findings import Finding, LintReport
from training.lint.sample_rules import label_step

MIN_CLASS_FRACTION, MIN_CLASS_IMAGES = 0.001, 5  # of the labeled pixels of train; images of train
MIN_TRAIN_IMAGES = 8
MIN_COMPARED_MASKS = 3  # fewer masks are equal, or count up, by chance
MIN_INSTANCES = 4  # objects in the mask with the most
MIN_COUNTING_FRACTION = 0.9  # of the masks that count up without gaps
MAX_IGNORED_FRACTION = 0.5  # of the pixels of a split
MAX_NAMED_CLASSES = 12  # classes listed by name


def check_dataset(report: LintReport, requested_splits: tuple[str, ...]) -> list[Finding]:
    """The findings that no single file has."""
    if report.axes != "HW":
        unmatched = _check_unlabelled_recordings(report) if report.axes == "T" else _check_unmatched_files(report)
        return [
            *_check_notes(report),
            *unmatched,
            *_check_splits(report, requested_splits),
            *_check_absent_classes(report),
            *_check_rare_classes(report),
        ]
    if not report.classes:
        return [*_check_notes(report), *_check_unmatched_files(report)]
    return [
        *_check_notes(report),
        *_check_unmatched_files(report),
        *_check_single_class(report),
        *_check_equal_masks(report),
        *_check_instance_numbers(report),
        *_check_mixed_binary(report),
        *_check_palettes(report),
        *_check_splits(report, requested_splits),
        *_check_absent_classes(report),
        *_check_rare_classes(report),
    ]


def _check_notes(report: LintReport) -> list[Finding]:
    notes = dict.fromkeys(note for dataset in report.datasets.values() for note in dataset.notes)
    return [Finding("warning", "assumption", note) for note in notes]


def _check_unmatched_files(report: LintReport) -> list[Finding]:
    """Splits cut from one folder list the same files, so each file is reported once."""
    datasets = report.datasets.values()
    images = dict.fromkeys(path for dataset in datasets for path in dataset.unmatched_images)
    masks = dict.fromkeys(path for dataset in datasets for path in dataset.unmatched_masks)
    return [
        *(Finding("error", "image without mask", f"{path} has no mask of the same name.") for path in images),
        *(Finding("warning", "mask without image", f"{path} has no image of the same name.") for path in masks),
    ]


def _check_unlabelled_recordings(report: LintReport) -> list[Finding]:
    paths = dict.fromkeys(path for dataset in report.datasets.values() for path in dataset.unmatched_images)
    return [Finding("warning", "recording without labels", f"{path} has no label file.") for path in paths]


def _check_single_class(report: LintReport) -> list[Finding]:
    """Masks with one class or none, and the likely cause (mmseg #1609: 0/255 masks give IoU 0 without any hint)."""
    counts = report.pixel_counts["train"]
    present = np.flatnonzero(counts[:IGNORE_INDEX])
    values = _all_values(report)
    if values == {0, 255} and present.tolist() == [0] and counts[IGNORE_INDEX]:
        fraction = counts[IGNORE_INDEX] / counts.sum()
        detail = (
            f"All masks have only the values 0 and 255, with 255 on {fraction:.1%} of the pixels of train; the classes are "
            f"{_class_names(report)}."
        )
        return [Finding("error", "mask values 0 and 255", detail)]
    if len(present) >= 2:
        step = label_step(sorted(values - {IGNORE_INDEX}))
        if step is None or len(values) <= 2 or max(values - {IGNORE_INDEX}) >= len(report.classes):
            return []
        detail = f"The masks have the labels {', '.join(map(str, sorted(values)[:6]))} and so on, {step} apart."
        return [Finding("warning", "labels look scaled", detail)]
    if len(present) == 1 and present[0] < len(report.classes) and not report.has_unknown_values:
        detail = f"All masks of train have a single class, {_class_label(report, int(present[0]))}."
        return [Finding("error", "single class", detail)]
    if len(present) == 0 and counts[IGNORE_INDEX]:
        return [Finding("error", "no labeled pixels", "Every pixel of train is ignored.")]
    return []


def _all_values(report: LintReport) -> set[int]:
    """The values in all masks; with -1 if there are colors or further values."""
    values: set[int] = set()
    for split_stats in report.sample_stats.values():
        for stats in split_stats:
            values.update(stats.values.tolist())
            if stats.extra_values or stats.kind == "color":
                values.add(-1)
    return values


def _check_equal_masks(report: LintReport) -> list[Finding]:
    """Masks of several values that are all the same: a field of view, not labels."""
    all_stats = [stats for split_stats in report.sample_stats.values() for stats in split_stats if stats.is_valid]
    keys = {
        (stats.mask_size, stats.values.tobytes(), stats.quarters.tobytes(), stats.edges.tobytes())
        for stats in all_stats
    }
    if len(all_stats) < MIN_COMPARED_MASKS or len(keys) > 1 or len(all_stats[0].values) < 2:
        return []
    mask = next(iter(report.datasets.values())).pairs[0].mask
    return [Finding("warning", "all masks are equal", f"All {len(all_stats):,} masks have the same areas, as {mask}.")]


def _check_instance_numbers(report: LintReport) -> list[Finding]:
    """Masks whose values count up without gaps, each on one connected region: numbers of objects, not classes."""
    if any(entry.name != f"class{label}" for label, entry in enumerate(report.classes)):
        return []  # named classes are classes
    highest: list[int] = []
    counting: list[tuple[str, int]] = []
    for split, split_stats in report.sample_stats.items():
        for index, stats in enumerate(split_stats):
            values = [value for value in stats.values.tolist() if value and value != IGNORE_INDEX]
            if values and stats.kind == "gray":
                highest.append(values[-1])
                if values == list(range(1, values[-1] + 1)):
                    counting.append((split, index))
    if len(highest) < MIN_COMPARED_MASKS or max(highest) < MIN_INSTANCES:
        return []
    if len(counting) < MIN_COUNTING_FRACTION * len(highest):
        return []
    sample = counting[:: max(1, len(counting) // MIN_COMPARED_MASKS)][:MIN_COMPARED_MASKS]
    if not all(_values_are_regions(report.datasets[split], index) for split, index in sample):
        return []
    detail = (
        f"{len(counting)} of {len(highest)} masks have the values 1 to N without gaps, N from {min(highest)} to {max(highest)}, "
        "and each value is one connected region: these look like numbers of objects and not like classes."
    )
    return [Finding("warning", "instance numbers", detail, locations=(sample[0],))]


def _values_are_regions(dataset: SegmentationDataset, index: int) -> bool:
    """Whether nearly every value above 0 of a mask is one connected region."""
    try:
        array = dataset.raw_mask(index).array
    except MaskserveError:
        return False
    values = [value for value in np.unique(array).tolist() if value]
    regions = [cv2.connectedComponents((array == value).astype(np.uint8))[0] - 1 for value in values]
    return bool(sum(count == 1 for count in regions) >= MIN_COUNTING_FRACTION * len(values))


def _check_mixed_binary(report: LintReport) -> list[Finding]:
    """Masks of two classes, some with 1 and others with 255: usually the same class, written by two tools."""
    values_by_mask = [
        frozenset(stats.values.tolist())
        for split_stats in report.sample_stats.values()
        for stats in split_stats
        if stats.kind != "color" and not stats.errors
    ]
    if len(report.classes) != 2 or any(values >= {1, IGNORE_INDEX} for values in values_by_mask):
        return []
    ones, highs = (sum(value in values for values in values_by_mask) for value in (1, IGNORE_INDEX))
    encoding = next(iter(report.datasets.values())).mask_encoding
    is_mapped = dict(encoding.gray_to_label).get(IGNORE_INDEX, IGNORE_INDEX) != IGNORE_INDEX
    if not ones or not highs or is_mapped:
        return []
    detail = f"{ones} masks have the value 1, {highs} have 255, and none has both: 255 may mean 1, but is ignored."
    return [Finding("warning", "mixed 0/1 and 0/255 masks", detail)]


def _check_palettes(report: LintReport) -> list[Finding]:
    """One palette index with two colors: the palettes were made per file, so the indices are not labels."""
    if any(dataset.mask_encoding.use_palette_colors for dataset in report.datasets.values()):
        return []
    first_use: dict[int, tuple[int, str]] = {}  # by palette index: color and file
    for split, split_stats in report.sample_stats.items():
        for index, stats in enumerate(split_stats):
            mask = str(report.datasets[split].pairs[index].mask)
            for value, color in zip(stats.values.tolist(), stats.palette_colors.tolist(), strict=False):
                first_color, first_mask = first_use.setdefault(value, (color, mask))
                if first_color != color:
                    detail = (
                        f"The palette index {value} is the color {format_rgb(first_color)} in {first_mask}, but "
                        f"{format_rgb(color)} in {mask}."
                    )
                    return [Finding("warning", "inconsistent palettes", detail, locations=((split, index),))]
    return []


def _check_splits(report: LintReport, requested_splits: tuple[str, ...]) -> list[Finding]:
    found = []
    if "val" in requested_splits and "val" not in report.image_counts:
        found.append(Finding("warning", "no val split", f"There is only {', '.join(report.image_counts)}."))
    count, (sample, part) = report.image_counts["train"], _words(report)
    if count < MIN_TRAIN_IMAGES:
        found.append(Finding("warning", "few images", f"train has {count} {sample}{'s' * (count != 1)}."))
    for split, counts in report.pixel_counts.items():
        fraction = counts[IGNORE_INDEX] / max(1, counts.sum())
        if fraction > MAX_IGNORED_FRACTION:
            detail = f"{fraction:.1%} of the {part}s of {split} are ignored."
            found.append(Finding("warning", "mostly unlabeled", detail, fraction))
    return found


def _check_absent_classes(report: LintReport) -> list[Finding]:
    """Classes on no pixel of a split. A class that is in no split is reported once, for train."""
    found, part = [], _words(report)[1]
    for split, counts in report.pixel_counts.items():
        # A mask with another error, such as a wrong size, is not counted but may have the class.
        absent = [
            label
            for label in range(len(report.classes))
            if counts[label] == 0 and label not in report.labels_in_errors.get(split, ())
        ]
        if report.num_unreadable_masks or report.has_unknown_values:
            continue
        elsewhere = [label for label in absent if any(other[label] for other in report.pixel_counts.values())]
        if split == "train":
            found += [_missing_from_train(report, label) for label in elsewhere]
            absent = [label for label in absent if label not in elsewhere]
            consequence = "so it cannot be learned"
        else:
            absent, consequence = elsewhere, "so it is not evaluated there"
        if len(absent) > MAX_NAMED_CLASSES:
            names = ", ".join(report.classes[label].name for label in absent[:MAX_NAMED_CLASSES])
            detail = f"{len(absent)} of {len(report.classes)} classes are on no {part} of {split}, {consequence}: {names} and more."
            found.append(Finding("warning", "absent class", detail, len(absent)))
            continue
        for label in absent:
            detail = f"{_class_label(report, label)} is on no {part} of {split}, {consequence}."
            found.append(Finding("warning", "absent class", detail))
    return found


def _missing_from_train(report: LintReport, label: int) -> Finding:
    sample, part = _words(report)
    images = ", ".join(
        f"{split} {counts[label]:,}" for split, counts in report.images_with_label.items() if counts[label]
    )
    detail = f"{_class_label(report, label)} is on no {part} of train, so it will not be found elsewhere ({sample}s: {images})."
    return Finding("warning", "class only in val or test", detail)


def _check_rare_classes(report: LintReport) -> list[Finding]:
    counts, image_counts = report.pixel_counts["train"], report.images_with_label["train"]
    total = counts[:IGNORE_INDEX].sum()
    sample, part = _words(report)
    min_images = min(MIN_CLASS_IMAGES, report.image_counts["train"] // 4)
    found = []
    for label in range(len(report.classes)):
        if not counts[label]:
            continue
        fraction = counts[label] / total
        if fraction < MIN_CLASS_FRACTION or image_counts[label] < min_images:
            images = f"{image_counts[label]} of {report.image_counts['train']} training {sample}s"
            detail = f"{_class_label(report, label)} is in {images}, on {100 * fraction:.2g}% of the labeled {part}s."
            found.append(Finding("warning", "rare class", detail, -fraction))
    return found


def _class_label(report: LintReport, label: int) -> str:
    return f"{report.classes[label].name} (label {label})"


def _words(report: LintReport) -> tuple[str, str]:
    """What a sample of the data set is called, and the smallest part of it, such as image and pixel."""
    return {"HW": ("image", "pixel"), "T": ("signal", "time step"), "DHW": ("volume", "voxel")}[report.axes]


def _class_names(report: LintReport) -> str:
    names = [entry.name for entry in report.classes]
    return ", ".join(names[:MAX_NAMED_CLASSES]) + (" and more" if len(names) > MAX_NAMED_CLASSES else "")
