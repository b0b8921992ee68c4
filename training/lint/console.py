"""The lint's report on a terminal."""

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.spec import IGNORE_INDEX
from training.data.dataset import SPLITS
from training.lint.findings import ADVICE, LintReport
from training.lint.runner import lint
from training.reports.progress_bar import progress_bar

LEVEL_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
MAX_CLASS_ROWS = (
    24  # classes in the table: more would push the findings out of sight; those left out are neither rare nor absent
)


def lint_with_progress(
    root: Path, console: Console, data_format: str = "auto", splits: tuple[str, ...] = SPLITS, use_cache: bool = True
) -> LintReport:
    """`lint` under a progress bar, where the console is a terminal."""
    with progress_bar(console, "reading") as progress:
        return lint(root, data_format, splits, progress, use_cache)


def print_lint_report(report: LintReport, console: Console, max_findings: int = 5) -> None:
    """Print the splits and classes as a table, then the findings by kind: what to do, and the worst `most` of each."""
    images = sum(report.image_counts.values())
    console.print(f"{images:,} images; share of the pixels, and images that hold the class:", highlight=False)
    console.print(_class_table(report))
    if left := len(report.classes) - len(_labels_to_show(report)):
        console.print(f"{left} more classes, which are neither the largest nor the rarest.", style="dim")
    for level, kind, findings in report.findings_by_kind():
        console.print()
        console.print(
            Text.assemble((level, f"bold {LEVEL_STYLES[level]}"), " ", (kind, "bold"), f": {len(findings):,}")
        )
        for finding in findings[:max_findings]:
            # Names of files stay whole, to be copied.
            console.print(Text(f"  {finding.detail}"), soft_wrap=True, highlight=False)
        if len(findings) > max_findings:
            console.print(f"  and {len(findings) - max_findings:,} more", highlight=False)
        console.print(Padding(Text(f"→ {ADVICE[kind]}", style="italic"), (0, 0, 0, 2), expand=False))
    console.print()


def _labels_to_show(report: LintReport) -> list[int]:
    """The labels that the table has: all, or else the largest and the rarest of train."""
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
    names = [
        *((label, Text(report.classes[label].name)) for label in _labels_to_show(report)),
        (IGNORE_INDEX, Text("void", style="dim")),
    ]
    for label, name in names:
        table.add_row(str(label), name, *(_class_cell(report, split, label) for split in report.image_counts))
    return table


def _class_cell(report: LintReport, split: str, label: int) -> Text:
    counts, holders = report.pixel_counts[split], report.images_with_label[split]
    if not counts[label]:
        return Text("-", style="dim")
    share = 100 * counts[label] / counts.sum()
    return Text.assemble(f"{share:.2f}%" if share >= 0.01 else "<0.01%", (f" {holders[label]:>5,}", "dim"))
