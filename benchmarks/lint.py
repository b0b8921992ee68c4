"""Speed of the lint in images per second: `python -m benchmarks.lint [DATA]`.

first   the lint with an empty cache
sandbox the same, with images and masks decoded in child processes (`--sandbox`)
second  the lint again, with the cache of the first
plain   a single-threaded loop that decodes each image and mask with Pillow and counts the mask's values with `np.unique`

They alternate, so that other load on the machine affects all of them. Rates are from the best round; the ratios of the others
to plain are medians over the rounds. The files are in the page cache. The start of the interpreter and imports are not
measured. Writes benchmarks/results/lint.json.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.usage import print_help_if_requested
from models.engines.host_info import host_info
from models.imaging import sandbox
from tests.fixtures_images import encode_image
from training.data import load_split
from training.data.dataset import SPLITS, Pair
from training.lint import lint

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "lint.json"
CAMVID = ROOT / ".." / "shared" / "data" / "camvid"
ROUNDS = 5
ONE_PIXEL = encode_image(np.zeros((1, 1, 3), np.uint8), "PNG")


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else CAMVID
    pairs = [pair for split in SPLITS for pair in load_split(data, split).pairs]
    seconds: dict[str, list[float]] = {name: [] for name in ("first", "sandbox", "second", "plain")}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in seconds}

    def measure(name: str, run: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), cpu_time()
        run()
        seconds[name].append(time.perf_counter() - wall)
        cpu_seconds[name].append(cpu_time() - cpu)

    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            measure("first", lambda: lint(data))
            measure("second", lambda: lint(data))
        measure("plain", lambda: decode_all(pairs))
        with sandbox_enabled():
            measure("sandbox", lambda: lint(data, use_cache=False))
    rates = {name: round(len(pairs) / min(each), 1) for name, each in seconds.items()}
    ratios = {
        name: round(statistics.median(b / a for a, b in zip(seconds[name], seconds["plain"], strict=True)), 2)
        for name in ("first", "sandbox", "second")
    }
    packages = ("pillow", "opencv-python-headless", "numpy")
    result = host_info() | {"versions": {package: version(package) for package in packages}}
    result |= {
        "data": data.resolve().name, "images": len(pairs), "rounds": ROUNDS, "images_per_second": rates,
        "processor_ms_per_image": {name: round(1000 * min(each) / len(pairs), 2) for name, each in cpu_seconds.items()},
        "to_plain": ratios,
        "sandbox_to_first": round(
            statistics.median(a / b for a, b in zip(seconds["first"], seconds["sandbox"], strict=True)), 2
        ),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, rate in rates.items():
        print(f"{name:8}{rate:10,.0f} images/s{f'{ratios[name]:8.2f} x plain' if name in ratios else ''}")


def cpu_time() -> float:
    """Seconds of CPU time of this process, and of its children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def sandbox_enabled() -> Iterator[None]:
    """The sandbox, with children that have started."""
    sandbox.enable_sandbox()
    sandbox.open_pool().decode(ONE_PIXEL)
    try:
        yield
    finally:
        sandbox.disable_sandbox()


def decode_all(pairs: list[Pair]) -> None:
    for pair in pairs:
        np.asarray(Image.open(pair.image).convert("RGB"))
        np.unique(np.asarray(Image.open(pair.mask)), return_counts=True)


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main()
