"""The headline figures and the table of the classes."""

from html import escape
from typing import Any

from models.spec import ClassInfo
from training.metrics.bootstrap import Tally
from training.reports.console import HEADLINES, figure
from training.reports.html_helpers import bar, span, swatch

COLUMNS = {
    "accuracy": "accuracy",
    "dice": "Dice",
    "boundary_iou": "boundary IoU",
}


def headline(metrics: dict[str, Any]) -> str:
    """The means, each with its interval in words and as a line from 0 to 1."""
    parts = []
    for name, title in HEADLINES.items():
        ends = metrics["intervals"][name]
        told = f"<small>{span(ends) or 'no interval'}</small>"
        value = metrics[name]
        parts.append(
            f"<div><dt>{escape(title)}</dt><dd>{figure(value) if value is not None else 'absent'}"
            f"{bar(value, ends)}{told}</dd></div>"
        )
    return f'<dl class="figures">{"".join(parts)}</dl>'


def classes_table(metrics: dict[str, Any], classes: list[ClassInfo], tally: Tally) -> str:
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
    told = f"{bar(value, ends)}<span class=muted>{span(ends)}</span>"
    if not pixels:
        told = "absent from this split" if value is None else f"absent from this split, but answered {span(ends)}"
    others = [metrics[f"per_class_{kind}"][entry.name] for kind in COLUMNS]
    cells = "".join(f'<td data-value="{_sortable(each)}">{figure(each)}</td>' for each in others)
    return (
        f'<tr{"" if pixels else " class=absent"}><th scope="row" data-value="{escape(entry.name)}">{swatch(entry)}</th>'
        f'<td data-value="{pixels}">{counted}</td><td data-value="{_sortable(value)}">{figure(value)}</td>'
        f'<td class="left">{told}</td>{cells}</tr>'
    )


def _sortable(value: float | None) -> str:
    return "" if value is None else str(value)
