"""Prints the lint report in a terminal."""

from pathlib import Path

import numpy as np
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.console import Console, name_text
from models.spec import IGNORE_INDEX
from training.data.dataset import SPLITS
from training.lint.findings import ADVICE, LintReport
from training.lint.label_noise import LabelQuality, check_label_noise, describe_confusions
from training.lint.runner import lint
from training.lint.stats import count_samples
from training.reports.progress_bar import progress_bar

LEVEL_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
MAX_CLASS_ROWS = 24  # more classes would push the findings off the screen; the table shows the largest and the rarest


def lint_with_progress(
    root: Path,
    console: Console,
    data_format: str = "auto",
    splits: tuple[str, ...] = SPLITS,
    use_cache: bool = True,
    bundle: Path | None = None,
    leads: str = "auto",
    rate: float | None = None,
) -> LintReport:
    """`lint` with a progress bar, if the console is a terminal. Arguments and errors as for `lint`.

    With a `bundle`, also look for label noise (`label_noise.py`). Raises: also BundleError, EngineError.
    """
    with progress_bar(console, "reading") as progress:
        report = lint(root, data_format, splits, progress, use_cache, leads, rate)
    if bundle and report.classes:
        with progress_bar(console, "segmenting") as progress:
            report.label_quality = check_label_noise(report, root, bundle, progress)
    return report


def print_lint_report(report: LintReport, console: Console, max_findings: int = 5) -> None:
    """Print a table of classes and splits, then the findings by kind: the worst `max_findings` of each, and the advice."""
    parts = "time" if report.axes == "T" else "pixels"
    counted = count_samples(report)
    kind = counted.rsplit(" ", 1)[-1]
    console.print(f"{counted}; percentage of {parts} and number of {kind} per class:", highlight=False)
    console.print(_class_table(report))
    if report.axes == "T":
        console.print()
        console.print(_duration_table(report))
    if hidden := len(report.classes) - len(_labels_to_show(report)):
        console.print(f"{hidden} more classes, neither the largest nor the rarest.", style="dim")
    if report.label_quality:
        console.print()
        console.print(f"quality of the labels, by the network {report.label_quality.bundle}:", highlight=False)
        console.print(_quality_table(report, report.label_quality))
    for level, kind, findings in report.findings_by_kind():
        console.print()
        console.print(
            Text.assemble((level, f"bold {LEVEL_STYLES[level]}"), " ", (kind, "bold"), f": {len(findings):,}")
        )
        for finding in findings[:max_findings]:
            # File names are not wrapped, so that they can be copied.
            console.print(name_text(f"  {finding.detail}"), soft_wrap=True, highlight=False)
        if len(findings) > max_findings:
            console.print(f"  and {len(findings) - max_findings:,} more", highlight=False)
        console.print(Padding(Text(f"→ {ADVICE[kind]}", style="italic"), (0, 0, 0, 2), expand=False))
    if report.not_read:
        console.print()
        console.print(name_text(f"not read: {report.not_read}", "dim"), soft_wrap=True, highlight=False)
    console.print()


def _duration_table(report: LintReport) -> Table:
    """The durations of the events of each class in train; in milliseconds, without a rate in time steps."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    unit = "ms" if report.has_rates else "steps"
    for title in ("events of", "number", f"1% {unit}", f"median {unit}", f"99% {unit}"):
        table.add_column(title, justify="left" if title == "events of" else "right")
    for label in _labels_to_show(report)[1:]:
        durations = report.durations(label) * (1000 if report.has_rates else 1)
        if len(durations):
            low, middle, high = np.quantile(durations, [0.01, 0.5, 0.99])
            cells = (f"{len(durations):,}", f"{low:,.0f}", f"{middle:,.0f}", f"{high:,.0f}")
            table.add_row(name_text(report.classes[label].name), *cells)
    return table


def _labels_to_show(report: LintReport) -> list[int]:
    """The labels in the table: all, or else the largest and the rarest of train."""
    labels = list(range(len(report.classes)))
    if len(labels) <= MAX_CLASS_ROWS:
        return labels
    ranked = sorted(labels, key=lambda label: -report.pixel_counts["train"][label])
    return sorted([*ranked[: MAX_CLASS_ROWS // 2], *ranked[-MAX_CLASS_ROWS // 2 :]])


def _class_table(report: LintReport) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    for split, count in report.image_counts.items():
        table.add_column(f"{split} ({count:,})", justify="right", no_wrap=True)
    rows = [
        *((label, name_text(report.classes[label].name)) for label in _labels_to_show(report)),
        (IGNORE_INDEX, Text("ignored", style="dim")),
    ]
    for label, name in rows:
        table.add_row(str(label), name, *(_class_cell(report, split, label) for split in report.image_counts))
    return table


def _quality_table(report: LintReport, found: LabelQuality) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    table.add_column("quality", justify="right")
    table.add_column("most often predicted instead")
    for label in _labels_to_show(report):
        each = found.classes[label]
        if each.labeled:
            table.add_row(
                name_text(report.classes[label].name), f"{each.quality:.3f}", Text(describe_confusions(report, each))
            )
    return table


def _class_cell(report: LintReport, split: str, label: int) -> Text:
    counts, images = report.pixel_counts[split], report.images_with_label[split]
    if not counts[label]:
        return Text("-", style="dim")
    percentage = 100 * counts[label] / counts.sum()
    return Text.assemble(f"{percentage:.2f}%" if percentage >= 0.01 else "<0.01%", (f" {images[label]:>5,}", "dim"))
