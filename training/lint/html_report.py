"""The lint's report as one page that opens without a network, with the worst images of each kind.

It looks as the evaluation's page (`training/reports/layout.py`). Every name is escaped: it comes from somebody's files.
"""

import re
from html import escape
from pathlib import Path
from string import Template

from models.errors import DataError
from models.spec import IGNORE_INDEX
from training.lint.findings import ADVICE, LEVELS, Finding, LintReport
from training.lint.stats import dataset_stats
from training.lint.thumbnails import render_finding
from training.reports.html_helpers import swatch
from training.reports.layout import render_page

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
CODE_SPAN = re.compile("`(.+?)`")
MAX_CARDS, MAX_LISTED = 6, 20  # of a kind: findings with images, and in words


def write_html_report(target: Path, report: LintReport, data: Path) -> None:
    """Write the page. Raises: DataError where it cannot be written."""
    images = sum(report.image_counts.values())
    splits = ", ".join(f"{split} {count:,}" for split, count in report.image_counts.items())
    nav = "".join(
        f'<a href="#{_anchor(level, kind)}">{escape(kind)}</a> ' for level, kind, _ in report.findings_by_kind()
    )
    sections = {
        "headline": _headline(report),
        "findings": _findings_section(report),
        "classes": _classes_table(report),
        "splits": _splits_table(report),
    }
    main, style = ((TEMPLATE_FOLDER / file).read_text(encoding="utf-8") for file in ("page.html", "page.css"))
    subtitle = f"{images:,} images ({splits}), {len(report.classes)} classes"
    nav += '<a href="#classes">Classes</a> <a href="#splits">Splits</a>'
    main = Template(main).substitute(sections)
    page = render_page(f"lint of {data.name}", "maskserve data lint", data.resolve().name, subtitle, nav, main, style)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); name a file in a folder that is there."
        ) from error


def _level_class(level: str) -> str:
    return "note-level" if level == "note" else level


def _anchor(level: str, kind: str) -> str:
    return f"{level}-{kind}".replace(" ", "-")


def _headline(report: LintReport) -> str:
    counts = {level: sum(finding.level == level for finding in report.findings) for level in LEVELS}
    figures = [("", "images", sum(report.image_counts.values()))]
    figures += [(_level_class(level) if count else "zero", f"{level}s", count) for level, count in counts.items()]
    parts = (f'<div class="{style}"><dt>{title}</dt><dd>{count:,}</dd></div>' for style, title, count in figures)
    return f'<dl class="figures">{"".join(parts)}</dl>'


def _findings_section(report: LintReport) -> str:
    if not report.findings:
        return "<p>Nothing is wrong.</p>"
    legend = (
        '<div class="controls"><label for="opacity">Opacity of the masks</label>'
        '<input id="opacity" type="range" min="0" max="100" step="5" value="60"><span id="opacity-shown">60%</span></div>'
        '<p class="note">Red is what is no class; void is clear.</p>'
    )
    drawn = any(finding.locations for finding in report.findings)
    return (legend if drawn else "") + "".join(_kind_section(report, *each) for each in report.findings_by_kind())


def _kind_section(report: LintReport, level: str, kind: str, findings: list[Finding]) -> str:
    with_images = [finding for finding in findings if finding.locations][:MAX_CARDS]
    cards = "".join(render_finding(report, finding) for finding in with_images)
    told = {id(finding) for finding in with_images}
    rest = [finding for finding in findings if id(finding) not in told]
    items = "".join(f"<li>{escape(finding.detail)}</li>" for finding in rest[:MAX_LISTED])
    more = f"<li>and {len(rest) - MAX_LISTED:,} more</li>" if len(rest) > MAX_LISTED else ""
    count = f"{len(findings):,}"
    advice = CODE_SPAN.sub(r"<code>\1</code>", escape(ADVICE[kind]))
    return (
        f'<div class="finding {_level_class(level)}" id="{_anchor(level, kind)}"><h3><b>{level}</b> {escape(kind)}: {count}</h3>'
        f"<p>{advice}</p>"
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + (f"<ul>{items}{more}</ul>" if items else "")
        + "</div>"
    )


def _classes_table(report: LintReport) -> str:
    """A row a class with a bar a split, sortable."""
    highest = max((counts.max() / max(1, counts.sum()) for counts in report.pixel_counts.values()), default=1) or 1
    heads = ["class", *report.image_counts]
    head = "".join(f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in heads)
    rows = []
    for label, entry in [*enumerate(report.classes), (IGNORE_INDEX, None)]:
        cells = ""
        for split, counts in report.pixel_counts.items():
            share = counts[label] / max(1, counts.sum())
            told = f"{share:.2%}" if share >= 0.0001 or not counts[label] else "under 0.01%"
            held = f'<span class="muted">in {report.images_with_label[split][label]:,}</span>'
            bar = f'<span class="share" aria-hidden="true"><i style="width:{100 * share / highest:.1f}%"></i></span>'
            cells += (
                f'<td data-value="{share}">{bar}{told} {held}</td>'
                if counts[label]
                else '<td data-value="">absent</td>'
            )
        name = swatch(entry) if entry else "void"
        absent = "" if any(counts[label] for counts in report.pixel_counts.values()) else " class=absent"
        rows.append(
            f'<tr{absent}><th scope="row" data-value="{escape(entry.name if entry else "void")}">{name}</th>{cells}</tr>'
        )
    return (
        '<p class="note">Share of the pixels, and how many images hold the class.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the classes"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _splits_table(report: LintReport) -> str:
    rows = []
    for split, each in dataset_stats(report)["splits"].items():
        sizes = each.get("sizes", {})
        shown = "".join(
            f"<td>{f'{sizes[name][1]} x {sizes[name][0]}' if sizes else ''}</td>"
            for name in ("smallest", "median", "largest")
        )
        formats = (", ".join(f"{name} {count:,}" for name, count in each[of].items()) for of in ("formats", "masks"))
        told = "".join(f'<td class="left">{escape(text)}</td>' for text in formats)
        rows.append(f'<tr><th scope="row">{escape(split)}</th><td>{each["images"]:,}</td>{shown}{told}</tr>')
    heads = ("split", "images", "smallest", "median", "largest")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    head += '<th scope="col" class="left">images in</th><th scope="col" class="left">masks in</th>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the splits"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
