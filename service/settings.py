"""The settings of the service, from the environment: one `MASKSERVE_*` variable per field. Unknown ones prevent the start."""

import ipaddress
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.engines import ENGINES
from models.engines.selection import DEVICES, PRECISIONS
from models.errors import ConfigError, closest_names, quoted
from models.setting_errors import plain_reason
from service.auth import is_key_hash
from service.forwarding import PATH_PREFIX_PATTERN, host_name

ENV_PREFIX = "MASKSERVE_"
STOP_IDLE_SECONDS = 1.0  # how long a connection without a request stays open at a stop

# Kubernetes sets these in every pod if a Service is named maskserve ("service links"); they are not settings.
_SERVICE_LINKS = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")

CommaSeparated = Annotated[tuple[str, ...], NoDecode]  # without NoDecode, pydantic-settings expects JSON


class Settings(BaseSettings):
    """The settings of one service. Limits apply to each worker unless described as divided or shared."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True)

    bundle: Path = Field(description="folder of the bundle to serve, or of several such folders; required")
    default_model: str | None = Field(
        default=None,
        description="name of the bundle for requests that name none; needed only with several bundles",
    )
    reload_seconds: float = Field(
        default=5, ge=0, le=3600, description="seconds between checks for new and changed bundles; 0 is never"
    )
    engine: Literal["auto", *ENGINES] = Field(  # type: ignore[valid-type]
        default="auto", description=f"inference engine: auto, {', '.join(ENGINES)}"
    )
    precision: Literal["auto", *PRECISIONS] = Field(  # type: ignore[valid-type]
        default="auto", description=f"precision of the inference: auto, {', '.join(PRECISIONS)}"
    )
    device: Literal["auto", *DEVICES] = Field(  # type: ignore[valid-type]
        default="auto", description=f"device of the inference: auto, {', '.join(DEVICES)}"
    )
    workers: int = Field(
        default=1, ge=1, le=256, description="processes, each with all bundles loaded; they share the port"
    )
    threads: int = Field(
        default=0, ge=0, description="cores for one inference; 0 divides all among the inferences of all workers"
    )
    concurrency: int = Field(default=1, ge=1, le=256, description="concurrent inferences in each worker")
    queue: int = Field(
        default=32,
        ge=0,
        description="images that may wait for their inference; divided among the workers, rounded up",
    )
    queue_seconds: float = Field(
        default=10, gt=0, le=600, description="seconds that an image may wait for its inference; else 429"
    )
    timeout_seconds: float = Field(
        default=60, gt=0, le=3600, description="seconds from a request's whole body to its response; then 504"
    )
    body_seconds: float = Field(
        default=20,
        gt=0,
        le=3600,
        description="seconds in which a body must arrive (else 408), and a quarter of a MiB of a response be received",
    )
    stuck_seconds: float = Field(
        default=30,
        ge=0,
        le=3600,
        description="seconds beyond TIMEOUT_SECONDS for which images may hold all slots of a worker; then /readyz responds "
        "503 and the worker is replaced; 0 is for ever",
    )
    head_seconds: float = Field(
        default=10, gt=0, le=3600, description="seconds in which the head of a request must arrive; else 408"
    )
    max_connections: int = Field(
        default=0,
        ge=0,
        description="open connections of each worker; 0 is 1000, or what `ulimit -n` allows. At the limit, a new one "
        "replaces the one that has been idle for longest, and gets 503 if none is idle",
    )
    max_uploads: int = Field(
        default=32, ge=1, description="bodies that may be uploaded at once; divided among the workers, rounded up"
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="largest request body, in bytes")
    max_pixels: int = Field(default=50_000_000, ge=1, description="largest image, in pixels (width x height)")
    max_voxels: int = Field(
        default=160_000_000,
        ge=1,
        description="largest volume, in voxels (depth x height x width), as in 512 x 512 x 600; reading one takes up to 26 bytes "
        "a voxel",
    )
    max_images: int = Field(default=64, ge=1, le=1000, description="images in one request to /v1/segment/batch")
    job_store_bytes: int = Field(
        default=2**30,
        ge=0,
        description="bytes of results of jobs (`Prefer: respond-async`) on the disk, of all workers; 0: there are no jobs, and "
        "such requests wait for their response",
    )
    job_ttl_seconds: float = Field(
        default=3600, gt=0, le=30 * 86400, description="seconds for which the result of a job is kept"
    )
    job_timeout_seconds: float = Field(
        default=3600,
        gt=0,
        le=7 * 86400,
        description="seconds from a job's whole body to its result; then it has failed with 504",
    )
    job_folder: Path | None = Field(
        default=None,
        description="folder in which the server makes its own for the results of jobs; default: that of temporary files",
    )
    sandbox: bool = Field(
        default=True,
        description="whether images are decoded in child processes, which end at the deadline; `off` trusts all images",
    )
    api_keys: CommaSeparated = Field(
        default=(),
        description="sha256 of each accepted key, separated by commas (`maskserve key` makes one); none: no key needed",
    )
    cors_origins: CommaSeparated = Field(
        default=(), description="origins whose web pages may call, separated by commas, as in https://a.org; * is any"
    )
    allowed_hosts: CommaSeparated = Field(
        default=(),
        description="names that a Host header may have beside localhost, 127.0.0.1 and [::1], separated by commas, as in "
        "example.org,*.example.org; * is any. Default: any; none others, if `maskserve serve` listens on a loopback address",
    )
    root_path: str = Field(
        default="", description="path below which a proxy passes requests on unchanged, as in /tools/maskserve"
    )
    trusted_proxies: CommaSeparated = Field(
        default=("127.0.0.1", "::1"),
        description="addresses or networks, separated by commas, of proxies whose X-Forwarded-For and X-Forwarded-Prefix "
        "are used; * is any",
    )
    page: bool = Field(default=True, description="whether the web page is at /; `off` disables it")
    explain: bool = Field(
        default=False,
        description='whether POST /v1/explain and the page\'s panel "Look inside" exist; a request costs 4 to 50 inferences',
    )
    access_log: bool = Field(
        default=True, description="whether each request writes a line of JSON to the standard output"
    )

    @field_validator("api_keys", "cors_origins", "allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _validate_hashes(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(is_key_hash(key) for key in keys):
            raise ValueError(
                "each must be 64 hexadecimal digits, the sha256 of a key; `maskserve key` makes a key and its hash"
            )
        return tuple(key.lower() for key in keys)

    @field_validator("cors_origins")
    @classmethod
    def _validate_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
                raise ValueError(
                    f"{quoted(origin)} is not an origin; use a form such as https://example.org or http://localhost:8080"
                )
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _validate_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"\*|(\*\.)?[\w.-]+|\[?[0-9A-Fa-f:.]+\]?", host):
                raise ValueError(
                    f"{quoted(host)} is not a host; use a name or an address without port, such as example.org"
                )
        return tuple(host_name(host) for host in hosts)

    @field_validator("root_path")
    @classmethod
    def _validate_root_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not PATH_PREFIX_PATTERN.fullmatch(path):
            raise ValueError("it must be a path such as /tools/maskserve")
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _validate_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                _ = proxy == "*" or ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"{error}; use an address or a network such as 10.0.0.0/8") from error
        return proxies

    @property
    def stop_seconds(self) -> int:
        """Longest time of a stop, in seconds: that of a request which a kept connection sends just before it is closed."""
        return math.ceil(STOP_IDLE_SECONDS + self.body_seconds + self.timeout_seconds)

    def per_worker(self, total: int) -> int:
        """One worker's part of a limit that is divided among all, rounded up."""
        return -(-total // self.workers)


def read_settings(bundle: Path | None = None) -> Settings:
    """Read the settings from the environment; `bundle` overrides MASKSERVE_BUNDLE.

    Raises: ConfigError that names the variable that is unknown, missing or invalid.
    """
    known = [field.upper() for field in Settings.model_fields]
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(ENV_PREFIX)
        if not variable.upper().startswith(ENV_PREFIX) or name in known or _SERVICE_LINKS.fullmatch(name):
            continue
        closest = closest_names(name, known, cutoff=0.5)
        hint = f"Did you mean {ENV_PREFIX}{closest}?" if closest else f"Available: {ENV_PREFIX}{', '.join(known)}."
        raise ConfigError(f"Unknown environment variable {variable}. {hint}")
    try:
        return Settings.model_validate({} if bundle is None else {"bundle": bundle})
    except ValidationError as error:
        first = error.errors()[0]
        variable = ENV_PREFIX + str(first["loc"][0]).upper()
        if first["type"] == "missing":
            raise ConfigError(f"{variable} is not set. Set it to the folder of the bundle to serve.") from error
        reason = plain_reason(first)
        secret = first["loc"][0] == "api_keys"  # do not repeat what may be the key
        shown = "" if secret else f" {quoted(first['input'])}"
        raise ConfigError(f"Invalid value{shown} for {variable}: {reason}.") from error
