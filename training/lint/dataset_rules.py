"""What may be wrong with a data set as a whole: its classes, its splits."""

import numpy as np

from models.spec import IGNORE_INDEX
from training.lint.findings import Finding, LintReport
from training.lint.sample_rules import label_step

MIN_CLASS_FRACTION, MIN_CLASS_IMAGES = 0.001, 5  # of the labelled pixels of train, and its images
MIN_TRAIN_IMAGES = 8  # training images
MAX_VOID_FRACTION = 0.5  # of a split's pixels
MAX_NAMED_CLASSES = 12  # classes that are named one by one


def check_dataset(report: LintReport, wanted: tuple[str, ...]) -> list[Finding]:
    """The findings that no file has alone."""
    return [
        *_check_notes(report),
        *_check_unmatched_files(report),
        *_check_single_class(report),
        *_check_mixed_binary(report),
        *_check_palettes(report),
        *_check_splits(report, wanted),
        *_check_absent_classes(report),
        *_check_rare_classes(report),
    ]


def _check_notes(report: LintReport) -> list[Finding]:
    notes = dict.fromkeys(note for samples in report.datasets.values() for note in samples.notes)
    return [Finding("warning", "understood as", note) for note in notes]


def _check_unmatched_files(report: LintReport) -> list[Finding]:
    """A split that is cut from another tells the same files as that."""
    alone = dict.fromkeys(path for samples in report.datasets.values() for path in samples.unmatched_images)
    orphans = dict.fromkeys(
        path for samples in report.datasets.values() for path in getattr(samples, "unmatched_masks", ())
    )
    return [
        *(Finding("error", "image without mask", f"{path} has no mask of its name.") for path in alone),
        *(Finding("warning", "mask without image", f"{path} has no image of its name.") for path in orphans),
    ]


def _check_single_class(report: LintReport) -> list[Finding]:
    """Masks that teach one class or none, and why that may be (mmseg #1609: 0/255 masks give IoU 0 and no hint)."""
    counts = report.pixel_counts["train"]
    taught = np.flatnonzero(counts[:IGNORE_INDEX])
    values = {
        value
        for facts in report.sample_stats.values()
        for each in facts
        for value in (
            [*each.values.tolist(), -1] if each.extra_values or each.kind == "colour" else each.values.tolist()
        )
    }
    if values == {0, 255} and taught.tolist() == [0] and counts[IGNORE_INDEX]:
        share = counts[IGNORE_INDEX] / counts.sum()
        detail = f"All masks hold 0 and 255 alone, 255 on {share:.1%} of train's pixels; the classes are {_class_names(report)}."
        return [Finding("error", "masks of 0 and 255", detail)]
    if len(taught) >= 2:
        step = label_step(sorted(values - {IGNORE_INDEX}))
        far = step is not None and len(values) > 2 and max(values - {IGNORE_INDEX}) < len(report.classes)
        detail = f"The masks hold {', '.join(map(str, sorted(values)[:6]))} and so on, {step} apart."
        return [Finding("warning", "labels far apart", detail)] if far else []
    if len(taught) == 1 and taught[0] < len(report.classes):
        name = report.classes[taught[0]].name
        return [
            Finding(
                "error", "one class alone", f"Every mask of train holds {name} (label {taught[0]}) and nothing else."
            )
        ]
    if len(taught) == 0 and counts[IGNORE_INDEX]:
        return [Finding("error", "no labels", "Every pixel of train is void.")]
    return []


def _check_mixed_binary(report: LintReport) -> list[Finding]:
    """Masks of two classes, some of which hold 1 and the others 255: mostly the same class, of two tools."""
    every = [
        each for facts in report.sample_stats.values() for each in facts if each.kind != "colour" and not each.errors
    ]
    held = [frozenset(each.values.tolist()) for each in every]
    if len(report.classes) != 2 or any(values >= {1, IGNORE_INDEX} for values in held):
        return []
    ones, highs = (sum(value in values for values in held) for value in (1, IGNORE_INDEX))
    meant = dict(next(iter(report.datasets.values())).mask_encoding.gray_to_label).get(IGNORE_INDEX, IGNORE_INDEX)
    if not ones or not highs or meant != IGNORE_INDEX:
        return []
    detail = f"{ones} masks hold 1 and {highs} hold 255, and none holds both: 255 may be meant as 1, and is void."
    return [Finding("warning", "0/1 and 0/255 mixed", detail)]


