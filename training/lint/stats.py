"""What a data set is made of, as figures: sizes, formats, classes."""

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.spec import VOID
from training.lint.findings import Report


def stats(report: Report) -> dict[str, Any]:
    """Plain JSON values. Sizes are (height, width) in pixels; shares are of all pixels, 0..1; a width is in pixels."""
    return {"splits": {split: _split(report, split) for split in report.pictures}, "classes": _classes(report)}


def _split(report: Report, split: str) -> dict[str, Any]:
    facts = report.facts[split]
    sizes = np.array([each.size for each in facts if each.size], np.int64).reshape(-1, 2)
    told: dict[str, Any] = {"pictures": len(facts), "unreadable": sum(bool(each.errors) for each in facts)}
    told["not_counted"] = sum(not each.fits for each in facts)
    if len(sizes):
        by_area = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
        told["sizes"] = {
            "smallest": by_area[0].tolist(),
            "median": by_area[len(by_area) // 2].tolist(),
            "largest": by_area[-1].tolist(),
            "different": len(np.unique(sizes, axis=0)),
        }
    told["formats"] = _counted([each.image_format for each in facts])
    told["masks"] = _counted([f"{each.mask_format} {each.kind}".strip() for each in facts if each.mask_size])
    told["turned_by_exif"] = sum(each.orientation != 1 for each in facts)
    return told


def _counted(names: list[str]) -> dict[str, int]:
    return dict(Counter(name for name in names if name).most_common())


def _classes(report: Report) -> list[dict[str, Any]]:
    found = []
    for label, name in [*enumerate(entry.name for entry in report.classes), (VOID, "void")]:
        area, edge = (sum(int(counts[label]) for counts in by.values()) for by in (report.pixels, report.edges))
        shares = {
            split: round(int(counts[label]) / max(1, int(counts.sum())), 6) for split, counts in report.pixels.items()
        }
        pictures = {split: int(holders[label]) for split, holders in report.holders.items()}
        # A stripe w wide has two of its pixels at an edge in each row of w.
        width = round(2 * area / edge, 1) if edge else None
        found.append({"label": label, "name": name, "share": shares, "pictures": pictures, "width": width})
    return found


def show_stats(told: dict[str, Any], console: Console) -> None:
    """Print them as two tables."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("split", "pictures", "smallest", "median", "largest", "pictures in", "masks in"):
        table.add_column(title, justify="right" if title in ("pictures", "smallest", "median", "largest") else "left")
    for split, each in told["splits"].items():
        sizes = each.get("sizes", {})
        shown = [f"{sizes[name][1]} x {sizes[name][0]}" if sizes else "-" for name in ("smallest", "median", "largest")]
        table.add_row(split, f"{each['pictures']:,}", *shown, _listed(each["formats"]), _listed(each["masks"]))
    console.print("Sizes are width x height in pixels, upright.", style="dim")
    console.print(table)
    console.print()
    splits = list(told["splits"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(split, justify="right")
        table.add_column("in", justify="right", style="dim")
    table.add_column("width", justify="right")
    for each in told["classes"]:
        cells = [cell for split in splits for cell in (f"{each['share'][split]:.2%}", f"{each['pictures'][split]:,}")]
        width = "-" if each["width"] is None else f"{each['width']:,.0f}"
        table.add_row(str(each["label"]), Text(each["name"]), *cells, width)
    console.print(table)
    if left := sum(each["not_counted"] for each in told["splits"].values()):
        console.print(f"Not counted: {left:,} pictures with errors, which `maskserve data lint` names.", style="yellow")
    console.print(
        "Share of the pixels, and pictures that hold the class; width: of its objects, typically, in pixels "
        "(twice its pixels by those at its edges).",
        style="dim",
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "-"
