"""The lint's report as one page that opens without a network, with the worst pictures of each kind.

It looks as the evaluation's page (`training/reports/layout.py`). Every name is escaped: it comes from somebody's files.
"""

import re
from html import escape
from pathlib import Path
from string import Template

from models.errors import DataError
from models.spec import VOID
from training.lint.findings import ADVICE, LEVELS, Finding, Report
from training.lint.stats import stats
from training.lint.thumbnails import card
from training.reports.html_helpers import swatch
from training.reports.layout import framed

FOLDER = Path(__file__).parent / "templates"
CODE = re.compile("`(.+?)`")
SHOWN, LISTED = 6, 20  # of a kind: findings with pictures, and in words


def write_page(target: Path, report: Report, data: Path) -> None:
    """Write the page. Raises: DataError where it cannot be written."""
    pictures = sum(report.pictures.values())
    splits = ", ".join(f"{split} {count:,}" for split, count in report.pictures.items())
    nav = "".join(f'<a href="#{_anchor(level, kind)}">{escape(kind)}</a> ' for level, kind, _ in report.kinds())
    sections = {
        "headline": _headline(report),
        "findings": _findings(report),
        "classes": _classes(report),
        "splits": _splits(report),
    }
    main, style = ((FOLDER / file).read_text(encoding="utf-8") for file in ("page.html", "page.css"))
    subtitle = f"{pictures:,} pictures ({splits}), {len(report.classes)} classes"
    nav += '<a href="#classes">Classes</a> <a href="#splits">Splits</a>'
    main = Template(main).substitute(sections)
    page = framed(f"lint of {data.name}", "maskserve data lint", data.resolve().name, subtitle, nav, main, style)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); name a file in a folder that is there."
        ) from error


def _style(level: str) -> str:
    return "note-level" if level == "note" else level


def _anchor(level: str, kind: str) -> str:
    return f"{level}-{kind}".replace(" ", "-")


def _headline(report: Report) -> str:
    counts = {level: sum(finding.level == level for finding in report.findings) for level in LEVELS}
    figures = [("", "pictures", sum(report.pictures.values()))]
    figures += [(_style(level) if count else "zero", f"{level}s", count) for level, count in counts.items()]
    parts = (f'<div class="{style}"><dt>{title}</dt><dd>{count:,}</dd></div>' for style, title, count in figures)
    return f'<dl class="figures">{"".join(parts)}</dl>'


def _findings(report: Report) -> str:
    if not report.findings:
        return "<p>Nothing is wrong.</p>"
    legend = (
        '<div class="controls"><label for="opacity">Opacity of the masks</label>'
        '<input id="opacity" type="range" min="0" max="100" step="5" value="60"><span id="opacity-shown">60%</span></div>'
        '<p class="note">Red is what is no class; void is clear.</p>'
    )
    drawn = any(finding.where for finding in report.findings)
    return (legend if drawn else "") + "".join(_kind(report, *each) for each in report.kinds())


def _kind(report: Report, level: str, kind: str, findings: list[Finding]) -> str:
    with_pictures = [finding for finding in findings if finding.where][:SHOWN]
    cards = "".join(card(report, finding) for finding in with_pictures)
    told = {id(finding) for finding in with_pictures}
    rest = [finding for finding in findings if id(finding) not in told]
    items = "".join(f"<li>{escape(finding.detail)}</li>" for finding in rest[:LISTED])
    more = f"<li>and {len(rest) - LISTED:,} more</li>" if len(rest) > LISTED else ""
    count = f"{len(findings):,}"
    advice = CODE.sub(r"<code>\1</code>", escape(ADVICE[kind]))
    return (
        f'<div class="finding {_style(level)}" id="{_anchor(level, kind)}"><h3><b>{level}</b> {escape(kind)}: {count}</h3>'
        f"<p>{advice}</p>"
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + (f"<ul>{items}{more}</ul>" if items else "")
        + "</div>"
    )


def _classes(report: Report) -> str:
    """A row a class with a bar a split, sortable."""
    highest = max((counts.max() / max(1, counts.sum()) for counts in report.pixels.values()), default=1) or 1
    heads = ["class", *report.pictures]
    head = "".join(f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in heads)
    rows = []
    for label, entry in [*enumerate(report.classes), (VOID, None)]:
        cells = ""
        for split, counts in report.pixels.items():
            share = counts[label] / max(1, counts.sum())
            told = f"{share:.2%}" if share >= 0.0001 or not counts[label] else "under 0.01%"
            held = f'<span class="muted">in {report.holders[split][label]:,}</span>'
            bar = f'<span class="share" aria-hidden="true"><i style="width:{100 * share / highest:.1f}%"></i></span>'
            cells += (
                f'<td data-value="{share}">{bar}{told} {held}</td>'
                if counts[label]
                else '<td data-value="">absent</td>'
            )
        name = swatch(entry) if entry else "void"
        absent = "" if any(counts[label] for counts in report.pixels.values()) else " class=absent"
        rows.append(
            f'<tr{absent}><th scope="row" data-value="{escape(entry.name if entry else "void")}">{name}</th>{cells}</tr>'
        )
    return (
        '<p class="note">Share of the pixels, and how many pictures hold the class.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the classes"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _splits(report: Report) -> str:
    rows = []
    for split, each in stats(report)["splits"].items():
        sizes = each.get("sizes", {})
        shown = "".join(
            f"<td>{f'{sizes[name][1]} x {sizes[name][0]}' if sizes else ''}</td>"
            for name in ("smallest", "median", "largest")
        )
        formats = (", ".join(f"{name} {count:,}" for name, count in each[of].items()) for of in ("formats", "masks"))
        told = "".join(f'<td class="left">{escape(text)}</td>' for text in formats)
        rows.append(f'<tr><th scope="row">{escape(split)}</th><td>{each["pictures"]:,}</td>{shown}{told}</tr>')
    heads = ("split", "pictures", "smallest", "median", "largest")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    head += '<th scope="col" class="left">pictures in</th><th scope="col" class="left">masks in</th>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of the splits"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
