"""The training's curves as SVG, from the `metrics.csv` that a run leaves and a bundle carries."""

import csv
import math
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 28  # pixels around the plot

Series = list[tuple[float, float]]  # epoch and value; NaN where an epoch has none


def curves_section(table: Path | None) -> str:
    """Loss, validation mIoU with pixel accuracy, and learning rate over the epochs; a sentence where there is no table."""
    rows = read_rows(table) if table else []
    if not rows:
        return "<p>There is no metrics.csv with the bundle, so there are no curves of its training.</p>"
    charts = []
    for title, names in (
        ("training loss", {"loss": "loss"}),
        ("validation", {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}),
        ("learning rate", {"lr": "learning rate"}),
    ):
        lines = {shown: line for name, shown in names.items() if (line := read_series(rows, name))}
        if lines:
            charts.append(
                f"<figure><figcaption>{title}</figcaption>{line_chart(title, lines, top=1.0 if len(names) > 1 else None)}</figure>"
            )
    return f'<div class="charts">{"".join(charts)}</div>'


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where it cannot be read as one."""
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            return [row for row in csv.DictReader(stream) if not math.isnan(parse_cell(row, "epoch"))]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def parse_cell(row: dict[str, str], name: str) -> float:
    """A cell's number; NaN where it holds none."""
    try:
        value = float(row.get(name) or "nan")
    except (ValueError, TypeError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def read_series(rows: list[dict[str, str]], name: str) -> Series:
    """A column over the epochs; empty where it holds no number at all."""
    line = [(parse_cell(row, "epoch"), parse_cell(row, name)) for row in rows]
    return line if any(not math.isnan(value) for _, value in line) else []


def line_chart(title: str, lines: dict[str, Series], top: float | None = None) -> str:
    """One plot from 0 to `top`, or to a little over the largest value."""
    values = [value for line in lines.values() for _, value in line if not math.isnan(value)]
    step = nice_step((top or max(values) or 1.0) / 5)
    high = top or step * math.ceil(max(values) / step) or step
    epochs = [epoch for line in lines.values() for epoch, _ in line]
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)

    def at(epoch: float, value: float) -> tuple[float, float]:
        x = LEFT + (epoch - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - max(0.0, value) / high * (HEIGHT - TOP - BOTTOM)

    parts = []
    for place in range(round(high / step) + 1):
        _, y = at(first, place * step)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{place * step:.3g}</text>')
    stride = max(1, round(nice_step((last - first) / 5)))
    for epoch in range(math.ceil(first / stride) * stride, math.floor(last) + 1, stride):
        x, _ = at(epoch, 0)
        parts.append(f'<text class="axis" x="{x:.1f}" y="{HEIGHT - 9}" text-anchor="middle">{epoch}</text>')
    for (name, line), kind in zip(lines.items(), ("one", "two"), strict=False):
        parts.append(_draw_series(name, line, kind, at))
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by epoch"'
    return f"<svg {box}>{''.join(parts)}</svg>{_legend(lines) if len(lines) > 1 else ''}"


def _draw_series(name: str, line: Series, kind: str, at: object) -> str:
    assert callable(at)
    path, broken, dots = "", True, []
    for epoch, value in line:
        if math.isnan(value):
            broken = True  # an epoch without a value is a gap, not a line through it
            continue
        x, y = at(epoch, value)
        path += f"{'M' if broken else 'L'}{x:.1f} {y:.1f}"
        broken = False
        dots.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{3 if len(line) <= 60 else 1.5}">'
            f"<title>epoch {epoch:g}: {escape(name)} {value:.4g}</title></circle>"
        )
    return f'<g class="{kind}"><path class="line" d="{path}"/>{"".join(dots)}</g>'


def _legend(lines: dict[str, Series]) -> str:
    items = [
        f'<li><svg class="key {kind}" width="22" height="10" aria-hidden="true"><path class="line" d="M1 5h20"/></svg>'
        f" {escape(name)}</li>"
        for name, kind in zip(lines, ("one", "two"), strict=False)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def nice_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten that is not below a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))
