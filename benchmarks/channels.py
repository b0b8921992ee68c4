"""Speed of reading chips of 13 bands of uint16, 512 x 512, and preparing a crop of 256 x 256: `python -m benchmarks.channels`.

Two worker processes read as in training: file, channels, augmentation (scale, flips, rotation). One line for each layout of files;
rates are of the best of three rounds, with the files in the page cache. Writes benchmarks/results/channels.json.
"""

import json
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from benchmarks.usage import print_help_if_requested
from models.engines.host_info import host_info
from models.spec import InputRule, Scaling
from training.augment import AugmentPolicy
from training.config import TrainConfig
from training.data.dataset import Pair, SegmentationDataset
from training.data.loader import Sample, SampleIndex, TransformedDataset

RESULTS = Path(__file__).parent / "results" / "channels.json"
BANDS, SIDE, CROP, CHIPS, ROUNDS, WORKERS = 13, 512, 256, 24, 3, 2
TARGET = 60  # chips a second, uncompressed
LAYOUTS: dict[str, dict[str, Any]] = {
    "pixels": {"interleave": "pixel"},
    "planes": {"interleave": "band"},
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 256},
    "deflate": {"compress": "deflate", "predictor": 2, "tiled": True, "blockxsize": 256, "blockysize": 256},
}
RULE = InputRule(
    rule="native",
    channels=tuple(f"b{band}" for band in range(1, BANDS + 1)),
    dtype="uint16",
    scaling=Scaling(kind="window", low=(0,) * BANDS, high=(4000,) * BANDS),
)


def main() -> None:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    # Before the workers are forked: in a child of a process whose cv2 has threads, the call never returns.
    cv2.setNumThreads(1)
    rates = {}
    for name, options in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_chips(Path(folder), options)
            with multiprocessing.Pool(WORKERS, start_worker, (folder,)) as pool:
                pool.map(read, range(CHIPS))  # imports, and the page cache
                seconds = []
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    pool.map(read, range(4 * CHIPS), chunksize=4)
                    seconds.append(time.perf_counter() - start)
        rates[name] = round(4 * CHIPS / min(seconds), 1)
        print(f"{name:8}{rates[name]:8.1f} chips/s" + f" (target {TARGET})" * (name != "deflate"))
    RESULTS.write_text(json.dumps(host_info() | {"workers": WORKERS, "chips_per_second": rates}, indent=2) + "\n")


def write_chips(folder: Path, options: dict[str, Any]) -> None:
    """Chips that compress as scenes do: smooth, with noise."""
    for index in range(CHIPS):
        random = np.random.default_rng(index)
        coarse = random.integers(0, 4000, (16, 16, BANDS)).astype(np.float32)
        bands = [cv2.resize(coarse[:, :, band], (SIDE, SIDE)) for band in range(BANDS)]
        values = (np.stack(bands) + random.normal(0, 20, (BANDS, SIDE, SIDE))).clip(0, 10_000).astype(np.uint16)
        with rasterio.open(
            folder / f"{index}.tif",
            "w",
            "GTiff",
            SIDE,
            SIDE,
            BANDS,
            dtype="uint16",
            photometric="MINISBLACK",
            **options,
        ) as raster:
            raster.write(values)
        Image.fromarray((coarse[:, :, 0] > 2000).astype(np.uint8)).resize((SIDE, SIDE)).save(folder / f"{index}.png")


def start_worker(folder: str) -> None:
    global dataset
    pairs = [Pair(str(index), Path(folder, f"{index}.tif"), Path(folder, f"{index}.png")) for index in range(CHIPS)]
    config = TrainConfig(rotate=20, vflip=0.5, scale=(0.7, 1.4))
    dataset = TransformedDataset(SegmentationDataset(pairs, [], input=RULE), RULE, AugmentPolicy(config, (CROP, CROP)))


def read(number: int) -> None:
    sample = dataset[SampleIndex(number % CHIPS, number)]
    assert isinstance(sample, Sample) and sample.image.shape == (CROP, CROP, BANDS), sample


dataset: TransformedDataset

if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main()
