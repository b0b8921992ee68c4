"""The subcommand `export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `maskserve train` left.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write (default: RUN/bundle).")] = None,
    input_rule: Annotated[
        str | None,
        typer.Option("--input", help="How images meet the network: native, fit, fit:SIDE (default: as trained)."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="Also make an int8 graph, calibrated on training images.")
    ] = True,
    int8_limit: Annotated[
        float,
        typer.Option(metavar="POINTS", min=0, max=100, help="What int8 may cost of the validation mIoU, in points."),
    ] = 0.5,
) -> None:
    """Freeze a run's best network into a bundle, if the frozen one answers as the live one does."""
    from training.export import export as export_run

    target = export_run(run, out, input_rule, int8_limit if int8 else None)
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)
