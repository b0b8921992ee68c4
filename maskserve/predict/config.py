"""The options of a run: everything that a process needs to take part in it, on this machine or another."""

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from models.errors import ConfigError, quoted
from models.outputs import ALL_FORMATS, OUTPUT_FORMATS, find_format
from models.outputs.options import OutputOptions
from models.spec import AXES

Number = TypeVar("Number", int, float)

# The formats that are not in `models/outputs`: masks inside the manifest, and rasters that are read in windows.
PARQUET, GEOTIFF = "parquet", "geotiff"
VECTOR_FORMATS = {"geojson": ".geojson", "gpkg": ".gpkg"}  # polygons of rasters that are read in windows, and suffixes
# Of OutputOptions, what the masks of one output share; `bands` is only of overlays of a service.
IMAGE_OPTIONS = ("alpha", "classes", "min_confidence", "min_area", "simplify", "masks", "confidence")
SIGNAL_OPTIONS = ("classes", "min_confidence", "leads", "rate")
VOLUME_OPTIONS = ("classes", "min_confidence", "confidence")
OPTIONS_BY_AXES = {"HW": IMAGE_OPTIONS, "T": SIGNAL_OPTIONS, "DHW": VOLUME_OPTIONS}
RASTER_FORMATS = (GEOTIFF, *VECTOR_FORMATS)
VECTOR_CRS = ("raster", "EPSG:4326")

# Not MASKSERVE_...: the service reads all of those as its settings and refuses unknown ones.
KEY_VARIABLE = "PREDICT_KEY"

# Seconds: the service itself ends a request sooner (60 by default), with an error that says so.
DEFAULT_TIMEOUT = 300.0

