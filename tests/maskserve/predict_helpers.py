"""Helpers of the tests of `maskserve predict`: a run in this process, and its output."""

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
    """Write `count` PNGs of (height, width); those with an even number into a subfolder."""
    files = []
    for index in range(count):
        file = folder / ("" if index % 2 else "deep") / f"{index:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synthetic_image(*size, index)).save(file, compress_level=1)
        files.append(file)
    return files


def run_predict(
    model: Path | str, *sources: Path | str, out: Path | str, retry_errors: bool = False, ray: str = "", actors: int = 0,
    **options: Any,
) -> tuple[bool, str]:  # fmt: skip
    """Run. Returns: whether all images have masks, and the printed text. `options`: fields of PredictConfig."""
    printed = io.StringIO()
    console = Console(file=printed, width=400)
    config = PredictConfig(str(model), str(out), **options)
    complete = run(config, list(map(str, sources)), console, retry_errors, ray, actors)
    return complete, printed.getvalue()


def read_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of a folder's manifest, without its header."""
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()[1:]]


def read_masks(output: Path) -> dict[str, bytes]:
    """The files of a folder by relative path, without the manifest."""
    files = [file for file in output.rglob("*") if file.is_file() and not file.name.startswith("manifest.")]
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}
