"""The subcommand `bench`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import BundleFolder


def bench(
    bundle: BundleFolder,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Image to segment (default: the bundle's probe images).")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Resize the image to this size, in pixels (default: its own)."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of three timed passes per engine and precision.")] = 10,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one inference; 0: all cores.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write bench.json and bench.png to this folder.")
    ] = None,
) -> None:
    """Benchmark BUNDLE on this machine: latency, memory and agreement of each engine and precision, and the choice of `auto`."""
    from maskserve.bench import run_bench
    from models.console import Console

    if not run_bench(bundle, image, size, rounds, threads, out, Console()):
        raise typer.Exit(1)
