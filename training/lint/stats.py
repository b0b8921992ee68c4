"""Statistics of a data set: sizes, formats, classes."""

from collections import Counter
from typing import Any

import numpy as np
from rich.table import Table

from models.console import Console, name_text
from models.spec import AXES, IGNORE_INDEX
from training.data.scan.signal_stats import SignalStats
from training.lint.findings import LintReport


def dataset_stats(report: LintReport) -> dict[str, Any]:
    """JSON-compatible statistics. Sizes are [height, width] in pixels, fractions of all pixels 0 to 1, widths in pixels."""
    return {
        "splits": {split: _split_stats(report, split) for split in report.image_counts},
        "classes": _class_stats(report),
    }


def count_samples(report: LintReport) -> str:
    """How many there are of what: "720 images", "160 recordings", "1,920 leads of 160 recordings"."""
    total = sum(report.image_counts.values())
    if report.axes != "T":
        return f"{total:,} {AXES[report.axes]}"
    pairs = [pair for dataset in report.datasets.values() for pair in dataset.pairs]
    files = len({pair.image for pair in pairs})
    return f"{files:,} recordings" if files == total else f"{files:,} recordings of {total:,} leads"


def _split_stats(report: LintReport, split: str) -> dict[str, Any]:
    all_stats = report.sample_stats[split]
    if report.axes == "T":
        return _signal_split_stats(all_stats)
    sizes = np.array([stats.size for stats in all_stats if stats.size], np.int64).reshape(-1, len(report.axes))
    result: dict[str, Any] = {
        "images": len(all_stats),
        "unreadable": sum(bool(stats.errors) for stats in all_stats),
        "not_counted": sum(not stats.is_valid for stats in all_stats),
    }
    if len(sizes):
        by_area = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
        result["sizes"] = {
            "smallest": by_area[0].tolist(),
            "median": by_area[len(by_area) // 2].tolist(),
            "largest": by_area[-1].tolist(),
            "distinct": len(np.unique(sizes, axis=0)),
        }
    if report.axes == "DHW":
        result["formats"] = _count_names([f"{stats.orientation} {stats.dtype}".strip() for stats in all_stats])
        result["masks"] = _count_names([stats.mask_dtype for stats in all_stats])
        return result
    result["formats"] = _count_names([stats.image_format for stats in all_stats])
    result["masks"] = _count_names(
        [f"{stats.mask_format} {stats.kind}".strip() for stats in all_stats if stats.mask_size]
    )
    result["rotated_by_exif"] = sum(stats.orientation != 1 for stats in all_stats)
    return result


def _signal_split_stats(all_stats: list[SignalStats]) -> dict[str, Any]:
    """Of recordings, or leads that are samples of their own; durations in seconds."""
    result: dict[str, Any] = {
        "images": len(all_stats),
        "unreadable": sum(bool(stats.errors) for stats in all_stats),
        "not_counted": sum(not stats.is_valid for stats in all_stats),
    }
    seconds = sorted(stats.seconds for stats in all_stats if stats.seconds)
    if seconds:
        result["seconds"] = {
            "smallest": round(seconds[0], 3),
            "median": round(seconds[len(seconds) // 2], 3),
            "largest": round(seconds[-1], 3),
            "total": round(sum(seconds), 3),
        }
    result["formats"] = _count_names([f"{stats.rate:g} Hz" for stats in all_stats if stats.rate])
    result["masks"] = _count_names([lead.unit for stats in all_stats for lead in stats.leads])
    return result


def _count_names(names: list[str]) -> dict[str, int]:
    return dict(Counter(name for name in names if name).most_common())


def _class_stats(report: LintReport) -> list[dict[str, Any]]:
    found = []
    for label, name in [*enumerate(entry.name for entry in report.classes), (IGNORE_INDEX, "ignored")]:
        area, edge = (
            sum(int(counts[label]) for counts in by_split.values())
            for by_split in (report.pixel_counts, report.edge_counts)
        )
        fractions = {
            split: round(int(counts[label]) / max(1, int(counts.sum())), 6)
            for split, counts in report.pixel_counts.items()
        }
        images = {split: int(counts[label]) for split, counts in report.images_with_label.items()}
        # A stripe of width w has two edge pixels in each row of w pixels.
        width = round(2 * area / edge, 1) if edge else None
        entry = {"label": label, "name": name, "fraction": fractions, "images": images, "width": width}
        if report.axes == "T" and label != IGNORE_INDEX:
            entry["duration"] = duration_stats(report, label)
        found.append(entry)
    return found


def duration_stats(report: LintReport, label: int) -> dict[str, Any]:
    """Number of events of a class in train, and the 1%, 50% and 99% quantiles of their seconds (time steps without a rate)."""
    durations = report.durations(label)
    if not len(durations):
        return {"events": 0}
    low, middle, high = (round(float(value), 4) for value in np.quantile(durations, [0.01, 0.5, 0.99]))
    return {"events": len(durations), "p1": low, "median": middle, "p99": high}


def format_sizes(split_stats: dict[str, Any], missing: str = "") -> list[str]:
    """The smallest, median and largest size of a split as "width x height" (x depth) or seconds; `missing` without any."""
    sizes, seconds = split_stats.get("sizes"), split_stats.get("seconds")
    names = ("smallest", "median", "largest")
    if seconds:
        return [f"{seconds[name]:g} s" for name in names]
    return [" x ".join(map(str, reversed(sizes[name]))) if sizes else missing for name in names]


def format_counts(counts: dict[str, int]) -> str:
    """Counts by name, such as "PNG 12, JPEG 3"."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def print_stats(stats: dict[str, Any], console: Console) -> None:
    """Print the result of `dataset_stats` as two tables."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    is_signal = any("seconds" in each for each in stats["splits"].values())
    names = ("signals", "rates", "units") if is_signal else ("images", "image formats", "mask formats")
    for title in ("split", names[0], "smallest", "median", "largest", *names[1:]):
        table.add_column(title, justify="left" if title in ("split", *names[1:]) else "right")
    for split, each in stats["splits"].items():
        formats = (format_counts(each[name]) or "-" for name in ("formats", "masks"))
        table.add_row(split, f"{each['images']:,}", *format_sizes(each, missing="-"), *formats)
    if not is_signal:
        console.print("Sizes are width x height in pixels, upright.", style="dim")
    console.print(table)
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("class", overflow="fold")
    for split in stats["splits"]:
        table.add_column(split, justify="right")
        table.add_column(names[0], justify="right", style="dim")
    table.add_column("median ms" if is_signal else "width", justify="right")
    for each in stats["classes"]:
        cells = [
            cell
            for split in stats["splits"]
            for cell in (f"{each['fraction'][split]:.2%}", f"{each['images'][split]:,}")
        ]
        width = "-" if each["width"] is None else f"{each['width']:,.0f}"
        if is_signal:
            median = each.get("duration", {}).get("median")
            width = "-" if median is None else f"{1000 * median:,.0f}"
        table.add_row(str(each["label"]), name_text(each["name"]), *cells, width)
    console.print(table)
    if left_out := sum(each["not_counted"] for each in stats["splits"].values()):
        console.print(
            f"Not counted: {left_out:,} {names[0]} with errors; `maskserve data lint` lists them.", style="yellow"
        )
    if is_signal:
        console.print("Percentage of the time, number of signals with the class, and median duration.", style="dim")
        return
    console.print(
        "Percentage of pixels, and number of images with the class; width: typical width of its regions in pixels "
        "(twice the pixels / edge pixels).",
        style="dim",
    )
