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

from maskserve.bench_workers import Measured, Way, race
from maskserve.host_info import machine
from maskserve.parsing import parse_size
from models.bundle import SUMS, Bundle, open_bundle
from models.engines import ENGINES
from models.engines.selection import ORDER, Choice, choose, full_name, has_gpu, offers
from models.errors import BundleError, ConfigError, EngineError
from models.imaging.decode import RGB, read
from models.inference.geometry import resize_picture
from models.inference.segmenter import agreement

STRONG, LIGHT, GREY = "#1f5fa8", "#a9c4e4", "#666666"  # of bars: the one that auto takes, the others; of small print


@dataclass(frozen=True)
class Row:
    """What the table, the JSON and the plot say of one engine in one number format."""

    engine: str  # with its device where that is not the cpu: openvino, torch/cuda
    precision: str
    ms: float | None = None  # median, of a picture through Segmenter.segment
    p95: float | None = None  # 95th percentile of the same, in ms
    per_second: float | None = None  # pictures
    memory_mb: float | None = None  # the process's largest resident set
    first_s: float | None = None  # seconds from the engine's import to the first answer
    equal: float | None = None  # lowest share of a picture's labels that are the reference's
    auto: bool = False  # whether `auto` takes it
    error: str = ""  # one sentence, where it could not be measured


