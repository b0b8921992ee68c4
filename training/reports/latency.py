"""How quick each engine labels an image of the split here, and how large its files are, in some seconds.

`maskserve bench` measures with care: a process for each, memory, agreement. This is a glance.
"""

import os
import platform
import time
from dataclasses import dataclass
from html import escape

import numpy as np

from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, MODEL_FILE, WEIGHTS_FILE, Bundle
from models.engines.selection import ENGINE_PREFERENCE, engine_id, has_gpu, usable_precisions
from models.errors import EngineError, first_line
from models.imaging.decode import RGB
from models.inference.segmenter import Segmenter
from training.reports.html_helpers import format_bytes

TIME_BUDGET = 10.0  # seconds for all of them: who has not begun by then is left out
SECONDS_PER_ENGINE = 0.7  # seconds of answers a way, and at least three of them
FILE_DESCRIPTIONS = {
    MODEL_FILE: "the graph",
    INT8_WEIGHTS_FILE: "the int8 graph",
    WEIGHTS_FILE: "the weights by name, for torch and fine-tuning",
}


@dataclass(frozen=True)
class EngineLatency:
    """One engine in one number format."""

    engine: str  # with its device where that is not the cpu
    precision: str
    median_ms: float | None = None  # median of an image through Segmenter.segment
    reason: str = ""  # one sentence where it was not measured


def measure_latencies(bundle: Bundle, images: list[RGB]) -> list[EngineLatency]:
    """Every engine and number format that this machine offers for a bundle; images are RGB uint8 H x W x 3."""
    until, found = time.monotonic() + TIME_BUDGET, []
    for device in [name for name in ENGINE_PREFERENCE if name == "cpu" or has_gpu()]:
        for engine in ENGINE_PREFERENCE[device]:
            try:
                offered = usable_precisions(bundle, engine, device)
            except EngineError:  # not installed here
                continue
            for precision in offered:
                late = time.monotonic() > until
                found.append(
                    EngineLatency(engine_id(engine, device), precision, reason="not measured: the others took the time")
                    if late
                    else _measure_latency(bundle, engine, precision, device, images)
                )
    return found


def _measure_latency(bundle: Bundle, engine: str, precision: str, device: str, images: list[RGB]) -> EngineLatency:
    name, times = engine_id(engine, device), list[float]()
    try:
        segmenter = Segmenter.load(bundle, engine, precision, device)
        for image in images:  # the first answer of a size makes buffers
            segmenter.segment(image)
        until = time.perf_counter() + SECONDS_PER_ENGINE
        while len(times) < 3 or time.perf_counter() < until:
            start = time.perf_counter()
            segmenter.segment(images[len(times) % len(images)])
            times.append(1000 * (time.perf_counter() - start))
    except Exception as error:  # an engine's own kinds: this glance must not cost the report
        return EngineLatency(name, precision, reason=first_line(error))
    return EngineLatency(name, precision, median_ms=float(np.median(times)))


def engines_section(bundle: Bundle, speeds: list[EngineLatency], auto: tuple[str, str]) -> str:
    """The sizes of the files, and the speeds where they were measured; `auto` is the engine and format that answered."""
    files = {
        file: (bundle.folder / file).stat().st_size
        + ((bundle.folder / INT8_MODEL_FILE).stat().st_size if file == INT8_WEIGHTS_FILE else 0)
        for file in FILE_DESCRIPTIONS
        if bundle.has_file(file)
    }
    listed = "".join(
        f"<tr><th scope=row>{escape(file)}</th><td class=left>{what}</td><td>{format_bytes(files[file])}</td></tr>"
        for file, what in FILE_DESCRIPTIONS.items()
        if file in files
    )
    table = _table("<th>file<th class=left>what it is<th>size", listed)
    if not speeds:
        return f'{table}<p class="note">Speeds were not measured; <code>maskserve bench</code> does it.</p>'
    longest = max((speed.median_ms for speed in speeds if speed.median_ms), default=1.0)
    rows = "".join(_row(speed, longest, auto) for speed in speeds)
    return (
        "<h3>Milliseconds an image</h3>"
        f"{_table('<th>engine<th class=left>format<th>ms<th class=left>short is quick', rows)}"
        f'<p class="note">Median of a few answers in one process on {escape(platform.machine())} with {os.cpu_count()} cores, '
        "which may have had other work too. <code>maskserve bench</code> measures with care.</p>"
        f"<h3>Files</h3>{table}"
    )


def _table(head: str, rows: str) -> str:
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(speed: EngineLatency, longest: float, auto: tuple[str, str]) -> str:
    name = escape(speed.engine) + (" <b>(this evaluation)</b>" if (speed.engine, speed.precision) == auto else "")
    head = f"<tr><th scope=row>{name}</th><td class=left>{escape(speed.precision)}</td>"
    if speed.median_ms is None:
        return f"{head}<td>-</td><td class=left>{escape(speed.reason)}</td></tr>"
    wide = f'<span class="range" aria-hidden="true"><i style="left:0;width:{100 * speed.median_ms / longest:.1f}%"></i></span>'
    return f"{head}<td>{speed.median_ms:.1f}</td><td class=left>{wide}</td></tr>"
