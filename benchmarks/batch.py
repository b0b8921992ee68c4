"""Batch prediction: `python -m benchmarks.batch [rate] [many] [scene]`, some parts or all (an hour).

rate   images per second of an FCN-8s on a ResNet-18 with random weights, from 320x240 JPEGs to PNGs: of the bare engine
       (Segmenter.segment on decoded images), of `maskserve predict` in one process, and on Ray with two actors of a core
       each; measured in turn, round by round. Loading the engine and starting Ray are not counted
many   100,000 small images through a network that takes a millisecond: resident memory at each quarter, a kill -9 in the
       middle, and whether every image has one row and one mask in the end
scene  a raster of 4096, 8192 and 16384 pixels a side: peak resident memory and seconds

Writes benchmarks/results/batch.json. Linux only: it reads a process's memory from /proc.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.usage import print_help_if_requested
from maskserve.predict.backends import BundleBackend
from maskserve.predict.config import PredictConfig
from maskserve.predict.image_task import ImageTask
from maskserve.predict.inputs import InputImage, find_images
from maskserve.predict.manifest import JsonlManifest, ManifestRow
from maskserve.predict.outputs import FolderStore
from maskserve.predict.runner import run_on_threads
from models.engines.host_info import host_info
from models.imaging.decode import RGB, decode_image

RESULTS = Path(__file__).parent / "results" / "batch.json"
ROOT = Path(__file__).parent.parent
IMAGES, SIZE, ROUNDS = 192, (240, 320), 4  # images per round; SIZE is (height, width) in pixels
MANY_COUNT, SMALL_SIZE, FOLDERS = 100_000, (48, 64), 100
RASTER_SIDES = (4096, 8192, 16384)


def main(parts: list[str]) -> None:
    known = {"rate": measure_rate, "many": measure_many, "scene": measure_raster}
    for name in parts or list(known):
        with tempfile.TemporaryDirectory() as folder:
            measured = {"machine": host_info(), **known[name](Path(folder))}
        print(json.dumps(measured, indent=2), flush=True)
        result = {**(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}), name: measured}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure_rate(folder: Path) -> dict[str, Any]:
    """Images per second of the three ways, and their ratios."""
    write_images(folder / "images", IMAGES, SIZE)
    config = PredictConfig(str(write_random_bundle(folder / "bundle")), str(folder / "unused"))
    images = list(find_images([str(folder / "images")]))
    decoded = [decode_image(image.root.read(image.name)) for image in images]
    task, backend = ImageTask(config), BundleBackend(config, single=True)
    ways: dict[str, Callable[[Path], float]] = {
        "engine": lambda output: engine_rate(backend, decoded),
        "one process": lambda output: threads_rate(task, images, output),
        "ray": lambda output: ray_rate(config, images, output),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            rate = ways[name](folder / f"{name} {turn}")
            if turn:  # the first is the warm-up
                rates[name].append(round(rate, 2))
            print(f"round {turn}  {name:12} {rate:7.2f} images/s", flush=True)
    ratios = {
        "one process to engine": median_ratio(rates["one process"], rates["engine"]),
        "ray to one process": median_ratio(rates["ray"], rates["one process"]),
    }
    return {"images": IMAGES, "size": f"{SIZE[1]}x{SIZE[0]}", "images_per_second": rates, "ratios": ratios}


def engine_rate(backend: BundleBackend, images: list[RGB]) -> float:
    """The engine alone, one image at a time on all cores."""

    def segment_all() -> float:
        start = time.perf_counter()
        for image in images:
            backend.segmenter.segment(image)
        return len(images) / (time.perf_counter() - start)

    return backend.run_on_engine(segment_all)


def threads_rate(task: ImageTask, images: list[InputImage], output: Path) -> float:
    """A run in one process, from image files to masks and manifest."""
    store = FolderStore(output)
    task.output = store
    manifest = JsonlManifest(store, {"benchmark": True})

    def save_row(row: ManifestRow) -> None:
        manifest.append(row)
        store.publish(str(row.mask))

    start = time.perf_counter()
    run_on_threads(task, images, save_row, task.threads, threading.Event())
    return len(images) / (time.perf_counter() - start)


def ray_rate(config: PredictConfig, images: list[InputImage], output: Path) -> float:
    """The same on Ray, while both actors work."""
    from maskserve.predict.ray_runner import BLOCK_SIZE, run_on_ray

    store = FolderStore(output)
    manifest = JsonlManifest(store, {"benchmark": True})
    times: list[float] = []

    def save_row(row: ManifestRow) -> None:
        manifest.append(row)
        store.publish(str(row.mask))
        times.append(time.perf_counter())

    run_on_ray(replace(config, output=str(output)), images, save_row, "local", 2)
    # Rows arrive in blocks. In a long run, neither the start, until both actors are loaded, nor the end, when one of them has
    # no image left, would matter.
    first, last = 2 * BLOCK_SIZE, len(times) - BLOCK_SIZE
    return (last - first) / (times[last - 1] - times[first - 1])


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def measure_many(folder: Path) -> dict[str, Any]:
    """Segment them with the command, kill it in the middle, resume, and count rows and masks."""
    from tests.service.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder / "bundle")
    write_images(folder / "images", MANY_COUNT, SMALL_SIZE)
    command = [
        sys.executable,
        "-m",
        "maskserve",
        "predict",
        "bundle",
        "images",
        "--out",
        "masks",
        "--engine",
        "openvino",
    ]
    manifest = folder / "masks" / "manifest.jsonl"
    marks = [round(MANY_COUNT * fraction) for fraction in (0.02, 0.25, 0.5)]
    first, start = run_and_watch(command, folder, manifest, marks, kill=True), time.perf_counter()
    killed_at = len(manifest.read_text().splitlines()) - 1
    marks = [round(MANY_COUNT * fraction) for fraction in (0.55, 0.75, 0.9)]
    second = run_and_watch(command, folder, manifest, marks, kill=False)
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[1:]]
    paths = {row["path"] for row in rows}
    masks = {path.relative_to(folder / "masks").as_posix() for path in (folder / "masks").rglob("*.png")}
    return {
        "images": MANY_COUNT,
        "resident_mb": {**first, **second},
        "killed_at": killed_at,
        "images_per_second": round((MANY_COUNT - killed_at) / seconds, 1),
        "rows": len(rows),
        "images_with_a_row": len(paths),
        "masks_without_a_row": len(masks - {row["mask"] for row in rows}),
        "rows_without_a_mask": len({row["mask"] for row in rows} - masks),
        "leftover_files": sorted(path.name for path in (folder / "masks").iterdir() if path.name.startswith(".")),
    }


def run_and_watch(command: list[str], folder: Path, manifest: Path, marks: list[int], kill: bool) -> dict[str, int]:
    """Run a command to its end, or kill it at the last mark. Returns: its memory in MB at each mark, a number of rows."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    memory: dict[str, int] = {}
    try:
        for mark in marks:
            while count_rows(manifest) < mark and child.poll() is None:
                time.sleep(0.2)
            memory[f"{mark:,}"] = resident_mb(child.pid)
        if kill:
            child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        child.kill()
    return memory


