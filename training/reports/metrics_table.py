"""The headline figures and the table of the classes."""

from html import escape
from typing import Any

from models.spec import ClassInfo
from training.metrics.bootstrap import PerImageCounts
from training.reports.console import HEADLINE_METRICS, format_rate
from training.reports.html_helpers import interval_bar, interval_text, swatch

COLUMNS = {
    "accuracy": "accuracy",
    "dice": "Dice",
    "boundary_iou": "boundary IoU",
}


def headline_section(metrics: dict[str, Any]) -> str:
    """The means, each with its interval in words and as a line from 0 to 1."""
    parts = []
    for name, title in HEADLINE_METRICS.items():
        ends = metrics["intervals"][name]
        told = f"<small>{interval_text(ends) or 'no interval'}</small>"
        value = metrics[name]
        parts.append(
            f"<div><dt>{escape(title)}</dt><dd>{format_rate(value) if value is not None else 'absent'}"
            f"{interval_bar(value, ends)}{told}</dd></div>"
        )
    return f'<dl class="figures">{"".join(parts)}</dl>'


def class_table(metrics: dict[str, Any], classes: list[ClassInfo], tally: PerImageCounts) -> str:
    """A row a class, sortable by each column; a class without a pixel says so."""
    pixels = tally.counts[:, 0, 1].sum(axis=0).tolist()
    heads = ["class", "pixels", "IoU", "95% interval of the IoU", *COLUMNS.values()]
    head = "".join(
        f'<th scope="col"{" class=left" if place == 3 else ""}>'
        + (f'<button type="button">{escape(title)}</button>' if place != 3 else escape(title))
        + "</th>"
        for place, title in enumerate(heads)
    )
    rows = [_row(metrics, entry, pixels[label], sum(pixels)) for label, entry in enumerate(classes)]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of the classes"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(metrics: dict[str, Any], entry: ClassInfo, pixels: int, total: int) -> str:
    value = metrics["per_class_iou"][entry.name]
    ends = metrics["intervals"]["per_class_iou"][entry.name]
    share = f"{pixels / total:.2%}" if total else ""
    counted = f"{pixels:,} <span class=muted>{share}</span>" if pixels else "0"
    told = f"{interval_bar(value, ends)}<span class=muted>{interval_text(ends)}</span>"
    if not pixels:
        told = (
            "absent from this split" if value is None else f"absent from this split, but answered {interval_text(ends)}"
        )
    others = [metrics[f"per_class_{kind}"][entry.name] for kind in COLUMNS]
    cells = "".join(f'<td data-value="{_sort_value(each)}">{format_rate(each)}</td>' for each in others)
    return (
        f'<tr{"" if pixels else " class=absent"}><th scope="row" data-value="{escape(entry.name)}">{swatch(entry)}</th>'
        f'<td data-value="{pixels}">{counted}</td><td data-value="{_sort_value(value)}">{format_rate(value)}</td>'
        f'<td class="left">{told}</td>{cells}</tr>'
    )


def _sort_value(value: float | None) -> str:
    return "" if value is None else str(value)
