"""How fast each engine segments an image of the split on this machine, and how large its files are, in some seconds.

`maskserve bench` measures more carefully: one process per engine, memory, agreement.
"""

import os
import platform
import time
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, MODEL_FILE, WEIGHTS_FILE, Bundle
from models.engines.selection import EngineOption, iterate_engine_options
from models.errors import first_line
from models.inference.segmenter import Segmenter
from models.sample import Sample
from training.reports.layout import render

TIME_BUDGET = 10.0  # seconds in all: engines that have not started by then are skipped
SECONDS_PER_ENGINE = 0.7  # seconds per engine and precision, and at least three predictions
FILE_DESCRIPTIONS = {
    MODEL_FILE: "graph",
    INT8_WEIGHTS_FILE: "int8 graph",
    WEIGHTS_FILE: "weights by name, for torch and fine-tuning",
}


@dataclass(frozen=True)
class EngineLatency:
    """The latency of one engine in one precision."""

    engine: str  # with its device unless that is the cpu
    precision: str
    median_ms: float | None = None  # of Segmenter.segment on one image
    reason: str = ""  # why it was not measured


def measure_latencies(bundle: Bundle, samples: list[Sample]) -> list[EngineLatency]:
    """Measure every engine and precision that this machine has for a bundle, on samples as its network takes them."""
    until = time.monotonic() + TIME_BUDGET
    return [
        EngineLatency(option.engine_id, option.precision, reason="skipped: time limit reached")
        if time.monotonic() > until
        else _measure_latency(bundle, option, samples)
        for option in iterate_engine_options(bundle)
        if not option.unavailable
    ]


def _measure_latency(bundle: Bundle, option: EngineOption, samples: list[Sample]) -> EngineLatency:
    times: list[float] = []
    try:
        segmenter = Segmenter.load(bundle, option.engine, option.precision, option.device)
        for sample in samples:  # the first prediction of a size allocates buffers
            segmenter.segment(sample)
        until = time.perf_counter() + SECONDS_PER_ENGINE
        while len(times) < 3 or time.perf_counter() < until:
            start = time.perf_counter()
            segmenter.segment(samples[len(times) % len(samples)])
            times.append(1000 * (time.perf_counter() - start))
    except Exception as error:  # engines raise many types, and the report must be written all the same
        return EngineLatency(option.engine_id, option.precision, reason=first_line(error))
    return EngineLatency(option.engine_id, option.precision, median_ms=float(np.median(times)))


def engines_section(bundle: Bundle, latencies: list[EngineLatency], used: tuple[str, str]) -> Markup:
    """The sizes of the files, and the latencies if they were measured; `used` is the evaluation's engine and precision."""
    sizes = {name: (bundle.folder / name).stat().st_size for name in FILE_DESCRIPTIONS if bundle.has_file(name)}
    if INT8_WEIGHTS_FILE in sizes:
        sizes[INT8_WEIGHTS_FILE] += (bundle.folder / INT8_MODEL_FILE).stat().st_size
    return render(
        "engines.html",
        latencies=latencies,
        longest_ms=max((each.median_ms for each in latencies if each.median_ms), default=1.0),
        used=used,
        machine=platform.machine(),
        cores=os.cpu_count(),
        files=[{"name": name, "description": FILE_DESCRIPTIONS[name], "size": size} for name, size in sizes.items()],
    )