RAY_LOCAL = "local"  # Ray on this machine
RAY_ADDRESS_PATTERN = re.compile(rf"{RAY_LOCAL}|auto|ray://\S+|[^\s/:]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


@dataclass(frozen=True)
class PredictConfig:
    """The options of a run, immutable and picklable. Raises: ConfigError for options that exclude each other."""

    model: str  # a bundle's folder, or the URL of a service or of one of its models
    output: str  # a folder, or a URL that fsspec writes to
    format: str = ""  # a key of OUTPUT_FORMATS[axes], PARQUET or GEOTIFF; empty: the default of the axes
    axes: str = "HW"  # of the model's samples; `runner.resolve_model` sets them
    options: OutputOptions = OutputOptions()  # noqa: RUF009  # it is frozen
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    # Rasters: the bands of the network's channels, from 1; empty: by their names, or chosen for each raster.
    bands: tuple[int, ...] = ()
    crs: str = ""  # geojson, gpkg: one of VECTOR_CRS; empty: EPSG:4326 for geojson, the raster's for gpkg
    scale: tuple[float, ...] | None = None  # geotiff: the samples that map to 0 and 255; None: the type's full range
    api_key: str = field(default="", repr=False)  # the service's key
    sandbox: bool = False  # whether each image is decoded in a child process, which is killed if it takes too long
    timeout: float | None = None  # seconds for a response of a service; None: DEFAULT_TIMEOUT
    threads: int = 0  # threads of one inference; 0: the engine decides

    def __post_init__(self) -> None:
        formats = (*ALL_FORMATS, PARQUET, *RASTER_FORMATS)
        if self.format and self.format not in formats:
            raise ConfigError(f"Unknown format {quoted(self.format)}; choose one of {', '.join(formats)}.")
        if self.uses_service and (self.engine, self.precision, self.device) != ("auto",) * 3:
            raise ConfigError("The service chooses its engine: omit --engine, --precision and --device.")
        if self.timeout is not None and not self.uses_service:
            raise ConfigError("--timeout limits the wait for a service; a bundle in this process has none: omit it.")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise ConfigError(f"--timeout is {self.timeout:g}; expected a number of seconds above 0.")
        if self.reads_windows and self.uses_service:
            raise ConfigError(
                f"--format {self.format} needs a bundle folder as MODEL: a service accepts only whole images."
            )
        if self.reads_windows and self.options.min_area:
            raise ConfigError(f"--format {self.format} reads windows, and regions cross them: omit --min-area.")
        if self.crs and self.format not in VECTOR_FORMATS:
            raise ConfigError(f"--crs is for --format {' and '.join(VECTOR_FORMATS)}: omit it.")
        if self.crs and self.crs not in VECTOR_CRS:
            raise ConfigError(f"--crs is {quoted(self.crs)}; choose {' or '.join(VECTOR_CRS)}.")
        if self.scale and not self.scale[0] < self.scale[1]:
            raise ConfigError(f"--scale is {self.scale[0]:g},{self.scale[1]:g}; expected LOW,HIGH with LOW below HIGH.")
        if min(self.bands, default=1) < 1:
            raise ConfigError(
                f"--bands is {','.join(map(str, self.bands))}; expected band numbers from 1, such as 3,2,1."
            )

    @property
    def output_format(self) -> str | None:
        """The key of OUTPUT_FORMATS[axes]; None for PARQUET and rasters. Raises: ConfigError for a format of other axes."""
        if self.axes == "HW" and (self.format == PARQUET or self.reads_windows):
            return None
        return find_format(self.format or None, self.axes)

    @property
    def noun(self) -> str:
        """What a run segments, in the plural."""
        return {"T": "recordings"}.get(self.axes, AXES[self.axes])

    @property
    def uses_service(self) -> bool:
        """Whether the model is a service."""
        return self.model.startswith(("http://", "https://"))

    @property
    def service_address(self) -> tuple[str, str | None]:
        """The service's URL, and the model's name from http://host/v1/models/NAME, or None if the URL names none."""
        url, separator, name = self.model.rstrip("/").partition("/v1/models/")
        return url, unquote(name) if separator else None

    @property
    def response_timeout(self) -> float:
        """Seconds to wait for a response of the service."""
        return DEFAULT_TIMEOUT if self.timeout is None else self.timeout

    @property
    def reads_windows(self) -> bool:
        """Whether images are rasters that are read in windows."""
        return self.format in RASTER_FORMATS

    @property
    def mask_suffix(self) -> str:
        """The suffix of the mask files; empty if the masks are in the manifest."""
        if self.format == PARQUET:
            return ""
        if self.format in VECTOR_FORMATS:
            return VECTOR_FORMATS[self.format]
        output = self.output_format
        suffix: str = ".tif" if output is None else OUTPUT_FORMATS[self.axes][output].SUFFIX
        return suffix

    def manifest_header(self, model: str) -> dict[str, Any]:
        """The properties that all masks of one output share, as JSON; `model` is the bundle's name and hash."""
        raster: dict[str, Any] = {}
        if self.reads_windows:
            raster = {"bands": list(self.bands), "scale": list(self.scale or [])}
        if self.crs:
            raster["crs"] = self.crs
        options = asdict(self.options) | {"classes": list(self.options.classes), "leads": list(self.options.leads)}
        kept = OPTIONS_BY_AXES[self.axes]
        options = {name: value for name, value in options.items() if name in kept}
        format = self.output_format or self.format
        return {"model": model, "format": format, "precision": self.precision, **options, **raster}


def parse_numbers(text: str, name: str, count: int | None, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Parse the value of the option --`name`: `count` numbers (None: any), separated by commas. Raises: ConfigError."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise ConfigError(f"--{name} is {quoted(text)}; expected {count or 'band'} numbers, separated by commas.")
    return numbers


def read_api_key(file: Path | None) -> str:
    """The service's key, from a file or the environment: on the command line every user of the machine could read it.

    Raises: ConfigError for a file that cannot be read.
    """
    try:
        return file.read_text().strip() if file else os.environ.get(KEY_VARIABLE, "")
    except OSError as error:
        raise ConfigError(f"The --key-file {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The --key-file {file} is not text; expected the key that `maskserve key` printed."
        ) from error


def require_package(package: str, extra: str, feature: str) -> None:
    """Check that the package of an optional feature is installed. Raises: ConfigError."""
    if not is_installed(package):
        raise ConfigError(
            f"{feature} needs {package}, which is not installed: install maskserve with the extra [{extra}]."
        )


def is_installed(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # blocked, as in models/__init__.py
        return False


def short_model_name(model: str) -> str:
    """A bundle's name and the first twelve digits of its hash, as in the service's X-Model."""
    name, _, digits = model.rpartition("@")
    return f"{name}@{digits[:12]}"
