"""The subcommand `predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskserve.cli.options import EngineOptions, check_bundle_is_first, expand_options

if TYPE_CHECKING:
    from models.outputs.options import OutputOptions

JSON_PANEL, SIGNAL_PANEL, RASTER_PANEL, RAY_PANEL = (
    "Options of --format json",
    "Options of recordings",
    "Options of --format geotiff, geojson and gpkg",
    "Options of Ray",
)


@dataclass(frozen=True)
class MaskOptions:
    """The options of the masks, for every image."""

    output_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="png (indexed mask, the default), overlay (JPEG), confidence (gray PNG), npy, json, parquet (COCO RLE in the "
            "manifest); of rasters of any size: geotiff, and polygons as geojson or gpkg; of recordings: events (JSON, the "
            "default), csv, wfdb (annotation file), npy, npz; of volumes: nifti (.nii.gz, the default), npz, tiff, json.",
            show_default=False,
        ),
    ] = ""
    classes: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Classes to keep; pixels of the others become unlabeled (default: all)."),
    ] = ""
    min_confidence: Annotated[
        float, typer.Option(metavar="0..1", help="Pixels of lower softmax probability become unlabeled.")
    ] = 0.0
    min_area: Annotated[
        int, typer.Option(metavar="PIXELS", help="4-connected regions of fewer pixels become unlabeled.")
    ] = 0
    alpha: Annotated[float, typer.Option(metavar="0..1", help="overlay: opacity of the class colors.")] = 0.5
    masks: Annotated[
        str,
        typer.Option(help="rle (COCO), polygons (GeoJSON), png (base64), or none.", rich_help_panel=JSON_PANEL),
    ] = "rle"
    simplify: Annotated[
        float,
        typer.Option(
            metavar="PIXELS", help="How far a polygon may deviate, to have fewer corners.", rich_help_panel=JSON_PANEL
        ),
    ] = 0.0
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Add the confidence, as a gray PNG in base64; to the npz of a volume, as an array.",
            rich_help_panel=JSON_PANEL,
        ),
    ] = False

    lead: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Leads to segment (default: all that the model takes).",
            rich_help_panel=SIGNAL_PANEL,
        ),
    ] = ""  # fmt: skip
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="HZ", help="Sampling rate of files that state none.", show_default=False,
            rich_help_panel=SIGNAL_PANEL,
        ),
    ] = None  # fmt: skip

    def output_options(self) -> "OutputOptions":
        """The options as `models.outputs` takes them. Raises: ConfigError for a value out of range."""
        from models.outputs.options import OutputOptions

        classes, leads = (
            tuple(name.strip() for name in names.split(",") if name.strip()) for names in (self.classes, self.lead)
        )
        return OutputOptions(
            self.alpha, classes, self.min_confidence, self.min_area, self.simplify, self.masks, self.confidence,
            leads=leads, rate=self.rate,
        )  # fmt: skip


@dataclass(frozen=True)
class RasterOptions:
    """The options of GeoTIFF inputs."""

    bands: Annotated[
        str,
        typer.Option(
            metavar="1,2,...",
            help="The bands of the model's channels, from 1 (default: by name; of RGB as the raster marks them, else the first "
            "three, or its only one as gray).",
            rich_help_panel=RASTER_PANEL,
        ),
    ] = ""
    scale: Annotated[
        str,
        typer.Option(
            metavar="LOW,HIGH",
            help="Sample values of black and white, for a model of photographs (default: the range of 8 or 16 bits).",
            rich_help_panel=RASTER_PANEL,
        ),
    ] = ""
    crs: Annotated[
        str,
        typer.Option(
            metavar="raster|EPSG:4326",
            help="Reference system of geojson and gpkg (default: EPSG:4326 for geojson, the raster's for gpkg).",
            rich_help_panel=RASTER_PANEL,
        ),
    ] = ""


@dataclass(frozen=True)
class RayOptions:
    """Whether and where to run on Ray."""

    ray: Annotated[
        str,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run on Ray: on this machine's cores (`local`, the default), or on a cluster (auto, HOST:PORT, ray://...).",
            rich_help_panel=RAY_PANEL,
        ),
    ] = ""
    actors: Annotated[
        int,
        typer.Option(
            min=0, help="Number of engines, each on a core or a GPU (default: as many as there are).", show_default=False,
            rich_help_panel=RAY_PANEL,
        ),
    ] = 0  # fmt: skip


@expand_options
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
        typer.Argument(
            metavar="SOURCE",
            help="Images, recordings or volumes, folders, globs, zip files, or URLs such as s3://bucket/a.",
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="TARGET", help="Folder (or s3://...) for the masks, which are named as the images.")
    ],
    mask_options: MaskOptions,
    raster_options: RasterOptions,
    ray_options: RayOptions,
    engine_options: EngineOptions,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="When resuming, retry the images that failed.")
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the service's API key (default: the environment variable PREDICT_KEY)."
        ),
    ] = None,
    sandbox: Annotated[
        bool,
        typer.Option("--sandbox", help="Decode images in child processes with limits: for images of unknown origin."),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="How long to wait for a response of a service (default: 300).", show_default=False
        ),
    ] = None,
) -> None:
    """Write a mask for each image, the events of each recording or the labels of each volume, and a manifest with a row per file.

    After a stop, the same command resumes.

    An image that cannot be read gets a row with the reason; the others continue, and the exit code is 1. Unlabeled pixels are
    255: transparent in png, unchanged in overlay.
    """
    from maskserve.client import AuthenticationError
    from maskserve.predict.config import KEY_VARIABLE, PredictConfig, parse_numbers, read_api_key
    from maskserve.predict.runner import run
    from models.console import Console
    from models.errors import RunError

    if "://" not in model:
        check_bundle_is_first(model, sources)
    config = PredictConfig(
        model=model,
        output=out.removeprefix("file://"),
        format=mask_options.output_format,
        options=mask_options.output_options(),
        engine=engine_options.engine,
        precision=engine_options.precision,
        device=engine_options.device,
        bands=parse_numbers(raster_options.bands, "bands", None, int) if raster_options.bands else (),
        scale=parse_numbers(raster_options.scale, "scale", 2, float) if raster_options.scale else None,
        crs=raster_options.crs,
        api_key=read_api_key(key_file),
        sandbox=sandbox,
        timeout=timeout,
    )
    try:
        complete = run(config, sources, Console(stderr=True), retry_errors, ray_options.ray, ray_options.actors)
    except AuthenticationError as error:
        problem = "refused the API key" if config.api_key else "requires an API key"
        raise RunError(
            f"{config.service_address[0]} {problem}: pass --key-file FILE, or set the environment variable {KEY_VARIABLE}."
        ) from error
    if not complete:
        raise typer.Exit(1)


def with_ray_address(arguments: list[str]) -> list[str]:
    """Insert `local` after a `--ray` without an address: in Typer, an option's value is required or not allowed."""
    if "--ray" not in arguments:
        return arguments
    from maskserve.predict.config import RAY_ADDRESS_PATTERN, RAY_LOCAL

    completed: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        completed.append(argument)
        if argument == "--ray" and not RAY_ADDRESS_PATTERN.fullmatch(following):
            completed.append(RAY_LOCAL)
    return completed
