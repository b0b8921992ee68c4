"""What may be wrong with a data set as a whole: its classes, its splits."""

import numpy as np

from models.spec import VOID
from training.lint.findings import Finding, Report
from training.lint.sample_rules import spread

RARE_SHARE, RARE_PICTURES = 0.001, 5  # of the labelled pixels of train, and its pictures
FEW = 8  # training pictures
MUCH_VOID = 0.5  # of a split's pixels
MOST_NAMED = 12  # classes that are named one by one


def judge_whole(report: Report, wanted: tuple[str, ...]) -> list[Finding]:
    """The findings that no file has alone."""
    return [
        *_understood(report),
        *_unpaired(report),
        *_one_class(report),
        *_mixed(report),
        *_palettes(report),
        *_splits(report, wanted),
        *_absent(report),
        *_rare(report),
    ]


def _understood(report: Report) -> list[Finding]:
    notes = dict.fromkeys(note for samples in report.samples.values() for note in samples.notes)
    return [Finding("warning", "understood as", note) for note in notes]


def _unpaired(report: Report) -> list[Finding]:
    """A split that is cut from another tells the same files as that."""
    alone = dict.fromkeys(path for samples in report.samples.values() for path in samples.unpaired)
    orphans = dict.fromkeys(path for samples in report.samples.values() for path in getattr(samples, "orphans", ()))
    return [
        *(Finding("error", "picture without mask", f"{path} has no mask of its name.") for path in alone),
        *(Finding("warning", "mask without picture", f"{path} has no picture of its name.") for path in orphans),
    ]


def _one_class(report: Report) -> list[Finding]:
    """Masks that teach one class or none, and why that may be (mmseg #1609: 0/255 masks give IoU 0 and no hint)."""
    counts = report.pixels["train"]
    taught = np.flatnonzero(counts[:VOID])
    values = {
        value
        for facts in report.facts.values()
        for each in facts
        for value in ([*each.values.tolist(), -1] if each.more or each.kind == "colour" else each.values.tolist())
    }
    if values == {0, 255} and taught.tolist() == [0] and counts[VOID]:
        share = counts[VOID] / counts.sum()
        detail = (
            f"All masks hold 0 and 255 alone, 255 on {share:.1%} of train's pixels; the classes are {_named(report)}."
        )
        return [Finding("error", "masks of 0 and 255", detail)]
    if len(taught) >= 2:
        step = spread(sorted(values - {VOID}))
        far = step is not None and len(values) > 2 and max(values - {VOID}) < len(report.classes)
        detail = f"The masks hold {', '.join(map(str, sorted(values)[:6]))} and so on, {step} apart."
        return [Finding("warning", "labels far apart", detail)] if far else []
    if len(taught) == 1 and taught[0] < len(report.classes):
        name = report.classes[taught[0]].name
        return [
            Finding(
                "error", "one class alone", f"Every mask of train holds {name} (label {taught[0]}) and nothing else."
            )
        ]
    if len(taught) == 0 and counts[VOID]:
        return [Finding("error", "no labels", "Every pixel of train is void.")]
    return []


def _mixed(report: Report) -> list[Finding]:
    """Masks of two classes, some of which hold 1 and the others 255: mostly the same class, of two tools."""
    every = [each for facts in report.facts.values() for each in facts if each.kind != "colour" and not each.errors]
    held = [frozenset(each.values.tolist()) for each in every]
    if len(report.classes) != 2 or any(values >= {1, VOID} for values in held):
        return []
    ones, highs = (sum(value in values for values in held) for value in (1, VOID))
    meant = dict(next(iter(report.samples.values())).meaning.grey).get(VOID, VOID)
    if not ones or not highs or meant != VOID:
        return []
    detail = f"{ones} masks hold 1 and {highs} hold 255, and none holds both: 255 may be meant as 1, and is void."
    return [Finding("warning", "0/1 and 0/255 mixed", detail)]


