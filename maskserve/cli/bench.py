"""The subcommand `bench`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maskserve.cli.options import BundleFolder


def bench(
    bundle: BundleFolder,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="What to label (default: the bundle's probe images).")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Resize the image to this, in pixels (default: as it is)."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each engine has its turn of three measured answers.")
    ] = 10,
    threads: Annotated[int, typer.Option(min=0, help="Cores for one inference; 0 is all of them.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write bench.json and bench.png there.")] = None,
) -> None:
    """Measure BUNDLE here: time, memory and agreement of each engine and number format. Marks what `auto` takes."""
    from maskserve.bench import run_bench as bench_bundle

    if not bench_bundle(bundle, image, size, rounds, threads, out, Console()):
        raise typer.Exit(1)
