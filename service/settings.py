"""What the environment may say to the service: one `MASKSERVE_*` variable a field. Unknown ones stop the start."""

import difflib
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.engines import ENGINES
from models.engines.selection import DEVICES, PRECISIONS
from models.errors import ConfigError
from service.auth import is_key_hash

ENV_PREFIX = "MASKSERVE_"

# Kubernetes sets these in every pod beside a Service that is named maskserve ("service links"); they are not ours.
_SERVICE_LINKS = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")

CommaSeparated = Annotated[tuple[str, ...], NoDecode]  # separated by commas; without NoDecode it would have to be JSON


class Settings(BaseSettings):
    """The settings of one service. What is not said to be shared or divided holds in each worker."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True)

    bundle: Path = Field(description="folder of the bundle to serve, or of several such folders; required")
    default_model: str | None = Field(
        default=None,
        description="name of the bundle that answers where none is named; needed with several bundles alone",
    )
    reload_seconds: float = Field(
        default=5, ge=0, le=3600, description="seconds between looks for new and changed bundles; 0 is never"
    )
    engine: Literal["auto", *ENGINES] = Field(  # type: ignore[valid-type]
        default="auto", description=f"what runs the network: auto, {', '.join(ENGINES)}"
    )
    precision: Literal["auto", *PRECISIONS] = Field(  # type: ignore[valid-type]
        default="auto", description=f"number format of the inference: auto, {', '.join(PRECISIONS)}"
    )
    device: Literal["auto", *DEVICES] = Field(  # type: ignore[valid-type]
        default="auto", description=f"what the inference runs on: auto, {', '.join(DEVICES)}"
    )
    workers: int = Field(
        default=1, ge=1, le=256, description="processes, each with the bundles open; they share the port"
    )
    threads: int = Field(
        default=0, ge=0, description="cores for one inference; 0 divides all among the inferences of all workers"
    )
    concurrency: int = Field(default=1, ge=1, le=256, description="inferences at once in each worker")
    queue: int = Field(
        default=32,
        ge=0,
        description="images that may wait for their inference; divided among the workers, rounded up",
    )
    queue_seconds: float = Field(
        default=10, gt=0, le=600, description="seconds that an image may wait for its inference; else 429"
    )
    timeout_seconds: float = Field(
        default=60, gt=0, le=3600, description="seconds from a request's whole body to its answer; then 504"
    )
    body_seconds: float = Field(
        default=20,
        gt=0,
        le=3600,
        description="seconds in which a body must come (else 408), and a quarter of a MiB of an answer be taken",
    )
    max_uploads: int = Field(
        default=32, ge=1, description="bodies that may come in at once; divided among the workers, rounded up"
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="largest request body, in bytes")
    max_pixels: int = Field(default=50_000_000, ge=1, description="largest image, in pixels (width x height)")
    max_images: int = Field(default=64, ge=1, le=1000, description="images in one request to /v1/segment/batch")
    api_keys: CommaSeparated = Field(
        default=(),
        description="sha256 of each key that opens the service, separated by commas (`maskserve key` makes one); none: open",
    )
    cors_origins: CommaSeparated = Field(
        default=(), description="origins whose web pages may call, separated by commas, as in https://a.org; * is any"
    )
    page: bool = Field(default=True, description="whether the web page is at /; `off` takes it away")
    access_log: bool = Field(
        default=True, description="whether each request leaves a line of JSON on the standard output"
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _hashed(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(is_key_hash(key) for key in keys):
            raise ValueError("each must be 64 hexadecimal digits, the sha256 of a key; `maskserve key` makes both")
        return tuple(key.lower() for key in keys)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
                raise ValueError(f"{origin!r} is no origin, such as https://example.org or http://localhost:8080")
        return origins

    @property
    def stop_seconds(self) -> int:
        """How long a request that was accepted may take to end, and a stop therefore to wait for it."""
        return math.ceil(self.body_seconds + self.timeout_seconds)

    def share(self, total: int) -> int:
        """What one worker has of a limit that is divided among all."""
        return -(-total // self.workers)


def read_settings(bundle: Path | None = None) -> Settings:
    """The settings from the environment; `bundle` stands over the one that is named there.

    Raises: ConfigError naming the variable that is unknown, missing or wrong.
    """
    known = [field.upper() for field in Settings.model_fields]
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(ENV_PREFIX)
        if not variable.upper().startswith(ENV_PREFIX) or name in known or _SERVICE_LINKS.fullmatch(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {ENV_PREFIX}{close[0]}?" if close else f"known are {ENV_PREFIX}{', '.join(known)}."
        raise ConfigError(f"The environment variable {variable} is not known; {hint}")
    try:
        return Settings.model_validate({} if bundle is None else {"bundle": bundle})
    except ValidationError as error:
        first = error.errors()[0]
        variable = ENV_PREFIX + str(first["loc"][0]).upper()
        if first["type"] == "missing":
            raise ConfigError(f"{variable} is not set; it names the folder of the bundle to serve.") from error
        reason = first["msg"].removeprefix("Value error, ")
        shown = "set to something else" if first["loc"][0] == "api_keys" else repr(first["input"])  # it may be the key
        raise ConfigError(f"{variable} is {shown}: {reason}.") from error