def bench(
    folder: Path, source: Path | None, size: str | None, rounds: int, threads: int, out: Path | None, console: Console
) -> bool:
    """Measure a bundle in every engine and number format that this machine offers for it, and print a table.

    `source`: a picture (default: the bundle's probes); `size`: WIDTHxHEIGHT to resize it to; `threads=0` leaves their
    number to the engine; into `out` go bench.json and bench.png.
    Returns: whether any could be measured.
    Raises: BundleError, ConfigError, ImageError, DataError; EngineError where no engine is here.
    """
    wanted = parse_size(size) if size else None
    if out is not None:
        check_out(out)
    bundle = open_bundle(folder)
    pictures = [resize_picture(picture, wanted or picture.shape[:2]) for picture in pictures_of(bundle, source)]
    with console.status("looking for engines"):
        ways, absent = ways_of(bundle)
        choice = choose(bundle)
        host = machine()
    with Progress(console=Console(stderr=True), transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("opening")
        found = race(
            folder, ways, pictures, rounds, threads,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    reference, rows = judged(found, choice)
    title = f"{bundle.spec.name}, {described(pictures, source)}"
    show(rows, absent, choice, reference, title, host, console)
    if out is not None:
        run = {"pictures": [_size(picture) for picture in pictures], "rounds": rounds, "threads": threads}
        told = {"reference": reference, "auto": asdict(choice), "rows": [asdict(row) for row in rows], "absent": absent}
        write(out, bundle, {"machine": host, **run, **told})
        draw(rows, title, f"{host['cpu']}, {host['cores']} cores", out / "bench.png")
        console.print(f"\n{out}: bench.json, bench.png", highlight=False, markup=False, soft_wrap=True)
    return any(not row.error for row in rows)


def check_out(out: Path) -> None:
    """Before minutes of measuring: whether it can be written and drawn. Raises: ConfigError, EngineError."""
    if any((folder / SUMS).exists() for folder in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(f"--out {out} is in a bundle, and its files are sealed; choose another folder.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder.")
    if importlib.util.find_spec("matplotlib") is None:
        raise EngineError("bench.png needs matplotlib: install maskserve's extra [train], or leave --out away.")


def pictures_of(bundle: Bundle, source: Path | None) -> list[RGB]:
    """One picture, or the bundle's probes, RGB uint8 H x W x 3. Raises: BundleError, ConfigError, ImageError, DataError."""
    if source is not None:
        if source.is_dir():
            raise ConfigError(f"{source} is a folder; name one picture.")
        return [read(source)]
    probes = [read(picture) for picture, _ in bundle.probes()]
    if not probes:
        raise BundleError(f"{bundle.folder} holds no probe pictures; name a picture: maskserve bench BUNDLE PICTURE.")
    return probes


def ways_of(bundle: Bundle) -> tuple[list[Way], dict[str, str]]:
    """What this machine offers for a bundle, and a sentence for each engine or number format that it does not."""
    ways, absent = [], {}
    for device in [name for name in ORDER if name == "cpu" or has_gpu()]:
        for engine in ORDER[device]:
            try:
                offered = offers(bundle, engine, device)
            except EngineError as error:
                absent[full_name(engine, device)] = str(error)
                continue
            ways += [Way(engine, device, precision) for precision in offered]
            for precision in set(ENGINES[engine].precisions(bundle, device)) - set(offered):
                try:
                    choose(bundle, engine, precision, device)
                except EngineError as error:
                    absent[f"{full_name(engine, device)} {precision}"] = str(error)
    return ways, absent


def judged(found: list[Measured], choice: Choice) -> tuple[str, list[Row]]:
    """The name of the one whose labels the others are compared with (openvino f32, or else the first), and all rows."""
    alive = [one for one in found if not one.error]
    exact = [one for one in alive if (one.way.engine, one.way.precision) == ("openvino", "f32")]
    truth = next(iter([*exact, *alive]), None)
    rows = []
    for one in found:
        way = one.way
        auto = (way.engine, way.device, way.precision) == (choice.engine, choice.device, choice.precision)
        rows.append(row(full_name(way.engine, way.device), one, truth, auto))
    return (f"{full_name(truth.way.engine, truth.way.device)} {truth.way.precision}" if truth else ""), rows


def row(engine: str, one: Measured, truth: Measured | None, auto: bool = False) -> Row:
    """What was measured, rounded to what it is worth."""
    if one.error or truth is None:
        return Row(engine, one.way.precision, auto=auto, error=one.error)
    ms = float(np.median(one.times))
    return Row(
        engine,
        one.way.precision,
        ms=round(ms, 2),
        p95=round(float(np.quantile(one.times, 0.95)), 2),
        per_second=round(1000 / ms, 2),
        memory_mb=None if one.memory is None else round(one.memory),
        first_s=round(one.first, 2),
        equal=round(min(map(agreement, one.labels, truth.labels)), 5),
        auto=auto,
    )


def described(pictures: list[RGB], source: Path | None) -> str:
    """The pictures in some words."""
    sizes = ", ".join(dict.fromkeys(map(_size, pictures)))
    probes = "its probe" if len(pictures) == 1 else f"its {len(pictures)} probes"
    return f"{source.name if source else probes} at {sizes}"


def _size(picture: RGB) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def write(out: Path, bundle: Bundle, report: dict[str, Any]) -> None:
    """Write bench.json: the bundle, and what was found."""
    out.mkdir(parents=True, exist_ok=True)
    named = {"name": bundle.spec.name, "hash": bundle.hash, "input": bundle.spec.input.model_dump()}
    (out / "bench.json").write_text(json.dumps({"bundle": named, **report}, indent=2) + "\n")


def show(
    rows: list[Row], absent: dict[str, str], choice: Choice, reference: str, title: str, host: dict[str, Any],
    console: Console,
) -> None:  # fmt: skip
    """Print the table, what failed, what is not here, and what `auto` takes and why."""
    console.print(title, style="bold", highlight=False, markup=False)
    cores = f"{host['cpu']}, {host['cores']} cores" + (f", {host['gpu']}" if host["gpu"] else "")
    console.print(f"{cores}, load {host['load'] or 0:.1f}\n", style="dim", highlight=False, markup=False)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("engine", "format", "ms", "p95", "pictures/s", "MB", "first", "equal", ""):
        left = name in ("engine", "format", "")
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, style="cyan" if name == "engine" else ""
        )
    for one in rows:
        mark = "[green]auto[/]" if one.auto else ""
        table.add_row(one.engine, one.precision, *cells(one), mark, style="bold" if one.auto else "")
    console.print(table)
    console.print()
    for one in rows:
        if one.error:
            _say(console, f"[red]failed:[/] {one.engine} {one.precision}: {escape(one.error)}")
    for name, sentence in absent.items():
        _say(console, f"not here: {escape(name)}: {escape(sentence)}")
    _say(console, f"auto takes {choice.name} {choice.precision} ({escape(choice.why)}).")
    legend = (
        "ms: a picture, decoded to labels, median and 95th percentile. MB: the process's peak of "
        "resident memory. first: seconds from the engine's import to the first answer."
    )
    told = f" equal: labels that are those of {reference}." if reference else ""
    console.print(f"\n{legend}{told}", style="dim", highlight=False, markup=False)


def cells(one: Row) -> list[str]:
    """A row's figures as the table has them."""
    if one.ms is None or one.p95 is None or one.per_second is None or one.first_s is None or one.equal is None:
        return ["-"] * 6
    memory = "-" if one.memory_mb is None else f"{one.memory_mb:,}"
    share = f"{np.floor(one.equal * 1e4) / 100:.2f}%"  # 100.00% is all of them
    return [short(one.ms), short(one.p95), short(one.per_second), memory, f"{one.first_s:.1f} s", share]


def short(number: float) -> str:
    """Three digits of a number, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, soft_wrap=True)


def draw(rows: list[Row], title: str, below: str, target: Path) -> None:
    """Bars of milliseconds a picture, as PNG: short is quick."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    figure = Figure(figsize=(9, 1.3 + 0.42 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    longest = max((one.ms or 0 for one in rows), default=0) or 1
    for place, one in enumerate(rows):
        axes.barh(place, one.ms or 0, height=0.62, color=STRONG if one.auto else LIGHT)
        told = "failed" if one.ms is None else f"{short(one.ms)} ms,  {cells(one)[2]} a second,  {cells(one)[5]} equal"
        axes.text((one.ms or 0) + longest / 80, place, told, va="center", fontsize=9, color="black" if one.ms else GREY)
    names = [f"{one.engine} {one.precision}{' (auto)' if one.auto else ''}" for one in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.55 * longest)  # room for the words behind the longest bar
    axes.set_xlabel(f"ms a picture    {below}", loc="left", fontsize=9, color=GREY)
    axes.set_title(title, loc="left", fontsize=11)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target)
