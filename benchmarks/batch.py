"""Many images: `python -m benchmarks.batch [rate] [many] [scene]`; each part alone, or all (an hour).

rate   an FCN-8s on a ResNet-18 and random weights, 320x240 JPEGs in, PNGs out: images a second of the bare engine
       (Segmenter.segment over decoded images), of `maskserve predict` in one process, and on Ray with two actors of a
       core each; asked in turn, round by round. What opens an engine or starts Ray is not counted
many   100,000 small images through a network that takes a millisecond: resident memory at each quarter, a kill -9 in the
       middle, and whether all masks and rows are there, each once
scene  a raster of 4096, 8192 and 16384 pixels a side: peak resident memory and seconds

Writes benchmarks/results/batch.json. Linux, whose /proc knows a process's memory.
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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from maskserve.host_info import host_info
from models.imaging.decode import RGB, decode_image

RESULTS = Path(__file__).parent / "results" / "batch.json"
ROOT = Path(__file__).parent.parent
IMAGES, SIZE, ROUNDS = 192, (240, 320), 4  # of a round; SIZE is (height, width) in pixels
MANY_COUNT, SMALL_SIZE, FOLDERS = 100_000, (48, 64), 100
RASTER_SIDES = (4096, 8192, 16384)
QUIET_CONSOLE = Console(quiet=True)


def main(parts: list[str]) -> None:
    known = {"rate": measure_rate, "many": measure_many, "scene": measure_raster}
    for name in parts or list(known):
        with tempfile.TemporaryDirectory() as folder:
            found = {"machine": host_info(), **known[name](Path(folder))}
        print(json.dumps(found, indent=2), flush=True)
        result = {**(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}), name: found}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure_rate(folder: Path) -> dict[str, Any]:
    """Images a second, and the shares that must be reached."""
    from maskserve.predict.backends import BundleBackend
    from maskserve.predict.config import PredictConfig
    from maskserve.predict.image_task import ImageTask
    from maskserve.predict.inputs import find_images

    write_images(folder / "images", IMAGES, SIZE)
    job = PredictConfig(str(write_random_bundle(folder / "bundle")), str(folder / "unused"))
    images = list(find_images([str(folder / "images")]))
    decoded = [decode_image(one.root.read(one.name)) for one in images]
    work = ImageTask(job)
    engine = BundleBackend(job, single=True)
    ways = {
        "engine": lambda place: engine_rate(engine, decoded),
        "one process": lambda place: threads_rate(work, images, place),
        "ray": lambda place: ray_rate(job, images, place),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            speed = ways[name](folder / f"{name} {turn}")
            if turn:  # the first warms up
                found[name].append(round(speed, 2))
            print(f"round {turn}  {name:12} {speed:7.2f} images/s", flush=True)
    shares = {
        "one process of the engine": median_ratio(found["one process"], found["engine"]),
        "ray of one process": median_ratio(found["ray"], found["one process"]),
    }
    return {"images": IMAGES, "size": f"{SIZE[1]}x{SIZE[0]}", "images_s": found, "shares": shares}


def engine_rate(labeller: Any, images: list[RGB]) -> float:
    """The engine alone, an image at a time on all cores."""

    def all_of_them() -> dict[str, Any]:
        began = time.perf_counter()
        for image in images:
            labeller.segmenter.segment(image)
        return {"rate": len(images) / (time.perf_counter() - began)}

    return float(labeller.alone(all_of_them)["rate"])


def threads_rate(work: Any, images: list[Any], place: Path) -> float:
    """The run in one process, from files to files and manifest."""
    from maskserve.predict.manifest import JsonlManifest, ManifestRow
    from maskserve.predict.outputs import FolderStore
    from maskserve.predict.runner import run_on_threads

    work.target = FolderStore(place)
    manifest = JsonlManifest(work.target, {"benchmark": True})

    def took(row: ManifestRow) -> None:
        manifest.append(row)
        work.target.publish(row.mask)

    began = time.perf_counter()
    run_on_threads(work, images, took, work.threads, threading.Event())
    return len(images) / (time.perf_counter() - began)


def ray_rate(job: Any, images: list[Any], place: Path) -> float:
    """The same on Ray, from the first row of each of the two actors on."""
    from dataclasses import replace

    from maskserve.predict.manifest import JsonlManifest, ManifestRow
    from maskserve.predict.outputs import FolderStore
    from maskserve.predict.ray_runner import BLOCK_SIZE, run_on_ray

    target = FolderStore(place)
    manifest = JsonlManifest(target, {"benchmark": True})
    times: list[float] = []

    def took(row: ManifestRow) -> None:
        manifest.append(row)
        target.publish(str(row.mask))
        times.append(time.perf_counter())

    run_on_ray(replace(job, target=str(place)), images, took, "local", 2)
    # Rows come by blocks. Of a long run count neither the beginning, until both actors are open, nor the end, where one of
    # them has nothing left.
    first, last = 2 * BLOCK_SIZE, len(times) - BLOCK_SIZE
    return (last - first) / (times[last - 1] - times[first - 1])


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def measure_many(folder: Path) -> dict[str, Any]:
    """Label them by the command line, kill it in the middle, go on, and count."""
    from tests.service.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder / "bundle")
    write_images(folder / "images", MANY_COUNT, SMALL_SIZE)
    words = [
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
    marks = [round(MANY_COUNT * share) for share in (0.02, 0.25, 0.5)]
    first, began = run_and_watch(words, folder, manifest, marks, kill=True), time.perf_counter()
    killed_at = len(manifest.read_text().splitlines()) - 1
    second = run_and_watch(
        words, folder, manifest, [round(MANY_COUNT * share) for share in (0.55, 0.75, 0.9)], kill=False
    )
    seconds = time.perf_counter() - began
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[1:]]
    paths = {row["path"] for row in rows}
    masks = {path.relative_to(folder / "masks").as_posix() for path in (folder / "masks").rglob("*.png")}
    return {
        "images": MANY_COUNT,
        "resident_mb": {**first, **second},
        "killed_at": killed_at,
        "images_s": round((MANY_COUNT - killed_at) / seconds, 1),
        "rows": len(rows),
        "images_with_a_row": len(paths),
        "masks_without_a_row": len(masks - {row["mask"] for row in rows}),
        "rows_without_a_mask": len({row["mask"] for row in rows} - masks),
        "left_over": sorted(path.name for path in (folder / "masks").iterdir() if path.name.startswith(".")),
    }


def run_and_watch(words: list[str], folder: Path, manifest: Path, marks: list[int], kill: bool) -> dict[str, int]:
    """Run a command until its end, or until the last mark and kill -9; its memory in MB at each mark of rows."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    found: dict[str, int] = {}
    try:
        for mark in marks:
            while count_rows(manifest) < mark and child.poll() is None:
                time.sleep(0.2)
            found[f"{mark:,}"] = resident_mb(child.pid)
        if kill:
            child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        child.kill()
    return found


