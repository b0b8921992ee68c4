"""The subcommand `predict`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maskserve.cli.options import DeviceOption, EngineOption, PrecisionOption


def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Bundle folder, or the URL of a service or of one of its models (http://host/v1/models/NAME).",
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Images, folders, globs, zip files, or URLs such as s3://bucket/a."),
    ],
    out: Annotated[
        str, typer.Option(metavar="TARGET", help="Folder (or s3://...) for the masks, named as the images.")
    ],
    output_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="png (indexed mask), overlay (JPEG), confidence (grey PNG), npy, json, parquet (COCO RLE in the "
            "manifest), or geotiff (rasters of any size).",
        ),
    ] = "png",
    classes: Annotated[
        str, typer.Option(metavar="NAME,...", help="Classes to keep; the others become void (default: all are kept).")
    ] = "",
    min_confidence: Annotated[
        float, typer.Option(metavar="0..1", help="Pixels whose softmax probability is below become void.")
    ] = 0.0,
    min_area: Annotated[
        int, typer.Option(metavar="PIXELS", help="Regions of fewer pixels, connected by their sides, become void.")
    ] = 0,
    alpha: Annotated[float, typer.Option(metavar="0..1", help="overlay: of the colours over the image.")] = 0.5,
    masks: Annotated[str, typer.Option(help="json: rle (COCO's), polygons (GeoJSON's), png (in base64), or none.")] = (
        "rle"
    ),
    simplify: Annotated[
        float, typer.Option(metavar="PIXELS", help="json: how far an outline may move for fewer corners.")
    ] = 0.0,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="json: add the confidence as a grey PNG in base64.")
    ] = False,
    bands: Annotated[
        str, typer.Option(metavar="R,G,B", help="geotiff: the bands to see as red, green and blue, from 1.")
    ] = "1,2,3",
    scale: Annotated[
        str,
        typer.Option(metavar="LOW,HIGH", help="geotiff: samples to see as 0 and 255 (default: the type's full range)."),
    ] = "",
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Going on, try again what could not be labelled before.")
    ] = False,
    ray: Annotated[
        str,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run on Ray: on this machine's cores (`local`, the default), or a cluster (auto, HOST:PORT, ray://...).",
        ),
    ] = "",
    actors: Annotated[
        int, typer.Option(min=0, help="Ray: engines at once, a core (or a GPU) each (default: all there are).")
    ] = 0,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the service's key (default: the environment's PREDICT_KEY)."),
    ] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Write a mask for each image, and a manifest: a row an image. Stopped or killed, the same command goes on.

    An image that cannot be read stands in the manifest with the reason, and the others go on; then exit code 1.

    What is left out becomes void: 255, transparent in png, the image itself in overlay.
    """
    from maskserve.client import AuthenticationError
    from maskserve.predict.config import KEY_VARIABLE, PredictConfig, parse_numbers, read_api_key
    from maskserve.predict.runner import run
    from models.errors import RunError
    from models.outputs.options import OutputOptions

    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    job = PredictConfig(
        model=model,
        output=out.removeprefix("file://"),
        format=output_format,
        options=OutputOptions(alpha, names, min_confidence, min_area, simplify, masks, confidence),
        engine=engine,
        precision=precision,
        device=device,
        bands=parse_numbers(bands, "bands", 3, int),
        scale=parse_numbers(scale, "scale", 2, float) if scale else None,
        api_key=read_api_key(key_file),
    )
    try:
        done = run(job, sources, Console(stderr=True), retry_errors, ray, actors)
    except AuthenticationError as error:
        what = "does not take this key" if job.api_key else "asks for a key"
        raise RunError(
            f"{job.service_address[0]} {what}: give --key-file FILE, or {KEY_VARIABLE} in the environment."
        ) from error
    if not done:
        raise typer.Exit(1)


def with_ray_address(arguments: list[str]) -> list[str]:
    """The same with `local` behind a `--ray` that no address follows: Typer's options have a value always, or never."""
    if "--ray" not in arguments:
        return arguments
    from maskserve.predict.config import RAY_ADDRESS_PATTERN, RAY_LOCAL

    told: list[str] = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        told.append(word)
        if word == "--ray" and not RAY_ADDRESS_PATTERN.fullmatch(following):
            told.append(RAY_LOCAL)
    return told
