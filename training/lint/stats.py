"""What a data set is made of, as figures: sizes, formats, classes."""

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.spec import IGNORE_INDEX
from training.lint.findings import LintReport


def dataset_stats(report: LintReport) -> dict[str, Any]:
    """Plain JSON values. Sizes are (height, width) in pixels; shares are of all pixels, 0..1; a width is in pixels."""
    return {
        "splits": {split: _split_stats(report, split) for split in report.image_counts},
        "classes": _class_stats(report),
    }


def _split_stats(report: LintReport, split: str) -> dict[str, Any]:
    facts = report.sample_stats[split]
    sizes = np.array([each.size for each in facts if each.size], np.int64).reshape(-1, 2)
    told: dict[str, Any] = {"images": len(facts), "unreadable": sum(bool(each.errors) for each in facts)}
    told["not_counted"] = sum(not each.is_valid for each in facts)
    if len(sizes):
        by_area = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
        told["sizes"] = {
            "smallest": by_area[0].tolist(),
            "median": by_area[len(by_area) // 2].tolist(),
            "largest": by_area[-1].tolist(),
            "distinct": len(np.unique(sizes, axis=0)),
        }
    told["formats"] = _count_names([each.image_format for each in facts])
    told["masks"] = _count_names([f"{each.mask_format} {each.kind}".strip() for each in facts if each.mask_size])
    told["rotated_by_exif"] = sum(each.orientation != 1 for each in facts)
    return told


def _count_names(names: list[str]) -> dict[str, int]:
    return dict(Counter(name for name in names if name).most_common())


def _class_stats(report: LintReport) -> list[dict[str, Any]]:
    found = []
    for label, name in [*enumerate(entry.name for entry in report.classes), (IGNORE_INDEX, "void")]:
        area, edge = (
            sum(int(counts[label]) for counts in by.values()) for by in (report.pixel_counts, report.edge_counts)
        )
        shares = {
            split: round(int(counts[label]) / max(1, int(counts.sum())), 6)
            for split, counts in report.pixel_counts.items()
        }
        images = {split: int(holders[label]) for split, holders in report.images_with_label.items()}
        # A stripe w wide has two of its pixels at an edge in each row of w.
        width = round(2 * area / edge, 1) if edge else None
        found.append({"label": label, "name": name, "fraction": shares, "images": images, "width": width})
    return found


def print_stats(told: dict[str, Any], console: Console) -> None:
    """Print them as two tables."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("split", "images", "smallest", "median", "largest", "images in", "masks in"):
        table.add_column(title, justify="right" if title in ("images", "smallest", "median", "largest") else "left")
    for split, each in told["splits"].items():
        sizes = each.get("sizes", {})
        shown = [f"{sizes[name][1]} x {sizes[name][0]}" if sizes else "-" for name in ("smallest", "median", "largest")]
        table.add_row(split, f"{each['images']:,}", *shown, _join_counts(each["formats"]), _join_counts(each["masks"]))
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
        cells = [cell for split in splits for cell in (f"{each['fraction'][split]:.2%}", f"{each['images'][split]:,}")]
        width = "-" if each["width"] is None else f"{each['width']:,.0f}"
        table.add_row(str(each["label"]), Text(each["name"]), *cells, width)
    console.print(table)
    if left := sum(each["not_counted"] for each in told["splits"].values()):
        console.print(f"Not counted: {left:,} images with errors, which `maskserve data lint` names.", style="yellow")
    console.print(
        "Share of the pixels, and images that hold the class; width: of its objects, typically, in pixels "
        "(twice its pixels by those at its edges).",
        style="dim",
    )


def _join_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "-"