def count_rows(manifest: Path) -> int:
    """Rows, by the length of the first hundred: counting a file of 40 MB five times a second would be felt."""
    if not manifest.exists():
        return 0
    head = manifest.open("rb").readlines(30_000)[1:]
    return round(manifest.stat().st_size / (sum(map(len, head)) / len(head))) if head else 0


def resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    found = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")] if status.exists() else []
    return round(int(found[0].split()[1]) * 1024 / 1e6) if found else 0


def measure_raster(folder: Path) -> dict[str, Any]:
    """The command line on scenes of 1, 4 and 16 times the pixels."""
    from tests.service.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder / "small")
    found: dict[str, Any] = {}
    for name, bundle in {
        "small": folder / "small",
        "FCN-8s, ResNet-18": write_random_bundle(folder / "resnet18"),
    }.items():
        for side in RASTER_SIDES:
            raster = folder / f"{side}.tif"
            if not raster.exists():
                write_raster(raster, side)
            began = time.perf_counter()
            words = ["-m", "maskserve", "predict", str(bundle), str(raster), "--out", f"{name} {side}"]
            code = "import sys, runpy\nfrom benchmarks.memory import memory_mb\nsys.argv = sys.argv[1:]\n"
            code += "try: runpy.run_module('maskserve', run_name='__main__')\nfinally: print(memory_mb('VmHWM'))"
            done = subprocess.run(
                [sys.executable, "-c", code, *words[1:], "--format", "geotiff"],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            peak = int(done.stdout.split()[-1])
            found[f"{name}, {side}x{side}"] = {"peak_mb": peak, "seconds": round(time.perf_counter() - began, 1)}
            print(name, side, found[f"{name}, {side}x{side}"], flush=True)
    return found


def write_random_bundle(target: Path) -> Path:
    """A bundle of an FCN-8s on a ResNet-18 with random weights, as `maskserve export` would write it."""
    import torch

    from models import architectures
    from models.bundle import SPEC_FILE, bundle_writer
    from models.spec import BundleSpec, ClassInfo, InputRule, default_rgb
    from tests.fixtures_networks import calibrate_norms
    from training.data.synthetic import generate_scene as drawn
    from training.freezing.onnx_export import export_network

    torch.manual_seed(0)
    net = architectures.build("fcn", 21, encoder="resnet18").eval()
    calibrate_norms(net, torch.from_numpy(np.stack([drawn(np.random.default_rng(seed), SIZE)[0] for seed in range(4)])))
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
    """JPEGs of scenes; a few of them, again and again, for drawing takes longer than labelling."""
    from training.data.synthetic import generate_scene as drawn

    images = [Image.fromarray(drawn(np.random.default_rng(seed), size)[0]) for seed in range(min(count, 50))]
    for place in range(count):
        file = folder / f"{place % FOLDERS:02}" / f"{place:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        images[place % len(images)].save(file, quality=90)


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
    main(sys.argv[1:])
