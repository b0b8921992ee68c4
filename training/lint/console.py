"""The lint's report on a terminal."""

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.spec import VOID
from training.data.dataset import SPLITS
from training.lint.findings import ADVICE, Report
from training.lint.runner import lint
from training.reports.progress_bar import counted

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
ROWS = 24  # classes in the table: more would push the findings out of sight; those left out are neither rare nor absent


def watched(
    root: Path, console: Console, format: str = "auto", splits: tuple[str, ...] = SPLITS, cached: bool = True
) -> Report:
    """`lint` under a progress bar, where the console is a terminal."""
    with counted(console, "reading") as progress:
        return lint(root, format, splits, progress, cached)


def show(report: Report, console: Console, most: int = 5) -> None:
    """Print the splits and classes as a table, then the findings by kind: what to do, and the worst `most` of each."""
    pictures = sum(report.pictures.values())
    console.print(f"{pictures:,} pictures; share of the pixels, and pictures that hold the class:", highlight=False)
    console.print(_classes(report))
    if left := len(report.classes) - len(_shown(report)):
        console.print(f"{left} more classes, which are neither the largest nor the rarest.", style="dim")
    for level, kind, findings in report.kinds():
        console.print()
        console.print(Text.assemble((level, f"bold {COLOURS[level]}"), " ", (kind, "bold"), f": {len(findings):,}"))
        for finding in findings[:most]:
            # Names of files stay whole, to be copied.
            console.print(Text(f"  {finding.detail}"), soft_wrap=True, highlight=False)
        if len(findings) > most:
            console.print(f"  and {len(findings) - most:,} more", highlight=False)
        console.print(Padding(Text(f"→ {ADVICE[kind]}", style="italic"), (0, 0, 0, 2), expand=False))
    console.print()


def _shown(report: Report) -> list[int]:
    """The labels that the table has: all, or else the largest and the rarest of train."""
    labels = list(range(len(report.classes)))
    if len(labels) <= ROWS:
        return labels
    ranked = sorted(labels, key=lambda label: -report.pixels["train"][label])
    return sorted([*ranked[: ROWS // 2], *ranked[-ROWS // 2 :]])


def _classes(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    for split, count in report.pictures.items():
        table.add_column(f"{split} ({count:,})", justify="right", no_wrap=True)
    names = [
        *((label, Text(report.classes[label].name)) for label in _shown(report)),
        (VOID, Text("void", style="dim")),
    ]
    for label, name in names:
        table.add_row(str(label), name, *(_cell(report, split, label) for split in report.pictures))
    return table


def _cell(report: Report, split: str, label: int) -> Text:
    counts, holders = report.pixels[split], report.holders[split]
    if not counts[label]:
        return Text("-", style="dim")
    share = 100 * counts[label] / counts.sum()
    return Text.assemble(f"{share:.2f}%" if share >= 0.01 else "<0.01%", (f" {holders[label]:>5,}", "dim"))
