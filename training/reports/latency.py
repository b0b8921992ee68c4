"""How quick each engine labels a picture of the split here, and how large its files are, in some seconds.

`maskserve bench` measures with care: a process for each, memory, agreement. This is a glance.
"""

import os
import platform
import time
from dataclasses import dataclass
from html import escape

import numpy as np

from models.bundle import INT8, INT8_WEIGHTS, MODEL, WEIGHTS, Bundle
from models.engines.selection import ORDER, full_name, has_gpu, offers
from models.errors import EngineError, first_line
from models.imaging.decode import RGB
from models.inference.segmenter import Segmenter
from training.reports.html_helpers import size

BUDGET = 10.0  # seconds for all of them: who has not begun by then is left out
EACH = 0.7  # seconds of answers a way, and at least three of them
FILES = {MODEL: "the graph", INT8_WEIGHTS: "the int8 graph", WEIGHTS: "the weights by name, for torch and fine-tuning"}


@dataclass(frozen=True)
class Speed:
    """One engine in one number format."""

    engine: str  # with its device where that is not the cpu
    precision: str
    ms: float | None = None  # median of a picture through Segmenter.segment
    why: str = ""  # one sentence where it was not measured


def measured(bundle: Bundle, pictures: list[RGB]) -> list[Speed]:
    """Every engine and number format that this machine offers for a bundle; pictures are RGB uint8 H x W x 3."""
    until, found = time.monotonic() + BUDGET, []
    for device in [name for name in ORDER if name == "cpu" or has_gpu()]:
        for engine in ORDER[device]:
            try:
                offered = offers(bundle, engine, device)
            except EngineError:  # not installed here
                continue
            for precision in offered:
                late = time.monotonic() > until
                found.append(
                    Speed(full_name(engine, device), precision, why="not measured: the others took the time")
                    if late
                    else _measure(bundle, engine, precision, device, pictures)
                )
    return found


def _measure(bundle: Bundle, engine: str, precision: str, device: str, pictures: list[RGB]) -> Speed:
    name, times = full_name(engine, device), list[float]()
    try:
        segmenter = Segmenter.load(bundle, engine, precision, device)
        for picture in pictures:  # the first answer of a size makes buffers
            segmenter.segment(picture)
        until = time.perf_counter() + EACH
        while len(times) < 3 or time.perf_counter() < until:
            start = time.perf_counter()
            segmenter.segment(pictures[len(times) % len(pictures)])
            times.append(1000 * (time.perf_counter() - start))
    except Exception as error:  # an engine's own kinds: this glance must not cost the report
        return Speed(name, precision, why=first_line(error))
    return Speed(name, precision, ms=float(np.median(times)))


def engines_section(bundle: Bundle, speeds: list[Speed], auto: tuple[str, str]) -> str:
    """The sizes of the files, and the speeds where they were measured; `auto` is the engine and format that answered."""
    files = {
        file: (bundle.folder / file).stat().st_size
        + ((bundle.folder / INT8).stat().st_size if file == INT8_WEIGHTS else 0)
        for file in FILES
        if bundle.has(file)
    }
    listed = "".join(
        f"<tr><th scope=row>{escape(file)}</th><td class=left>{what}</td><td>{size(files[file])}</td></tr>"
        for file, what in FILES.items()
        if file in files
    )
    table = _table("<th>file<th class=left>what it is<th>size", listed)
    if not speeds:
        return f'{table}<p class="note">Speeds were not measured; <code>maskserve bench</code> does it.</p>'
    longest = max((speed.ms for speed in speeds if speed.ms), default=1.0)
    rows = "".join(_row(speed, longest, auto) for speed in speeds)
    return (
        "<h3>Milliseconds a picture</h3>"
        f"{_table('<th>engine<th class=left>format<th>ms<th class=left>short is quick', rows)}"
        f'<p class="note">Median of a few answers in one process on {escape(platform.machine())} with {os.cpu_count()} cores, '
        "which may have had other work too. <code>maskserve bench</code> measures with care.</p>"
        f"<h3>Files</h3>{table}"
    )


def _table(head: str, rows: str) -> str:
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(speed: Speed, longest: float, auto: tuple[str, str]) -> str:
    name = escape(speed.engine) + (" <b>(this evaluation)</b>" if (speed.engine, speed.precision) == auto else "")
    head = f"<tr><th scope=row>{name}</th><td class=left>{escape(speed.precision)}</td>"
    if speed.ms is None:
        return f"{head}<td>-</td><td class=left>{escape(speed.why)}</td></tr>"
    wide = f'<span class="range" aria-hidden="true"><i style="left:0;width:{100 * speed.ms / longest:.1f}%"></i></span>'
    return f"{head}<td>{speed.ms:.1f}</td><td class=left>{wide}</td></tr>"
