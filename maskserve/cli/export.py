"""The subcommand `export`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import BundleName


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `maskserve train` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write (default: RUN/bundle).")] = None,
    name: BundleName = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set of the run, if it has moved since training (default: its place then).")
    ] = None,
    input_rule: Annotated[
        str | None,
        typer.Option("--input", help="Resize rule for input images: native, fit or fit:SIDE (default: as trained)."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="Also make an int8 graph, calibrated on training images.")
    ] = True,
    int8_limit: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            min=0,
            max=100,
            help="Points of validation mIoU that int8 may lose; otherwise it is left out.",
        ),
    ] = 0.5,
) -> None:
    """Freeze a run's best network into a bundle, if the frozen network predicts as the PyTorch one does."""
    from models.console import Console
    from training.export import export as export_run

    target = export_run(run, out, input_rule, int8_limit if int8 else None, name=name, data=data)
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)
