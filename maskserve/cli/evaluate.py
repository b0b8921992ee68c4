"""The subcommand `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import (
    BundleFolder,
    DataFolder,
    DataFormat,
    EngineOptions,
    SandboxOption,
    check_bundle_is_first,
    expand_options,
)


@expand_options
def evaluate(
    bundle: BundleFolder,
    data: DataFolder,
    engine_options: EngineOptions,
    split: Annotated[str, typer.Option(help="train, val, test, or all: every image with a mask.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json and report.html (default: evaluation/ beside the bundle)."),
    ] = None,
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
    tta: Annotated[
        str | None,
        typer.Option(metavar="flip,SCALE,...", help="Test-time augmentation, as in flip,0.75,1,1.25 (default: none)."),
    ] = None,
    tolerance_ms: Annotated[
        float,
        typer.Option(min=0, metavar="MS", help="Signals: how far an onset or offset may be off, in ms (AAMI: 150)."),
    ] = 150.0,
    tolerance_mm: Annotated[
        float, typer.Option(min=0, metavar="MM", help="Volumes: tolerance of the surface Dice, in mm.")
    ] = 2.0,
    speed: Annotated[
        bool,
        typer.Option("--speed/--no-speed", help="Also measure every engine's speed, which takes about 10 seconds."),
    ] = True,
) -> None:
    """Measure a bundle on a split of DATA, at the images' own size: mIoU, Dice, boundary IoU, with 95% intervals.

    Of signals also the events: sensitivity, PPV, F1 and timing error of their onsets and offsets. Of volumes also Dice, surface
    Dice, HD95 and the error of the volume, by case.

    Writes metrics.json and report.html. An earlier evaluation in the same folder is overwritten.
    """
    check_bundle_is_first(bundle, [data])
    from training.evaluate import evaluate as evaluate_bundle
    from training.evaluate import evaluation_folder

    engine, precision, device = engine_options.engine, engine_options.precision, engine_options.device
    target = out or evaluation_folder(bundle)
    evaluate_bundle(
        bundle,
        data,
        split,
        target,
        data_format,
        tta,
        engine,
        precision,
        device,
        None,
        speed,
        tolerance_ms,
        tolerance_mm,
    )
