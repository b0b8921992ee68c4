"""Benchmarks a bundle on this machine, for each engine and precision: `maskserve bench`."""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from maskserve.bench_workers import BenchResult, EngineConfig, benchmark_engines
from maskserve.parsing import parse_size
from models.atomic_write import write_atomically
from models.bundle import CHECKSUM_FILE, Bundle, open_bundle
from models.console import Console
from models.engines.host_info import host_info
from models.engines.selection import EngineChoice, choose_engine, engine_id, iterate_engine_options
from models.errors import BundleError, ConfigError, EngineError, escape_control_characters, escape_line
from models.inference.geometry import Image, resize_image
from models.inference.segmenter import agreement, read_probe
from models.readers import read_input_file
from models.spec import AXES

AUTO_COLOR, BAR_COLOR, CAPTION_COLOR = "#1f5fa8", "#a9c4e4", "#666666"  # the bar of `auto`, other bars, captions
COLUMNS = ("engine", "precision", "ms", "p95", "images/s", "MB", "first", "agree", "")
TEXT_COLUMNS = ("engine", "precision", "")  # left-aligned; the others hold numbers
LEGEND = (
    "ms: from the decoded image to its labels, median and 95th percentile. MB: peak resident memory of the process. "
    "first: seconds from importing the engine to the first prediction."
)


@dataclass(frozen=True)
class BenchRow:
    """The figures of one engine and precision: a row of the table, of the JSON and of the plot."""

    engine: str  # with its device unless that is the CPU: openvino, torch/cuda
    precision: str
    ms: float | None = None  # median of Segmenter.segment for an image, in milliseconds
    p95: float | None = None  # 95th percentile, in milliseconds
    images_per_second: float | None = None
    memory_mb: float | None = None  # peak resident memory of the process, in MB
    first_prediction_s: float | None = None  # seconds from importing the engine to the first prediction
    agreement: float | None = None  # lowest fraction of an image's labels that equal the reference's
    auto: bool = False  # whether `auto` chooses it
    error: str = ""  # the error message if it could not be measured


