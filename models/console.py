"""The console of every output: it shows control characters of file names and class names instead of sending them.

A name such as `a\\x1b[31mb.png` would color the terminal, move its cursor or set its title.
"""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from models.errors import escape_control_characters, escape_line


class Console(rich.console.Console):
    """Rich's console, which escapes control characters, but tabs and line breaks, in all text that it prints."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape before lines are wrapped."""
        return super().render_str(escape_control_characters(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape the text of other objects too; tables should get `name_text`, whose width is right."""
        for segment in super().render(renderable, options):
            escaped = segment.text if segment.control else escape_control_characters(segment.text)
            yield segment if escaped == segment.text else Segment(escaped, segment.style)


def name_text(name: str, style: str = "") -> Text:
    """The name of a file or class as a cell of a table, on one line."""
    return Text(escape_line(name), style)
