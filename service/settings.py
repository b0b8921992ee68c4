"""What the environment may say to the service: one `MASKSERVE_*` variable a field. Unknown ones stop the start."""

import difflib
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.engines import ENGINES
from models.engines.choice import DEVICES, PRECISIONS
from models.errors import ConfigError

PREFIX = "MASKSERVE_"

# Kubernetes sets these in every pod beside a Service that is named maskserve ("service links"); they are not ours.
_SERVICE_LINKS = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")


class Settings(BaseSettings):
    """The settings of one service process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    bundle: Path = Field(description="folder of the bundle to serve; required")
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="largest request body, in bytes")
    max_pixels: int = Field(default=50_000_000, ge=1, description="largest picture, in pixels (width x height)")
    engine: Literal["auto", *ENGINES] = Field(  # type: ignore[valid-type]
        default="auto", description=f"what runs the network: auto, {', '.join(ENGINES)}"
    )
    precision: Literal["auto", *PRECISIONS] = Field(  # type: ignore[valid-type]
        default="auto", description=f"number format of the inference: auto, {', '.join(PRECISIONS)}"
    )
    device: Literal["auto", *DEVICES] = Field(  # type: ignore[valid-type]
        default="auto", description=f"what the inference runs on: auto, {', '.join(DEVICES)}"
    )
    threads: int = Field(default=0, ge=0, description="cores for one inference; 0 is all of them")
    concurrency: int = Field(default=1, ge=1, description="inferences at once; more than 1 shares the same cores")


def read_settings(bundle: Path | None = None) -> Settings:
    """The settings from the environment; `bundle` stands over the one that is named there.

    Raises: ConfigError naming the variable that is unknown, missing or wrong.
    """
    known = [field.upper() for field in Settings.model_fields]
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX)
        if not variable.upper().startswith(PREFIX) or name in known or _SERVICE_LINKS.fullmatch(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {PREFIX}{close[0]}?" if close else f"known are {PREFIX}{', '.join(known)}."
        raise ConfigError(f"The environment variable {variable} is not known; {hint}")
    try:
        return Settings.model_validate({} if bundle is None else {"bundle": bundle})
    except ValidationError as error:
        first = error.errors()[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        if first["type"] == "missing":
            raise ConfigError(f"{variable} is not set; it names the folder of the bundle to serve.") from error
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{variable} is {first['input']!r}: {reason}.") from error
