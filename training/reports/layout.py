"""HTML pages by Jinja2 templates: each is one file that opens offline, light or dark, also on a phone.

The Content-Security-Policy forbids everything from outside. Autoescape is on: names come from other people's files.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.metrics.results import Interval
from training.reports.console import format_rate

TEMPLATE_FOLDER = Path(__file__).parent / "templates"


def interval_text(interval: Interval) -> str:
    """An interval as text; empty without one."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def format_bytes(count: int) -> str:
    """A size as text; a megabyte is 10^6 bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATE_FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"rate": format_rate, "interval": interval_text, "bytes": format_bytes}


def render(template: str, **context: Any) -> Markup:
    """Render a template of this folder; values that are not Markup are escaped."""
    return Markup(ENVIRONMENT.get_template(template).render(context))


def render_page(title: str, eyebrow: str, name: str, subtitle: str, nav: str, main: str, style: str = "") -> str:
    """A whole page. `nav` and `main` are HTML, `style` is CSS that follows the page's own; the others are escaped."""
    css, js = ((TEMPLATE_FOLDER / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    return render(
        "frame.html",
        title=title,
        eyebrow=eyebrow,
        name=name,
        subtitle=subtitle,
        nav=Markup(nav),
        main=Markup(main),
        css=Markup(css + style),
        js=Markup(js),
    )
