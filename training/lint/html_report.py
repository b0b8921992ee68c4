"""Writes the lint report as one HTML page that opens offline, with thumbnails of the worst images of each kind.

It shares the frame, the macros and the autoescaping of the evaluation report (`training/reports/layout.py`).
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader
from markupsafe import Markup, escape

from models.errors import DataError
from models.spec import IGNORE_INDEX
from training.lint.findings import ADVICE, LEVELS, Finding, LintReport
from training.lint.label_noise import KIND as SUSPECT_KIND
from training.lint.label_noise import describe_confusions
from training.lint.stats import dataset_stats, format_counts, format_sizes
from training.lint.thumbnails import finding_panes, suspect_panes
from training.reports.layout import ENVIRONMENT, render_page
from training.reports.layout import TEMPLATE_FOLDER as REPORT_TEMPLATE_FOLDER

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
CODE_SPAN = re.compile("`(.+?)`")
MAX_CARDS, MAX_LISTED = 6, 20  # of a kind: findings with thumbnails, and as text
MAX_SUSPECT_CARDS = 24  # images of the section about label noise


def write_html_report(target: Path, report: LintReport, data: Path) -> None:
    """Write the page for the data set `data`. Raises: DataError if it cannot be written."""
    environment = ENVIRONMENT.overlay(loader=FileSystemLoader([TEMPLATE_FOLDER, REPORT_TEMPLATE_FOLDER]))
    context = {
        "figures": _figures(report),
        "kinds": [_kind_context(report, *group) for group in report.findings_by_kind() if group[1] != SUSPECT_KIND],
        "label_quality": _label_quality_context(report),
        "not_read": report.not_read,
        "has_thumbnails": any(finding.locations for finding in report.findings),
        "splits": list(report.image_counts),
        "classes": _class_rows(report),
        "split_rows": _split_rows(report),
    }
    name = data.resolve().name
    images = f"{sum(report.image_counts.values()):,} images"
    splits = ", ".join(f"{split} {count:,}" for split, count in report.image_counts.items())
    page = render_page(
        title=f"Lint of {data.name}",
        eyebrow="maskserve data lint",
        name=name,
        subtitle=f"{images} ({splits}), {len(report.classes)} classes",
        nav=environment.get_template("nav.html").render(context),
        main=environment.get_template("page.html").render(context),
        style=(TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8"),
    )
    try:
        target.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); choose a file in an existing folder."
        ) from error


def _code_spans(text: str) -> Markup:
    """The escaped text with `...` as code elements."""
    return Markup(CODE_SPAN.sub(r"<code>\1</code>", str(escape(text))))


def _level_class(level: str) -> str:
    """The CSS class of a level; `note` is the class of small print."""
    return "note-level" if level == "note" else level


def _figures(report: LintReport) -> list[dict[str, Any]]:
    counts = {level: sum(finding.level == level for finding in report.findings) for level in LEVELS}
    return [
        {"style": "", "title": "images", "count": sum(report.image_counts.values())},
        *(
            {"style": _level_class(level) if count else "zero", "title": f"{level}s", "count": count}
            for level, count in counts.items()
        ),
    ]


def _kind_context(report: LintReport, level: str, kind: str, findings: list[Finding]) -> dict[str, Any]:
    """The findings of one kind: the first ones with images become cards, the others a list."""
    cards = [finding for finding in findings if finding.locations][:MAX_CARDS]
    listed = [finding for finding in findings if not any(finding is card for card in cards)]
    return {
        "level": level,
        "style": _level_class(level),
        "name": kind,
        "anchor": f"{level}-{kind}".replace(" ", "-"),
        "count": len(findings),
        "advice": _code_spans(ADVICE[kind]),
        "cards": [{"panes": finding_panes(report, finding), "detail": finding.detail} for finding in cards],
        "details": [finding.detail for finding in listed[:MAX_LISTED]],
        "hidden": max(0, len(listed) - MAX_LISTED),
    }


def _label_quality_context(report: LintReport) -> dict[str, Any] | None:
    """The section about label noise: a row per class, and the worst images with mask, prediction and disagreement."""
    found = report.label_quality
    if found is None:
        return None
    details = [finding.detail for finding in report.findings if finding.kind == SUSPECT_KIND]
    cards = [
        {"panes": suspect_panes(report.datasets[split], index, found.segmenter), "detail": detail}
        for (split, index), detail in zip(list(found.suspects)[:MAX_SUSPECT_CARDS], details, strict=False)
    ]
    rows = [
        {
            "entry": entry,
            "quality": each.quality,
            "confusions": describe_confusions(report, each),
            "worst": ", ".join(f"{name} ({quality:.3f})" for quality, name in each.worst),
        }
        for entry, each in zip(report.classes, found.classes, strict=True)
        if each.labeled
    ]
    return {
        "bundle": found.bundle,
        "images": found.images,
        "rows": rows,
        "cards": cards,
        "details": details[MAX_SUSPECT_CARDS:],
        "advice": _code_spans(ADVICE[SUSPECT_KIND]),
        "count": len(details),
    }


def _class_rows(report: LintReport) -> list[dict[str, Any]]:
    """A row per class and one for ignored pixels, with a cell per split; the longest bar has full width."""
    fractions = {split: counts / max(1, counts.sum()) for split, counts in report.pixel_counts.items()}
    highest = max((split_fractions.max() for split_fractions in fractions.values()), default=1) or 1
    rows = []
    for label, entry in [*enumerate(report.classes), (IGNORE_INDEX, None)]:
        cells = [
            {
                "fraction": split_fractions[label],
                "percentage": f"{split_fractions[label]:.2%}" if split_fractions[label] >= 0.0001 else "under 0.01%",
                "bar": f"{100 * split_fractions[label] / highest:.1f}",
                "images": report.images_with_label[split][label],
            }
            if split_fractions[label]
            else None
            for split, split_fractions in fractions.items()
        ]
        rows.append({"entry": entry, "cells": cells})
    return rows


def _split_rows(report: LintReport) -> list[dict[str, Any]]:
    return [
        {
            "name": split,
            "images": stats["images"],
            "sizes": format_sizes(stats),
            "formats": [format_counts(stats["formats"]), format_counts(stats["masks"])],
        }
        for split, stats in dataset_stats(report)["splits"].items()
    ]
