"""How quick a bundle is on this machine, by engine and number format: for `maskserve bench`."""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from maskserve.bench_workers import BenchResult, EngineConfig, benchmark_engines
from maskserve.host_info import host_info
from maskserve.parsing import parse_size
from models.bundle import CHECKSUM_FILE, Bundle, open_bundle
from models.engines import ENGINES
from models.engines.selection import (
    ENGINE_PREFERENCE,
    EngineChoice,
    choose_engine,
    engine_id,
    has_gpu,
    usable_precisions,
)
from models.errors import BundleError, ConfigError, EngineError
from models.imaging.decode import RGB, read_image
from models.inference.geometry import resize_image
from models.inference.segmenter import agreement

AUTO_COLOR, BAR_COLOR, CAPTION_COLOR = (
    "#1f5fa8",
    "#a9c4e4",
    "#666666",
)  # of bars: the one that auto takes, the others; of small print


@dataclass(frozen=True)
class BenchRow:
    """What the table, the JSON and the plot say of one engine in one number format."""

    engine: str  # with its device where that is not the cpu: openvino, torch/cuda
    precision: str
    ms: float | None = None  # median, of an image through Segmenter.segment
    p95: float | None = None  # 95th percentile of the same, in ms
    images_per_second: float | None = None  # images
    memory_mb: float | None = None  # the process's largest resident set
    first_prediction_s: float | None = None  # seconds from the engine's import to the first answer
    agreement: float | None = None  # lowest share of an image's labels that are the reference's
    auto: bool = False  # whether `auto` takes it
    error: str = ""  # one sentence, where it could not be measured


