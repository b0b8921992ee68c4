"""Training curves as SVG, from the `metrics.csv` that a run writes and a bundle contains.

The run folder has the same charts as a PNG (`training/reports/plots.py`), which every viewer opens.
"""

import csv
import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from training.metrics.results import ThresholdPoint
from training.reports.layout import render

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 28  # pixels around the plot
LINE_STYLES = ("one", "two", "three")  # classes of page.css
MAX_LARGE_DOTS = 60  # epochs; more get smaller dots

# Title, name of each line by its column of metrics.csv, top of the y axis (None: by the values).
CHARTS: tuple[tuple[str, dict[str, str], float | None], ...] = (
    ("training loss", {"loss": "loss"}, None),
    ("validation", {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}, 1.0),
    ("learning rate", {"lr": "learning rate"}, None),
)

Series = list[tuple[float, float]]  # epoch and value; NaN if an epoch has none


def curves_section(table: Path | None, monitor: str = "miou") -> Markup:
    """The charts of a `metrics.csv`; a sentence if there is no table."""
    charts = read_charts(table, monitor) if table else []
    return render(
        "curves.html", charts=[{"title": title, **chart_geometry(lines, top)} for title, lines, top in charts]
    )


def read_charts(table: Path, monitor: str = "miou") -> list[tuple[str, dict[str, Series], float | None]]:
    """Title, lines by name, and the top of the y axis (None: by the values) of each chart that has values.

    `monitor`: the column that chose the best checkpoint. If it is not the mIoU, it takes the place of the pixel accuracy.
    """
    rows, charts = read_rows(table), []
    for title, columns, top in CHARTS:
        if title == "validation" and monitor not in columns:
            columns = {"miou": "mIoU", monitor: f"{monitor} (monitor)"}
        lines = {name: series for column, name in columns.items() if (series := read_series(rows, column))}
        if lines:
            charts.append((title, lines, top))
    return charts


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that have an epoch; none if it cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            return [row for row in csv.DictReader(stream) if not math.isnan(parse_cell(row, "epoch"))]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def parse_cell(row: dict[str, str], column: str) -> float:
    """A cell's number; NaN if it has none."""
    try:
        value = float(row.get(column) or "nan")
    except (ValueError, TypeError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def read_series(rows: list[dict[str, str]], column: str) -> Series:
    """A column over the epochs; empty if it has no number at all."""
    series = [(parse_cell(row, "epoch"), parse_cell(row, column)) for row in rows]
    return series if any(not math.isnan(value) for _, value in series) else []


def threshold_section(curve: list[ThresholdPoint]) -> Markup:
    """The chart of precision, recall and F1 by threshold, in percent."""
    lines = {
        title: [
            (100 * point.threshold, math.nan if (rate := getattr(point, name)) is None else rate) for point in curve
        ]
        for name, title in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
    }
    chart = {"title": "precision, recall and F1", **chart_geometry(lines, 1.0, "threshold in %")}
    return render("curves.html", charts=[chart])


def chart_geometry(lines: dict[str, Series], top: float | None = None, axis: str = "epoch") -> dict[str, Any]:
    """Positions in pixels of a plot from 0 to `top`, or to a little above the largest value. `axis`: the name of the x axis."""
    values = [value for series in lines.values() for _, value in series if not math.isnan(value)]
    step = nice_step((top or max(values) or 1.0) / 5)
    high = top or step * math.ceil(max(values) / step) or step
    epochs = [epoch for series in lines.values() for epoch, _ in series]
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)

    def x_of(epoch: float) -> float:
        return LEFT + (epoch - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - max(0.0, value) / high * (HEIGHT - TOP - BOTTOM)

    def line(name: str, series: Series, style: str) -> dict[str, Any]:
        path, gap, dots = "", True, []
        for epoch, value in series:
            if math.isnan(value):
                gap = True  # no line through an epoch without a value
                continue
            x, y = f"{x_of(epoch):.1f}", f"{y_of(value):.1f}"
            path += f"{'M' if gap else 'L'}{x} {y}"
            gap = False
            dots.append({"x": x, "y": y, "title": f"{axis} {epoch:g}: {name} {value:.4g}"})
        radius = 3 if len(series) <= MAX_LARGE_DOTS else 1.5
        return {"name": name, "style": style, "path": path, "dots": dots, "radius": radius}

    heights = [index * step for index in range(round(high / step) + 1)]
    stride = max(1, round(nice_step((last - first) / 5)))
    ticks = range(math.ceil(first / stride) * stride, math.floor(last) + 1, stride)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "axis": axis,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "y_ticks": [
            {"y": f"{y_of(value):.1f}", "text_y": f"{y_of(value) + 4:.1f}", "label": f"{value:.3g}"}
            for value in heights
        ],
        "x_ticks": [{"x": f"{x_of(epoch):.1f}", "label": epoch} for epoch in ticks],
        "lines": [line(name, series, style) for (name, series), style in zip(lines.items(), LINE_STYLES, strict=False)],
    }


def nice_step(step: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))