def _check_palettes(report: LintReport) -> list[Finding]:
    """One place in two colours: the file's palette was made for it alone, and its places are no labels."""
    if any(samples.mask_encoding.use_palette_colors for samples in report.datasets.values()):
        return []
    seen: dict[int, tuple[int, str, int]] = {}
    for split, facts in report.sample_stats.items():
        for index, each in enumerate(facts):
            mask = str(report.datasets[split].pairs[index].mask)
            for value, colour in zip(each.values.tolist(), each.palette_colors.tolist(), strict=False):
                first = seen.setdefault(value, (colour, mask, index))
                if first[0] != colour:
                    shown = [f"{one >> 16},{one >> 8 & 255},{one & 255}" for one in (first[0], colour)]
                    detail = f"Palette place {value} is the colour {shown[0]} in {first[1]} and {shown[1]} in {mask}."
                    return [Finding("warning", "palettes that differ", detail, locations=((split, index),))]
    return []


def _check_splits(report: LintReport, wanted: tuple[str, ...]) -> list[Finding]:
    found = []
    if "val" in wanted and "val" not in report.image_counts:
        found.append(Finding("warning", "no val split", f"There is {', '.join(report.image_counts)} alone."))
    if report.image_counts["train"] < MIN_TRAIN_IMAGES:
        told = f"train has {report.image_counts['train']} image{'s' * (report.image_counts['train'] != 1)}."
        found.append(Finding("warning", "few images", told))
    for split, counts in report.pixel_counts.items():
        if counts.sum() and counts[IGNORE_INDEX] / counts.sum() > MAX_VOID_FRACTION:
            share = counts[IGNORE_INDEX] / counts.sum()
            found.append(Finding("warning", "much void", f"{share:.1%} of the pixels of {split} are void.", share))
    return found


def _check_absent_classes(report: LintReport) -> list[Finding]:
    found = []
    for split, counts in report.pixel_counts.items():
        absent = [label for label in range(len(report.classes)) if counts[label] == 0]
        if split == "train":
            lost = [label for label in absent if any(other[label] for other in report.pixel_counts.values())]
            for label in lost:
                there = ", ".join(
                    f"{other} {held[label]:,}" for other, held in report.pixel_counts.items() if held[label]
                )
                detail = f"{_class_label(report, label)} is on no pixel of train, but on others ({there}), where it must be missed."
                found.append(Finding("warning", "class only outside train", detail))
            absent = [label for label in absent if label not in lost]
        else:  # what is in no split is told of train
            absent = [label for label in absent if any(other[label] for other in report.pixel_counts.values())]
        why = "so it cannot be learned" if split == "train" else "so nothing is measured of it there"
        if len(absent) > MAX_NAMED_CLASSES:
            names = ", ".join(report.classes[label].name for label in absent[:MAX_NAMED_CLASSES])
            detail = (
                f"{len(absent)} of {len(report.classes)} classes are on no pixel of {split}, {why}: {names} and more."
            )
            found.append(Finding("warning", "class that never occurs", detail, len(absent)))
        else:
            found += [
                Finding(
                    "warning",
                    "class that never occurs",
                    f"{_class_label(report, label)} is on no pixel of {split}, {why}.",
                )
                for label in absent
            ]
    return found


def _check_rare_classes(report: LintReport) -> list[Finding]:
    counts, holders = report.pixel_counts["train"], report.images_with_label["train"]
    total = counts[:IGNORE_INDEX].sum()
    found = []
    for label in range(len(report.classes)):
        if not counts[label]:
            continue
        share = counts[label] / total
        if share < MIN_CLASS_FRACTION or holders[label] < min(MIN_CLASS_IMAGES, report.image_counts["train"] // 4):
            times = f"{holders[label]} of {report.image_counts['train']} training images"
            detail = f"{_class_label(report, label)} is in {times}, on {100 * share:.2g}% of the labelled pixels."
            found.append(Finding("warning", "rare class", detail, -share))
    return found


def _class_label(report: LintReport, label: int) -> str:
    return f"{report.classes[label].name} (label {label})"


def _class_names(report: LintReport) -> str:
    names = [entry.name for entry in report.classes]
    return ", ".join(names[:MAX_NAMED_CLASSES]) + (" and more" if len(names) > MAX_NAMED_CLASSES else "")
