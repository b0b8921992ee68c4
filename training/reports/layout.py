"""What every page of the house is: one file that opens without a network, light or dark, on a phone too.

Its Content-Security-Policy forbids everything from outside.
"""

from html import escape
from pathlib import Path
from string import Template

TEMPLATE_FOLDER = Path(__file__).parent / "templates"


def render_page(title: str, eyebrow: str, name: str, subtitle: str, nav: str, main: str, style: str = "") -> str:
    """A whole page. `nav` and `main` are HTML, `style` is CSS after the house's own; the rest is text, which is escaped."""
    frame, css, js = (
        (TEMPLATE_FOLDER / file).read_text(encoding="utf-8") for file in ("frame.html", "page.css", "page.js")
    )
    texts = {"title": title, "eyebrow": eyebrow, "name": name, "subtitle": subtitle}
    escaped = {place: escape(text) for place, text in texts.items()}
    return Template(frame).substitute(escaped, css=css + style, js=js, nav=nav, main=main)
