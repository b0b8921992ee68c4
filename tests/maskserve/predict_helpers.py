"""What the tests of `maskserve predict` share: a run in this process, and what it left."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from maskserve.predict.config import PredictConfig
from maskserve.predict.runner import run
from tests.fixtures_bundles import synthetic_image


def write_images(folder: Path, count: int, size: tuple[int, int] = (60, 90)) -> list[Path]:
    """So many PNGs of (height, width), some of them in a folder below."""
    made = []
    for place in range(count):
        file = folder / ("" if place % 2 else "deep") / f"{place:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synthetic_image(*size, place)).save(file, compress_level=1)
        made.append(file)
    return made


def run_predict(
    model: Path | str, *sources: Path | str, out: Path | str, retry_errors: bool = False, ray: str = "", actors: int = 0,
    **asked: Any,
) -> tuple[bool, str]:  # fmt: skip
    """Whether all is done, and what was said; `asked` are fields of `Job`."""
    said = io.StringIO()
    console = Console(file=said, width=400)
    done = run(
        PredictConfig(str(model), str(out), **asked), [str(one) for one in sources], console, retry_errors, ray, actors
    )
    return done, said.getvalue()


def read_rows(target: Path) -> list[dict[str, Any]]:
    """The rows of a folder's manifest, without its seal."""
    return [json.loads(line) for line in (target / "manifest.jsonl").read_text().splitlines()[1:]]


def read_masks(target: Path) -> dict[str, bytes]:
    """What was written, by place, but for the manifest."""
    files = [file for file in target.rglob("*") if file.is_file() and not file.name.startswith("manifest.")]
    return {file.relative_to(target).as_posix(): file.read_bytes() for file in files}
