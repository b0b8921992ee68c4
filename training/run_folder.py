"""The files of a run folder, and `run.json`: what a resume and an export need to know beside the settings."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.atomic_write import write_atomically
from models.errors import RunError
from models.setting_errors import plain_reason
from models.spec import ClassInfo, InputRule

BEST_CHECKPOINT, LAST_CHECKPOINT = Path("checkpoints") / "best.ckpt", Path("checkpoints") / "last.ckpt"
CONFIG_FILE, METADATA_FILE, METRICS_CSV = "config.yaml", "run.json", "metrics.csv"
METADATA_VERSION = 2  # of run.json; a run of another version is refused


class ImageList(BaseModel):
    """The training images of a run, to notice when they change before a resume."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    sha256: str  # of the names, in order, joined by newlines


class RunMetadata(BaseModel):
    """The content of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = METADATA_VERSION
    data: Path  # absolute path of the data set
    classes: list[ClassInfo]
    input: InputRule
    crop: tuple[int, int]  # (height, width) of the training crop, pixels
    precision: Literal["f32", "bf16"]  # of convolutions
    images: ImageList


def read_run_metadata(run: Path) -> RunMetadata:
    """Read `run.json`. Raises: RunError if it is missing, damaged or of another version."""
    file = run / METADATA_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); train again with `maskserve train`.") from error
    if not isinstance(content, dict) or content.get("format_version") != METADATA_VERSION:
        raise RunError(f"{file} was written by another version of maskserve; train again into another --out.")
    try:
        return RunMetadata.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(
            f"{file} was changed: {'.'.join(map(str, first['loc']))}: {plain_reason(first)}; train again into another --out."
        ) from error


def write_run_metadata(metadata: RunMetadata, run: Path) -> None:
    """Write `run.json`. Raises: OSError, with the old file unchanged."""
    write_atomically(run / METADATA_FILE, (metadata.model_dump_json(indent=2) + "\n").encode())