def _palettes(report: Report) -> list[Finding]:
    """One place in two colours: the file's palette was made for it alone, and its places are no labels."""
    if any(samples.meaning.by_palette for samples in report.samples.values()):
        return []
    seen: dict[int, tuple[int, str, int]] = {}
    for split, facts in report.facts.items():
        for index, each in enumerate(facts):
            mask = str(report.samples[split].pairs[index].mask)
            for value, colour in zip(each.values.tolist(), each.colours.tolist(), strict=False):
                first = seen.setdefault(value, (colour, mask, index))
                if first[0] != colour:
                    shown = [f"{one >> 16},{one >> 8 & 255},{one & 255}" for one in (first[0], colour)]
                    detail = f"Palette place {value} is the colour {shown[0]} in {first[1]} and {shown[1]} in {mask}."
                    return [Finding("warning", "palettes that differ", detail, where=((split, index),))]
    return []


def _splits(report: Report, wanted: tuple[str, ...]) -> list[Finding]:
    found = []
    if "val" in wanted and "val" not in report.pictures:
        found.append(Finding("warning", "no val split", f"There is {', '.join(report.pictures)} alone."))
    if report.pictures["train"] < FEW:
        told = f"train has {report.pictures['train']} picture{'s' * (report.pictures['train'] != 1)}."
        found.append(Finding("warning", "few pictures", told))
    for split, counts in report.pixels.items():
        if counts.sum() and counts[VOID] / counts.sum() > MUCH_VOID:
            share = counts[VOID] / counts.sum()
            found.append(Finding("warning", "much void", f"{share:.1%} of the pixels of {split} are void.", share))
    return found


def _absent(report: Report) -> list[Finding]:
    found = []
    for split, counts in report.pixels.items():
        absent = [label for label in range(len(report.classes)) if counts[label] == 0]
        if split == "train":
            lost = [label for label in absent if any(other[label] for other in report.pixels.values())]
            for label in lost:
                there = ", ".join(f"{other} {held[label]:,}" for other, held in report.pixels.items() if held[label])
                detail = f"{_class(report, label)} is on no pixel of train, but on others ({there}), where it must be missed."
                found.append(Finding("warning", "class only outside train", detail))
            absent = [label for label in absent if label not in lost]
        else:  # what is in no split is told of train
            absent = [label for label in absent if any(other[label] for other in report.pixels.values())]
        why = "so it cannot be learned" if split == "train" else "so nothing is measured of it there"
        if len(absent) > MOST_NAMED:
            names = ", ".join(report.classes[label].name for label in absent[:MOST_NAMED])
            detail = (
                f"{len(absent)} of {len(report.classes)} classes are on no pixel of {split}, {why}: {names} and more."
            )
            found.append(Finding("warning", "class that never occurs", detail, len(absent)))
        else:
            found += [
                Finding(
                    "warning", "class that never occurs", f"{_class(report, label)} is on no pixel of {split}, {why}."
                )
                for label in absent
            ]
    return found


def _rare(report: Report) -> list[Finding]:
    counts, holders = report.pixels["train"], report.holders["train"]
    total = counts[:VOID].sum()
    found = []
    for label in range(len(report.classes)):
        if not counts[label]:
            continue
        share = counts[label] / total
        if share < RARE_SHARE or holders[label] < min(RARE_PICTURES, report.pictures["train"] // 4):
            times = f"{holders[label]} of {report.pictures['train']} training pictures"
            detail = f"{_class(report, label)} is in {times}, on {100 * share:.2g}% of the labelled pixels."
            found.append(Finding("warning", "rare class", detail, -share))
    return found


def _class(report: Report, label: int) -> str:
    return f"{report.classes[label].name} (label {label})"


def _named(report: Report) -> str:
    names = [entry.name for entry in report.classes]
    return ", ".join(names[:MOST_NAMED]) + (" and more" if len(names) > MOST_NAMED else "")
