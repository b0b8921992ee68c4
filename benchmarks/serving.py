"""How long a picture takes in process and over HTTP: `python -m benchmarks.serving BUNDLE [PICTURE]`.

Both ways are measured in turn, picture by picture in one run, on a 640x480 JPEG, and so share whatever else the machine
does. Prints medians and writes them, with the CPU's name, to benchmarks/results/serving.json.
"""

import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from maskserve.machine import machine
from models.bundle import open_bundle
from models.image import decode, read
from models.outputs import OUTPUTS
from models.outputs.options import Options
from models.segmenter import Segmenter
from service.launch import running
from training.data.shapes import scene

ROUNDS, WARM = 60, 10


def main(folder: Path, source: Path | None) -> None:
    bundle = open_bundle(folder)
    picture = read(source) if source else scene(np.random.default_rng(1))[0]
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((640, 480)).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()
    segmenter = Segmenter.load(bundle)
    pixels = decode(jpeg)
    with running(folder) as url, httpx.Client(trust_env=False) as client:
        ways: dict[str, Callable[[], object]] = {
            "segment, in process": lambda: segmenter.segment(pixels),
            "decode + segment + encode, in process": lambda: OUTPUTS["png"].encode(
                segmenter.segment(decode(jpeg)), bundle.spec, Options()
            ),
            "over HTTP": lambda: client.post(f"{url}/v1/segment", content=jpeg).raise_for_status(),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(WARM + ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn >= WARM:
                    times[name].append((time.perf_counter() - start) * 1000)
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{value:8.2f} ms  {name}")
    result = {**machine(), "bundle": bundle.spec.name}
    result |= {"input": bundle.spec.input.model_dump(), "jpeg_bytes": len(jpeg), "median_ms": medians}
    target = Path(__file__).parent / "results" / "serving.json"
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
