"""What is wrong with a data set, found before epoch 0.

Every file is read, in parallel. An error would spoil or stop a training (an out-of-range label makes
cross-entropy write out of bounds on a CPU, pytorch #194802); a warning is worth a look.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.errors import MaskserveError
from models.spec import VOID, ClassInfo
from training.data import Samples, has_split, load
from training.data.samples import SPLITS


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and with which file."""

    level: str  # "error" or "warning"
    kind: str  # such as "label out of range"; findings are counted by it
    detail: str  # names the file and what it holds


@dataclass
class Report:
    """What the lint saw."""

    classes: list[ClassInfo]
    findings: list[Finding] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)  # by split
    pixels: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # by split: 256 counts, by label; 255 is void
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of the training pictures

    @property
    def errors(self) -> list[Finding]:
        """The findings that forbid training."""
        return [finding for finding in self.findings if finding.level == "error"]


def lint(
    root: Path,
    format: str = "auto",
    splits: tuple[str, ...] = SPLITS,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read every picture and mask of a data set. A split that has no folder is passed over, but train must be there.

    `progress` is called with the number of files done and of all.
    Raises: DataError for a folder that is no data set at all, or a split that is laid out wrongly.
    """
    opened = {"train": load(root, "train", format)}
    for split in splits:
        if split != "train" and has_split(root, split, format):
            opened[split] = load(root, split, format)
    report = Report(opened["train"].classes)
    total, done = sum(len(samples) for samples in opened.values()), 0
    for split, samples in opened.items():
        report.pictures[split] = len(samples)
        report.pixels[split] = np.zeros(256, np.int64)
        report.findings += [
            Finding(
                "error", "picture without mask", f"{path} has no mask of its name; add it or take the picture away."
            )
            for path in samples.unpaired
        ]
        for findings, counts, size in _examine_all(samples):
            report.findings += findings
            report.pixels[split] += counts
            if split == "train" and size:
                report.sizes.append(size)
            done += 1
            if progress:
                progress(done, total)
    report.findings += _absent_classes(report)
    return report


Examined = tuple[list[Finding], NDArray[np.int64], tuple[int, int] | None]


def show(report: Report, console: Console, most: int = 5) -> None:
    """Print the splits and classes as a table, then the findings by kind, the first `most` of each."""
    table = Table(title="classes, share of pixels", title_justify="left", box=None, header_style="bold")
    table.add_column("label", justify="right")
    table.add_column("name")
    for split, count in report.pictures.items():
        table.add_column(f"{split} ({count})", justify="right")
    for label, name in [*enumerate(entry.name for entry in report.classes), (VOID, "void")]:
        shares = [f"{counts[label] / max(1, counts.sum()):.2%}" for counts in report.pixels.values()]
        table.add_row(str(label), name, *shares)
    console.print(table)
    for (level, kind), count in Counter((finding.level, finding.kind) for finding in report.findings).items():
        console.print(f"[{'red' if level == 'error' else 'yellow'}]{level}[/] {kind}: {count}")
        details = [finding.detail for finding in report.findings if (finding.level, finding.kind) == (level, kind)]
        for detail in details[:most]:
            console.print(f"  {detail}", highlight=False, markup=False, soft_wrap=True)
        if count > most:
            console.print(f"  and {count - most} more")


def _examine_all(samples: Samples) -> Iterator[Examined]:
    """Decoding releases the interpreter's lock, so threads use every core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda index: _examine(samples, index), range(len(samples)))


def _examine(samples: Samples, index: int) -> Examined:
    """Findings, 256 pixel counts by label, and the (height, width) of one picture."""
    nothing = np.zeros(256, np.int64)
    pair = samples.pairs[index]
    try:
        picture, labels = samples.picture(index), samples.labels(index)
    except MaskserveError as error:
        return [Finding("error", "unreadable file", str(error))], nothing, None
    size = (picture.shape[0], picture.shape[1])
    if size != labels.shape:
        detail = (
            f"{pair.image} is {size[1]} x {size[0]} (width x height, upright) and {pair.mask} is "
            f"{labels.shape[1]} x {labels.shape[0]}; a mask must have its picture's size."
        )
        return [Finding("error", "size mismatch", detail)], nothing, size
    counts = np.bincount(labels.ravel(), minlength=256).astype(np.int64)
    count = len(samples.classes)
    strange = [value for value in np.flatnonzero(counts).tolist() if count <= value != VOID]
    if strange:
        detail = f"{pair.mask} holds the labels {_listed(strange)}, but the {count} classes are 0 to {count - 1}, and void is 255."
        return [Finding("error", "label out of range", detail)], counts, size
    if counts[VOID] == labels.size:
        return (
            [Finding("warning", "all void", f"{pair.mask} is void on every pixel and teaches nothing.")],
            counts,
            size,
        )
    return [], counts, size


def _absent_classes(report: Report) -> list[Finding]:
    findings = []
    for split, counts in report.pixels.items():
        for label, entry in enumerate(report.classes):
            if counts[label] == 0:
                where = "so it cannot be learned" if split == "train" else "so nothing is measured of it there"
                findings.append(
                    Finding(
                        "warning",
                        "class that never occurs",
                        f"{entry.name} (label {label}) is on no pixel of {split}, {where}.",
                    )
                )
    return findings


def _listed(values: list[int], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")
