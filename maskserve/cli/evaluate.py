"""The subcommand `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import BundleFolder, DataFolder, DataFormat, DeviceOption, EngineOption, PrecisionOption


def evaluate(
    bundle: BundleFolder,
    data: DataFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json and report.html (default: evaluation/ beside the bundle)."),
    ] = None,
    data_format: DataFormat = "auto",
    tta: Annotated[
        str | None,
        typer.Option(metavar="flip,SCALE,...", help="Test-time augmentation, as in flip,0.75,1,1.25 (default: none)."),
    ] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Also time every engine, for the report: some ten seconds.")
    ] = True,
) -> None:
    """Measure a bundle on a split of DATA, at the images' own size: mIoU, Dice, boundary IoU, with 95% intervals.

    Leaves metrics.json, and report.html to look at. An earlier evaluation in the same folder is written over.
    """
    from training.evaluate import evaluate as evaluate_bundle
    from training.evaluate import evaluation_folder

    target = out or evaluation_folder(bundle)
    evaluate_bundle(bundle, data, split, target, data_format, tta, engine, precision, device, speed=speed)
