"""What a run is asked to do: all that a process must know to take part in it, here or on another machine."""

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from models.errors import ConfigError
from models.outputs import OUTPUT_FORMATS
from models.outputs.options import OutputOptions

Number = TypeVar("Number", int, float)

# What has no file an image in `models/outputs`: masks that stand in the manifest, and rasters that go by windows.
PARQUET, GEOTIFF = "parquet", "geotiff"

# Not MASKSERVE_...: the service reads all of those as its settings and stops at one that it does not know.
KEY_VARIABLE = "PREDICT_KEY"

RAY_LOCAL = "local"  # Ray on this machine
RAY_ADDRESS_PATTERN = re.compile(rf"{RAY_LOCAL}|auto|ray://\S+|[^\s/:]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


@dataclass(frozen=True)
class PredictConfig:
    """Frozen and picklable. Raises: ConfigError for what cannot be asked together."""

    model: str  # a bundle's folder, or the URL of a service or of one of its models
    output: str  # a folder, or a URL that fsspec writes to
    format: str = "png"
    options: OutputOptions = OutputOptions()  # noqa: RUF009  # it is frozen
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    bands: tuple[int, ...] = (1, 2, 3)  # geotiff: of the raster, from 1: red, green, blue
    scale: tuple[float, ...] | None = None  # geotiff: the samples that become 0 and 255; None: the type's full range
    api_key: str = field(default="", repr=False)  # of the service
    threads: int = 0  # of one inference; 0: the engine's choice

    def __post_init__(self) -> None:
        formats = (*OUTPUT_FORMATS, PARQUET, GEOTIFF)
        if self.format not in formats:
            raise ConfigError(f"The format {self.format!r} is not known; choose from {', '.join(formats)}.")
        if self.uses_service and (self.engine, self.precision, self.device) != ("auto",) * 3:
            raise ConfigError(
                "What runs the network is the service's own choice: leave --engine, --precision, --device out."
            )
        if self.format == GEOTIFF and self.uses_service:
            raise ConfigError("A raster goes by windows through a bundle; a service takes whole images alone.")
        if self.format == GEOTIFF and self.options.min_area:
            raise ConfigError("A raster goes by windows, which regions cross: leave --min-area out.")
        if self.scale and not self.scale[0] < self.scale[1]:
            raise ConfigError(f"The scale {self.scale[0]:g},{self.scale[1]:g} is empty; wanted is LOW,HIGH.")
        if min(self.bands) < 1:
            raise ConfigError("Bands are counted from 1, as in --bands 3,2,1.")

    @property
    def uses_service(self) -> bool:
        """Whether the model is a service."""
        return self.model.startswith(("http://", "https://"))

    @property
    def service_address(self) -> tuple[str, str | None]:
        """The service's URL, and the name of its model: as in http://host/v1/models/NAME, or None where it has but one."""
        address, there, name = self.model.rstrip("/").partition("/v1/models/")
        return address, unquote(name) if there else None

    @property
    def mask_suffix(self) -> str:
        """Of the masks' files; empty where they stand in the manifest."""
        if self.format == PARQUET:
            return ""
        suffix: str = ".tif" if self.format == GEOTIFF else OUTPUT_FORMATS[self.format].SUFFIX
        return suffix

    def manifest_header(self, model: str) -> dict[str, Any]:
        """What all masks of one target have in common; `model` names the bundle's content. JSON holds it as it is."""
        raster = {"bands": list(self.bands), "scale": list(self.scale or [])} if self.format == GEOTIFF else {}
        options = asdict(self.options) | {"classes": list(self.options.classes)}
        return {"model": model, "format": self.format, "precision": self.precision, **options, **raster}


def parse_numbers(text: str, name: str, count: int, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """So many numbers, separated by commas. Raises: ConfigError."""
    try:
        found = tuple(kind(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        raise ConfigError(f"--{name} is {text!r}; wanted are {count} numbers, separated by commas.")
    return found


def read_api_key(file: Path | None) -> str:
    """The service's key, from a file or the environment: on the command line every user of the machine could read it.

    Raises: ConfigError for a file that cannot be read.
    """
    try:
        return file.read_text().strip() if file else os.environ.get(KEY_VARIABLE, "")
    except OSError as error:
        raise ConfigError(f"The --key-file {file} cannot be read ({error.strerror}).") from error


def require_package(package: str, extra: str, what: str) -> None:
    """Raises: ConfigError where a package of one of the extras is not installed."""
    if not is_installed(package):
        raise ConfigError(
            f"{what} needs {package}, which is not installed: install maskserve with the extra [{extra}]."
        )


def is_installed(package: str) -> bool:
    """Whether a package is here; it is not imported yet."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # barred, as in models/__init__.py
        return False


def short_model_name(model: str) -> str:
    """As the service's X-Model: the name and the first twelve digits of the hash."""
    name, _, digits = model.rpartition("@")
    return f"{name}@{digits[:12]}"