def run_bench(
    folder: Path, source: Path | None, size: str | None, rounds: int, threads: int, out: Path | None, console: Console
) -> bool:
    """Benchmark a bundle with every engine and precision that this machine supports, and print a table.

    Args:
        folder: the bundle.
        source: an image; None for the bundle's probe images.
        size: WIDTHxHEIGHT to resize the images to; None for their own size.
        rounds: rounds of measurements.
        threads: threads of one inference; 0: the engine decides.
        out: folder for bench.json and bench.png; None for neither.
        console: where the table is printed.

    Returns: whether any engine could be measured.
    Raises: BundleError, ConfigError, ImageError, DataError; EngineError if this machine has no engine for the bundle.
    """
    resize_to = parse_size(size) if size else None
    if out is not None:
        check_output_folder(out)
    bundle = open_bundle(folder)
    axes = bundle.spec.input.axes
    if resize_to and axes != "HW":
        raise ConfigError(f"--size {size} is for images; this bundle takes {AXES[axes]}: leave it out.")
    images = load_images(bundle, source)
    if resize_to:
        images = [resize_image(image, resize_to) for image in images]
    with console.status("looking for engines"):
        configs, unavailable = list_engine_configs(bundle)
        choice = choose_engine(bundle)
        host = host_info()
    with Progress(console=Console(stderr=True), transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading")
        results = benchmark_engines(
            folder, configs, images, rounds, threads,
            lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )  # fmt: skip
    reference, rows = compare_with_reference(results, choice)
    title = f"{bundle.spec.name}, {describe_images(images, source)}"
    print_report(rows, unavailable, choice, reference, title, host, console)
    if out is not None:
        measured = {"reference": reference, "auto": asdict(choice), "rows": [asdict(row) for row in rows]}
        settings = {"images": [_format_size(image) for image in images], "rounds": rounds, "threads": threads}
        write_report(out, bundle, {"machine": host, **settings, **measured, "unavailable": unavailable})
        plot_latencies(rows, title, f"{host['cpu']}, {host['cores']} cores", out / "bench.png")
        console.print(f"\n{out}: bench.json, bench.png", highlight=False, markup=False, soft_wrap=True)
    return any(not row.error for row in rows)


def check_output_folder(out: Path) -> None:
    """Check, before minutes of measuring, that the results can be written and plotted. Raises: ConfigError, EngineError."""
    if any((folder / CHECKSUM_FILE).exists() for folder in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(f"--out {out} is in a bundle, whose files must not change; choose another folder.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder.")
    if importlib.util.find_spec("matplotlib") is None:
        raise EngineError("bench.png needs matplotlib: install maskserve's extra [train], or omit --out.")


def load_images(bundle: Bundle, source: Path | None) -> list[Image]:
    """One image, or the bundle's probe images, as the network takes them.

    Raises: BundleError, ConfigError, ImageError, DataError.
    """
    rule = bundle.spec.input
    if source is not None:
        if source.is_dir():
            raise ConfigError(f"{source} is a folder; expected one image.")
        return [read_input_file(source, rule).values]
    probes = [read_probe(image, rule).values for image, _ in bundle.probes()]
    if not probes:
        raise BundleError(f"{bundle.folder} contains no probe images; name an image: maskserve bench BUNDLE IMAGE.")
    return probes


def list_engine_configs(bundle: Bundle) -> tuple[list[EngineConfig], dict[str, str]]:
    """The engines and precisions that this machine supports for a bundle, and the reason for each that it does not."""
    options = list(iterate_engine_options(bundle))
    configs = [EngineConfig(one.engine, one.device, one.precision) for one in options if not one.unavailable]
    return configs, {f"{one.engine_id} {one.precision}".rstrip(): one.unavailable for one in options if one.unavailable}


def compare_with_reference(results: list[BenchResult], choice: EngineChoice) -> tuple[str, list[BenchRow]]:
    """The name of the reference, openvino f32 or else the first that succeeded, and the rows: the fastest first, failures last."""
    succeeded = [result for result in results if not result.error]
    exact = [result for result in succeeded if (result.config.engine, result.config.precision) == ("openvino", "f32")]
    reference = next(iter([*exact, *succeeded]), None)
    rows, auto = [], (choice.engine, choice.device, choice.precision)
    for result in results:
        config = result.config
        is_auto = (config.engine, config.device, config.precision) == auto
        rows.append(make_row(engine_id(config.engine, config.device), result, reference, is_auto))
    rows.sort(key=lambda row: (row.ms is None, row.ms or 0.0))
    if reference is None:
        return "", rows
    return f"{engine_id(reference.config.engine, reference.config.device)} {reference.config.precision}", rows


def make_row(engine: str, result: BenchResult, reference: BenchResult | None, auto: bool = False) -> BenchRow:
    """The row of a result, its figures rounded to their precision."""
    if result.error or reference is None:
        return BenchRow(engine, result.config.precision, auto=auto, error=result.error)
    ms = float(np.median(result.times_ms))
    return BenchRow(
        engine,
        result.config.precision,
        ms=round(ms, 2),
        p95=round(float(np.quantile(result.times_ms, 0.95)), 2),
        images_per_second=round(1000 / ms, 2),
        memory_mb=None if result.memory_mb is None else round(result.memory_mb),
        first_prediction_s=round(result.first_prediction_s, 2),
        agreement=round(min(map(agreement, result.labels, reference.labels)), 5),
        auto=auto,
    )


def describe_images(images: list[Image], source: Path | None) -> str:
    """The images in a few words, as in `its probe at 640x480`; the lengths of a signal or volume."""
    sizes = ", ".join(dict.fromkeys(map(_format_size, images)))
    probes = "its probe" if len(images) == 1 else f"its {len(images)} probes"
    return f"{source.name if source else probes} at {sizes}"


def _format_size(image: Image) -> str:
    return "x".join(map(str, reversed(image.shape[:-1])))


def write_report(out: Path, bundle: Bundle, report: dict[str, Any]) -> None:
    """Write bench.json: the bundle and the results. Raises: OSError."""
    fields = {"name": bundle.spec.name, "hash": bundle.hash, "input": bundle.spec.input.model_dump()}
    write_atomically(out / "bench.json", (json.dumps({"bundle": fields, **report}, indent=2) + "\n").encode())


def print_report(
    rows: list[BenchRow], unavailable: dict[str, str], choice: EngineChoice, reference: str, title: str,
    host: dict[str, Any], console: Console,
) -> None:  # fmt: skip
    """Print the table, the failures, the engines that are unavailable, and the choice of `auto` with its reason."""

    def print_line(text: str) -> None:
        console.print(escape_control_characters(text), highlight=False, soft_wrap=True)

    console.print(escape_line(title), style="bold", highlight=False, markup=False)
    machine = f"{host['cpu']}, {host['cores']} cores" + (f", {host['gpu']}" if host["gpu"] else "")
    console.print(f"{machine}, load {host['load'] or 0:.1f}\n", style="dim", highlight=False, markup=False)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for name in COLUMNS:
        justify, style = "left" if name in TEXT_COLUMNS else "right", "cyan" if name == "engine" else ""
        table.add_column(name, justify=justify, no_wrap=True, style=style)  # type: ignore[arg-type]
    for row in rows:
        mark = "[green]auto[/]" if row.auto else ""
        table.add_row(row.engine, row.precision, *format_cells(row), mark, style="bold" if row.auto else "")
    console.print(table)
    console.print()
    for row in rows:
        if row.error:
            print_line(f"[red]failed:[/] {row.engine} {row.precision}: {escape(row.error)}")
    for name, reason in unavailable.items():
        print_line(f"unavailable: {escape(name)}: {escape(reason)}")
    print_line(f"auto chooses {choice.engine_id} {choice.precision} ({escape(choice.reason)}).")
    agreement_legend = f" agree: fraction of labels that equal those of {reference}." if reference else ""
    console.print(f"\n{LEGEND}{agreement_legend}", style="dim", highlight=False, markup=False)


def format_cells(row: BenchRow) -> list[str]:
    """The figures of a row as text, by column; `-` for each if it was not measured."""
    figures = (row.ms, row.p95, row.images_per_second, row.first_prediction_s, row.agreement)
    if None in figures:
        return ["-"] * 6
    ms, p95, rate, first, equal = map(float, figures)  # type: ignore[arg-type]
    memory = "-" if row.memory_mb is None else f"{row.memory_mb:,}"
    percent = f"{np.floor(equal * 1e4) / 100:.2f}%"  # rounded down: 100.00% means all labels
    return [*map(format_number, (ms, p95, rate)), memory, f"{first:.1f} s", percent]


def format_number(number: float) -> str:
    """A number with three significant digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def plot_latencies(rows: list[BenchRow], title: str, caption: str, target: Path) -> None:
    """Write a PNG with a bar per row, the fastest first: milliseconds per image on a logarithmic axis, failures last."""
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    figure = Figure(figsize=(9, 1.3 + 0.42 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    rows = sorted(rows, key=lambda row: row.ms or float("inf"))
    times = [row.ms for row in rows if row.ms] or [1.0]
    start, longest = min(times) / 2, max(times)  # a bar of a logarithmic axis has no zero to begin at
    for index, row in enumerate(rows):
        axes.barh(
            index, (row.ms or start) - start, left=start, height=0.62, color=AUTO_COLOR if row.auto else BAR_COLOR
        )
        ms, _, rate, _, _, equal = format_cells(row)
        text = "failed" if row.ms is None else f"{ms} ms,  {rate} images/s,  {equal} agreement"
        color = "black" if row.ms else CAPTION_COLOR
        axes.text(1.04 * (row.ms or start), index, text, va="center", fontsize=9, color=color)
    names = [f"{row.engine} {row.precision}{' (auto)' if row.auto else ''}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(start, longest * (longest / start) ** 0.8)  # leaves space for the text after the longest bar
    axes.set_xlabel(f"ms per image, logarithmic    {caption}", loc="left", fontsize=9, color=CAPTION_COLOR)
    axes.set_title(title, loc="left", fontsize=11)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target)
