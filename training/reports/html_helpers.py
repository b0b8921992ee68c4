"""Small pieces of HTML. Every name comes from somebody's files, so every one of them is escaped."""

from html import escape

from models.spec import ClassInfo


def interval_text(ends: list[float] | None) -> str:
    """An interval in words."""
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def interval_bar(value: float | None, ends: list[float] | None) -> str:
    """A rate and its interval on a line from 0 to 1; nothing where there is none."""
    if value is None:
        return ""
    band = "" if ends is None else f'<i style="left:{100 * ends[0]:.1f}%;right:{100 * (1 - ends[1]):.1f}%"></i>'
    return f'<span class="range" aria-hidden="true">{band}<b style="left:{100 * value:.1f}%"></b></span>'


def swatch(entry: ClassInfo) -> str:
    """A class's colour and name."""
    red, green, blue = entry.rgb
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>{escape(entry.name)}'


def format_bytes(count: int) -> str:
    """Bytes for people: megabytes are 10^6 bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