def count_rows(manifest: Path) -> int:
    """The estimated number of rows, from the length of the first hundred: reading 40 MB five times a second would take too long."""
    if not manifest.exists():
        return 0
    head = manifest.open("rb").readlines(30_000)[1:]
    return round(manifest.stat().st_size / (sum(map(len, head)) / len(head))) if head else 0


def resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")] if status.exists() else []
    return round(int(lines[0].split()[1]) * 1024 / 1e6) if lines else 0


def measure_raster(folder: Path) -> dict[str, Any]:
    """Peak memory and seconds of the command for rasters of 1, 4 and 16 times the pixels."""
    from tests.service.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder / "small")
    measured: dict[str, Any] = {}
    for name, bundle in {
        "small": folder / "small",
        "FCN-8s, ResNet-18": write_random_bundle(folder / "resnet18"),
    }.items():
        for side in RASTER_SIDES:
            raster = folder / f"{side}.tif"
            if not raster.exists():
                write_raster(raster, side)
            start = time.perf_counter()
            arguments = ["maskserve", "predict", str(bundle), str(raster), "--out", f"{name} {side}"]
            code = "import sys, runpy\nfrom benchmarks.memory import memory_mb\nsys.argv = sys.argv[1:]\n"
            code += "try: runpy.run_module('maskserve', run_name='__main__')\nfinally: print(memory_mb('VmHWM'))"
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments, "--format", "geotiff"],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            peak = int(done.stdout.split()[-1])
            figures = {"peak_mb": peak, "seconds": round(time.perf_counter() - start, 1)}
            measured[f"{name}, {side}x{side}"] = figures
            print(name, side, figures, flush=True)
    return measured


def write_random_bundle(target: Path) -> Path:
    """A bundle of an FCN-8s on a ResNet-18 with random weights, as `maskserve export` writes it."""
    import torch

    from models import architectures
    from models.bundle import SPEC_FILE, bundle_writer
    from models.spec import BundleSpec, ClassInfo, InputRule, default_rgb
    from tests.fixtures_networks import calibrate_norms
    from training.data.synthetic import generate_scene
    from training.freezing.onnx_export import export_network

    torch.manual_seed(0)
    net = architectures.build("fcn", 21, encoder="resnet18").eval()
    calibrate_norms(
        net, torch.from_numpy(np.stack([generate_scene(np.random.default_rng(seed), SIZE)[0] for seed in range(4)]))
    )
    classes = [ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(21)]
    spec = BundleSpec(
        name="resnet18", classes=classes, input=InputRule(rule="native"), architecture=net.architecture,
        parity={"openvino": {"f32": 1.0, "bf16": 1.0}},
    )  # fmt: skip
    with bundle_writer(target) as new:
        export_network(net, new)
        (new / SPEC_FILE).write_text(spec.model_dump_json())
    return target


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of up to 50 different scenes: generating one takes longer than segmenting it."""
    from training.data.synthetic import generate_scene

    images = [Image.fromarray(generate_scene(np.random.default_rng(seed), size)[0]) for seed in range(min(count, 50))]
    for index in range(count):
        file = folder / f"{index % FOLDERS:02}" / f"{index:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        images[index % len(images)].save(file, quality=90)


def write_raster(file: Path, side: int) -> None:
    import cv2
    import rasterio
    from rasterio.transform import from_origin

    rows, coarse = 512, np.random.default_rng(0).integers(0, 256, (side // 64, side // 64, 3), dtype=np.uint8)
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(
        file, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(5e5, 5e6, 10, 10), **layout,
    ) as raster:  # fmt: skip
        for top in range(0, side, rows):
            part = cv2.resize(coarse[top // 64 : (top + rows) // 64], (side, rows), interpolation=cv2.INTER_CUBIC)
            raster.write(part.transpose(2, 0, 1), window=rasterio.windows.Window(0, top, side, rows))


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    main(sys.argv[1:])