def run_bench(
    folder: Path, source: Path | None, size: str | None, rounds: int, threads: int, out: Path | None, console: Console
) -> bool:
    """Measure a bundle in every engine and number format that this machine offers for it, and print a table.

    `source`: an image (default: the bundle's probes); `size`: WIDTHxHEIGHT to resize it to; `threads=0` leaves their
    number to the engine; into `out` go bench.json and bench.png.
    Returns: whether any could be measured.
    Raises: BundleError, ConfigError, ImageError, DataError; EngineError where no engine is here.
    """
    wanted = parse_size(size) if size else None
    if out is not None:
        check_output_folder(out)
    bundle = open_bundle(folder)
    images = [resize_image(image, wanted or image.shape[:2]) for image in load_images(bundle, source)]
    with console.status("looking for engines"):
        ways, absent = list_engine_configs(bundle)
        choice = choose_engine(bundle)
        host = host_info()
    with Progress(console=Console(stderr=True), transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("opening")
        found = benchmark_engines(
            folder, ways, images, rounds, threads,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    reference, rows = compare_with_reference(found, choice)
    title = f"{bundle.spec.name}, {describe_images(images, source)}"
    print_report(rows, absent, choice, reference, title, host, console)
    if out is not None:
        run = {"images": [_format_size(image) for image in images], "rounds": rounds, "threads": threads}
        told = {"reference": reference, "auto": asdict(choice), "rows": [asdict(row) for row in rows], "absent": absent}
        write_report(out, bundle, {"machine": host, **run, **told})
        plot_latencies(rows, title, f"{host['cpu']}, {host['cores']} cores", out / "bench.png")
        console.print(f"\n{out}: bench.json, bench.png", highlight=False, markup=False, soft_wrap=True)
    return any(not row.error for row in rows)


def check_output_folder(out: Path) -> None:
    """Before minutes of measuring: whether it can be written and drawn. Raises: ConfigError, EngineError."""
    if any((folder / CHECKSUM_FILE).exists() for folder in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(f"--out {out} is in a bundle, and its files are sealed; choose another folder.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder.")
    if importlib.util.find_spec("matplotlib") is None:
        raise EngineError("bench.png needs matplotlib: install maskserve's extra [train], or leave --out away.")


def load_images(bundle: Bundle, source: Path | None) -> list[RGB]:
    """One image, or the bundle's probes, RGB uint8 H x W x 3. Raises: BundleError, ConfigError, ImageError, DataError."""
    if source is not None:
        if source.is_dir():
            raise ConfigError(f"{source} is a folder; name one image.")
        return [read_image(source)]
    probes = [read_image(image) for image, _ in bundle.probes()]
    if not probes:
        raise BundleError(f"{bundle.folder} holds no probe images; name an image: maskserve bench BUNDLE IMAGE.")
    return probes


def list_engine_configs(bundle: Bundle) -> tuple[list[EngineConfig], dict[str, str]]:
    """What this machine offers for a bundle, and a sentence for each engine or number format that it does not."""
    ways, absent = [], {}
    for device in [name for name in ENGINE_PREFERENCE if name == "cpu" or has_gpu()]:
        for engine in ENGINE_PREFERENCE[device]:
            try:
                offered = usable_precisions(bundle, engine, device)
            except EngineError as error:
                absent[engine_id(engine, device)] = str(error)
                continue
            ways += [EngineConfig(engine, device, precision) for precision in offered]
            for precision in set(ENGINES[engine].precisions(bundle, device)) - set(offered):
                try:
                    choose_engine(bundle, engine, precision, device)
                except EngineError as error:
                    absent[f"{engine_id(engine, device)} {precision}"] = str(error)
    return ways, absent


def compare_with_reference(found: list[BenchResult], choice: EngineChoice) -> tuple[str, list[BenchRow]]:
    """The name of the one whose labels the others are compared with (openvino f32, or else the first), and all rows."""
    alive = [one for one in found if not one.error]
    exact = [one for one in alive if (one.config.engine, one.config.precision) == ("openvino", "f32")]
    truth = next(iter([*exact, *alive]), None)
    rows = []
    for one in found:
        way = one.config
        auto = (way.engine, way.device, way.precision) == (choice.engine, choice.device, choice.precision)
        rows.append(make_row(engine_id(way.engine, way.device), one, truth, auto))
    return (f"{engine_id(truth.config.engine, truth.config.device)} {truth.config.precision}" if truth else ""), rows


def make_row(engine: str, one: BenchResult, truth: BenchResult | None, auto: bool = False) -> BenchRow:
    """What was measured, rounded to what it is worth."""
    if one.error or truth is None:
        return BenchRow(engine, one.config.precision, auto=auto, error=one.error)
    ms = float(np.median(one.times_ms))
    return BenchRow(
        engine,
        one.config.precision,
        ms=round(ms, 2),
        p95=round(float(np.quantile(one.times_ms, 0.95)), 2),
        images_per_second=round(1000 / ms, 2),
        memory_mb=None if one.memory_mb is None else round(one.memory_mb),
        first_prediction_s=round(one.first_prediction_s, 2),
        agreement=round(min(map(agreement, one.labels, truth.labels)), 5),
        auto=auto,
    )


def describe_images(images: list[RGB], source: Path | None) -> str:
    """The images in some words."""
    sizes = ", ".join(dict.fromkeys(map(_format_size, images)))
    probes = "its probe" if len(images) == 1 else f"its {len(images)} probes"
    return f"{source.name if source else probes} at {sizes}"


def _format_size(image: RGB) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def write_report(out: Path, bundle: Bundle, report: dict[str, Any]) -> None:
    """Write bench.json: the bundle, and what was found."""
    out.mkdir(parents=True, exist_ok=True)
    named = {"name": bundle.spec.name, "hash": bundle.hash, "input": bundle.spec.input.model_dump()}
    (out / "bench.json").write_text(json.dumps({"bundle": named, **report}, indent=2) + "\n")


def print_report(
    rows: list[BenchRow], absent: dict[str, str], choice: EngineChoice, reference: str, title: str, host: dict[str, Any],
    console: Console,
) -> None:  # fmt: skip
    """Print the table, what failed, what is not here, and what `auto` takes and why."""
    console.print(title, style="bold", highlight=False, markup=False)
    cores = f"{host['cpu']}, {host['cores']} cores" + (f", {host['gpu']}" if host["gpu"] else "")
    console.print(f"{cores}, load {host['load'] or 0:.1f}\n", style="dim", highlight=False, markup=False)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("engine", "format", "ms", "p95", "images/s", "MB", "first", "equal", ""):
        left = name in ("engine", "format", "")
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, style="cyan" if name == "engine" else ""
        )
    for one in rows:
        mark = "[green]auto[/]" if one.auto else ""
        table.add_row(one.engine, one.precision, *format_cells(one), mark, style="bold" if one.auto else "")
    console.print(table)
    console.print()
    for one in rows:
        if one.error:
            _print_line(console, f"[red]failed:[/] {one.engine} {one.precision}: {escape(one.error)}")
    for name, sentence in absent.items():
        _print_line(console, f"not here: {escape(name)}: {escape(sentence)}")
    _print_line(console, f"auto takes {choice.engine_id} {choice.precision} ({escape(choice.reason)}).")
    legend = (
        "ms: an image, decoded to labels, median and 95th percentile. MB: the process's peak of "
        "resident memory. first: seconds from the engine's import to the first answer."
    )
    told = f" equal: labels that are those of {reference}." if reference else ""
    console.print(f"\n{legend}{told}", style="dim", highlight=False, markup=False)


def format_cells(one: BenchRow) -> list[str]:
    """A row's figures as the table has them."""
    if (
        one.ms is None
        or one.p95 is None
        or one.images_per_second is None
        or one.first_prediction_s is None
        or one.agreement is None
    ):
        return ["-"] * 6
    memory = "-" if one.memory_mb is None else f"{one.memory_mb:,}"
    share = f"{np.floor(one.agreement * 1e4) / 100:.2f}%"  # 100.00% is all of them
    return [
        format_number(one.ms),
        format_number(one.p95),
        format_number(one.images_per_second),
        memory,
        f"{one.first_prediction_s:.1f} s",
        share,
    ]


def format_number(number: float) -> str:
    """Three digits of a number, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _print_line(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, soft_wrap=True)


def plot_latencies(rows: list[BenchRow], title: str, below: str, target: Path) -> None:
    """Bars of milliseconds an image, as PNG: short is quick."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    figure = Figure(figsize=(9, 1.3 + 0.42 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    longest = max((one.ms or 0 for one in rows), default=0) or 1
    for place, one in enumerate(rows):
        axes.barh(place, one.ms or 0, height=0.62, color=AUTO_COLOR if one.auto else BAR_COLOR)
        told = (
            "failed"
            if one.ms is None
            else f"{format_number(one.ms)} ms,  {format_cells(one)[2]} a second,  {format_cells(one)[5]} equal"
        )
        axes.text(
            (one.ms or 0) + longest / 80,
            place,
            told,
            va="center",
            fontsize=9,
            color="black" if one.ms else CAPTION_COLOR,
        )
    names = [f"{one.engine} {one.precision}{' (auto)' if one.auto else ''}" for one in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.55 * longest)  # room for the words behind the longest bar
    axes.set_xlabel(f"ms an image    {below}", loc="left", fontsize=9, color=CAPTION_COLOR)
    axes.set_title(title, loc="left", fontsize=11)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target)
