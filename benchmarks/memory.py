"""Memory of a bundle's Segmenter in this process: `python -m benchmarks.memory TASK BUNDLE [PADDING|SLICES [SPACING]]`.

huge     an image of 8192 x 8192 in tiles: seconds, and resident megabytes before and at the peak
sizes    resident megabytes after each hundred of 1,000 images of random sizes; PADDING is `buckets`, as the Segmenter
         pads, or `none`
volume   a volume of 512 x 512 x SLICES voxels (600) of SPACING mm (the network's), as the readers give it, float32, in windows:
         seconds, and resident megabytes before, with the volume, and at the peak

Prints JSON for `benchmarks/large.py`. Linux only, because /proc provides the peak.
"""

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.usage import print_help_if_requested
from models.bundle import open_bundle
from models.imaging.decode import RGB
from models.inference.segmenter import Segmenter
from models.inference.volumes import segment_volume
from models.sample import Sample
from models.spec import InputRule, Spacing

LARGE_SIDE = 8192  # pixels a side
VOLUME_SLICE = (512, 512)
IMAGE_COUNT, MAX_SIDE = 1000, 640  # random images, and their longest side in pixels


def measure_large_image(folder: Path) -> dict[str, float]:
    segmenter = Segmenter.load(open_bundle(folder))
    segmenter.rule = InputRule(rule="native")
    opened = memory_mb("VmRSS")
    image = draw_image(LARGE_SIDE, LARGE_SIDE)
    start = time.perf_counter()
    assert segmenter.segment(image).labels.shape == (LARGE_SIDE, LARGE_SIDE)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "opened_mb": opened, "peak_mb": memory_mb("VmHWM")}


def measure_random_sizes(folder: Path, padding: str) -> list[int]:
    segmenter = Segmenter.load(open_bundle(folder), "openvino", threads=1)
    segmenter.rule = InputRule(rule="native")
    random, found = np.random.default_rng(0), [memory_mb("VmRSS")]
    for count in range(1, IMAGE_COUNT + 1):
        height, width = random.integers(32, MAX_SIDE, 2).tolist()
        image = np.zeros((height, width, 3), np.uint8)
        if padding == "buckets":
            segmenter.segment(image)
        else:
            segmenter.run(image[None])
        if count % 100 == 0:
            found.append(memory_mb("VmRSS"))
    return found


def measure_volume(folder: Path, slices: str = "600", spacing: str = "") -> dict[str, float]:
    segmenter = Segmenter.load(open_bundle(folder))
    opened = memory_mb("VmRSS")
    values = np.empty((int(slices), *VOLUME_SLICE, len(segmenter.rule.channels)), segmenter.rule.dtype)
    coarse = np.random.default_rng(0).integers(0, 1000, (len(values) // 32 + 2, 16, 16), dtype=np.int16)
    for index, plane in enumerate(values):
        plane[...] = cv2.resize(coarse[index // 32], VOLUME_SLICE[::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    stated = Spacing(values=(float(spacing),) * 3, unit="mm") if spacing else segmenter.rule.spacing
    sample = Sample(values, "DHW", segmenter.rule.channels, stated)
    read = memory_mb("VmRSS")
    start = time.perf_counter()
    assert segment_volume(segmenter, sample).labels.shape == values.shape[:3]
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "opened_mb": opened, "read_mb": read, "peak_mb": memory_mb("VmHWM")}


def memory_mb(field: str) -> int:
    """Resident megabytes of this process: `VmRSS` now, `VmHWM` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6)


def draw_image(height: int, width: int) -> RGB:
    """An image with soft shapes, made without copies, because its memory would count as the Segmenter's."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 128, width // 128, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


TASKS = {"huge": measure_large_image, "sizes": measure_random_sizes, "volume": measure_volume}

if __name__ == "__main__":
    print_help_if_requested(__doc__)
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    task, bundle = TASKS[sys.argv[1]], Path(sys.argv[2])
    print(json.dumps(task(bundle, *sys.argv[3:])))  # type: ignore[operator]
