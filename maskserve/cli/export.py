"""The subcommand `export`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import BundleName


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folder that `maskserve train` wrote. Several, or the folder of `train --folds`: an ensemble, the mean of "
            "their logits in one graph.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Bundle folder to write (default: bundle in the folder of the run or the folds)."),
    ] = None,
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
    f1_thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="CLASSES",
            help="Choose the thresholds of these classes (names with commas, or all) for the best F1 on the validation split.",
        ),
    ] = None,
    temperature: Annotated[
        bool,
        typer.Option(
            "--temperature", help="Fit the confidence on the validation split, by a temperature. Labels stay."
        ),
    ] = False,
) -> None:
    """Freeze a run's best network into a bundle, if the frozen network predicts as the PyTorch one does."""
    from models.console import Console
    from training.cross_validation import find_fold_runs
    from training.export import export as export_run

    if len(runs) == 1 and (folds := find_fold_runs(runs[0])):
        out, runs = out or runs[0] / "bundle", folds
    run, *members = runs
    if members and out is None:
        raise typer.BadParameter("name the bundle of several runs with --out FOLDER")

    target = export_run(
        run,
        out,
        input_rule,
        int8_limit if int8 else None,
        name=name,
        data=data,
        f1_thresholds=f1_thresholds,
        temperature=temperature,
        members=members,
    )
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)
