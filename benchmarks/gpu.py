"""Everything that only a GPU can show, in one command: `make gpu-check`, or `python -m benchmarks.gpu [--camvid FOLDER]`.

tests         the tests that need a GPU
parity        augmentation on the GPU against the CPU: fraction of equal labels and levels
training      FCN-ResNet-50 against torchvision's loop: images/s, fraction of the step that the GPU is busy, fraction of bf16 peak
camvid        the plan alone for 7 and for 15 minutes: mIoU of the test split
engine        the torch engine with CUDA graphs against eager, at batch 1 and 16, on the network of the shortest CamVid run

Results: benchmarks/results/gpu-NAME.json, NAME from the GPU. Without one, `--smallest` runs every line on the CPU in about a
minute, with drawn images. That is only a rehearsal, so that no line is run for the first time on a GPU: its figures say nothing
and are not saved.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plan import core_subset, read_metrics, start_run
from benchmarks.training import (
    SIZE,
    UnnormalizedNetwork,
    make_product_step,
    make_reference_step,
    profile_step,
    synchronize,
    time_steps,
)
from models.analysis.complexity import count_gflops
from models.architectures import build
from models.bundle import open_bundle
from models.engines import torch_engine
from models.engines.host_info import host_info
from training.augment import AugmentPolicy, batched, pad_and_stack
from training.config import TrainConfig
from training.data import load_split
from training.data.synthetic import generate_dataset, generate_scene
from training.engine.model_factory import architecture_options
from training.engine.runtime import choose_precision

ROOT = Path(__file__).parent.parent
GPU_TESTS = ("tests/models/engines/test_torch_engine.py", "tests/training/augment/test_parity.py")
PASSES = 3  # forward, and backward to inputs and to weights, each about the FLOP of forward
MIN_EQUAL = 0.999  # of labels, and of levels to within one


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    device: str
    crop: tuple[int, int]  # (height, width)
    batch: int
    encoder: str
    rounds: int
    steps: int  # per round
    matrix: int  # side of the matrices whose product measures the peak
    minutes: tuple[float, ...]
    settings: tuple[str, ...]  # of the CamVid training
    test_options: tuple[str, ...]


FULL = Scale("cuda", (360, 480), 16, "resnet50", 6, 10, 8192, (7, 15), (), ())
SMALLEST_SETTINGS = ("encoder=tu-lcnet_035", "batch=4", "workers=0", "crop=32,64", "epochs=1")
SMALLEST = Scale("cpu", (64, 64), 2, "resnet18", 1, 1, 256, (0.5,), SMALLEST_SETTINGS, ("-k", "gpu"))


def run_tests(scale: Scale) -> dict[str, Any]:
    """The tests that need a GPU, which are skipped without one."""
    command = [sys.executable, "-m", "pytest", "-n", "0", *GPU_TESTS, *scale.test_options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"passed": done.returncode == 0, "summary": (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]}


def check_parity(scale: Scale) -> dict[str, Any]:
    """The same batch and parameters on the CPU and on the device: equal labels, and levels that differ by at most one."""
    config = TrainConfig(rotate=45, vflip=0.5, elastic=0.05, hue=0.1, blur=2, noise=20)
    policy, items = AugmentPolicy(config, scale.crop), []
    for seed in range(scale.batch):
        image, labels = generate_scene(np.random.default_rng(seed))
        items.append((image, labels, policy.sample_params(labels.shape, labels, np.random.default_rng(seed))))
    images, masks, params = pad_and_stack(items, scale.crop)
    expected = batched.augment_batch(images, masks, params, scale.crop)
    moved = type(params)(*(part.to(scale.device) for part in params))
    found = batched.augment_batch(images.to(scale.device), masks.to(scale.device), moved, scale.crop)
    levels = (expected[0].int() - found[0].cpu().int()).abs() <= 1
    equal = {
        "labels": float((expected[1] == found[1].cpu()).float().mean()),
        "levels": float(levels.float().mean()),
    }
    return {**equal, "passed": min(equal.values()) >= MIN_EQUAL}


def measure_peak(scale: Scale) -> float:
    """TFLOP/s of a product of two bf16 matrices: what this machine reaches, not what its data sheet says."""
    matrix = torch.randn(scale.matrix, scale.matrix, dtype=torch.bfloat16, device=scale.device)
    seconds = []
    for _ in range(scale.rounds + 2):
        synchronize(scale.device)
        start = time.perf_counter()
        for _ in range(scale.steps):
            torch.mm(matrix, matrix)
        synchronize(scale.device)
        seconds.append((time.perf_counter() - start) / scale.steps)
    return 2 * scale.matrix**3 / statistics.median(seconds[2:]) / 1e12


def measure_training(scale: Scale) -> dict[str, Any]:
    """Our step against torchvision's, alternating; of ours, how busy the device is and its fraction of the peak."""
    torchvision_like = {"output_stride": 8, "skips": "32s", "aux": True} if scale.encoder == "resnet50" else {}
    config = TrainConfig.model_validate(
        {"encoder": scale.encoder, "crop": scale.crop, "batch": scale.batch, "lr": 0.01, **torchvision_like}
    )
    precision = choose_precision(config, scale.device)
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(Path(folder) / "shapes", counts={"train": 4 * scale.batch, "val": 1}, size=SIZE)
        samples = load_split(Path(folder) / "shapes", "train")
        ours, reference = (build(config.architecture, 6, **architecture_options(config)) for _ in range(2))
        gflops = PASSES * scale.batch * count_gflops(ours, scale.crop)
        loops = {
            "torchvision": make_reference_step(UnnormalizedNetwork(reference), samples, config, scale.device),
            "ours": make_product_step(ours, samples, config, scale.device, precision),
        }
        seconds = time_steps(loops, scale.rounds, scale.steps, scale.device)
        profile = profile_step(loops["ours"], scale.device, scale.steps)
    peak, reached = measure_peak(scale), gflops / 1e3 / seconds["ours"]
    return {
        "images_per_second": {name: round(scale.batch / value, 2) for name, value in seconds.items()},
        "times_torchvision": round(seconds["torchvision"] / seconds["ours"], 2),
        "precision": precision,
        "device_busy": profile["busy"],
        "peak_tflops": round(peak, 2),
        "fraction_of_peak": round(reached / peak, 3),
        "operations": profile["fraction_of_wall"],
    }


def train_camvid(scale: Scale, data: Path, folder: Path) -> dict[str, Any]:
    """The plan alone, for some minutes each, exported and measured on the test split."""
    rows = {}
    for minutes in scale.minutes:
        run = folder / f"{minutes:g}-minutes"
        process = start_run(data, run, [f"minutes={minutes}", *scale.settings], core_subset(0, 1))
        if process.wait():
            sys.exit((folder / f"{run.name}.log").read_text()[-2000:])
        rows[f"{minutes:g} minutes"] = read_metrics(run)
    return rows


def measure_engine(scale: Scale, bundle: Path) -> dict[str, Any]:
    """Milliseconds of a batch of 1 and of 16 with CUDA graphs and eager, alternating; without a GPU both are eager."""
    opened, rows = open_bundle(bundle), {}
    precision = "bf16" if "bf16" in torch_engine.precisions(opened, scale.device) else "f32"
    runs = {
        name: torch_engine.load(opened, scale.device, precision, 0, cuda_graphs=name == "graphs")
        for name in ("eager", "graphs")
    }
    for batch in (1, 16):
        images = np.random.default_rng(0).integers(0, 256, (batch, *scale.crop, 3), dtype=np.uint8)
        steps = {name: partial(run, images) for name, run in runs.items()}
        milliseconds = {
            name: 1e3 * value for name, value in time_steps(steps, scale.rounds, scale.steps, "cpu").items()
        }
        equal = float((runs["graphs"](images)[0] == runs["eager"](images)[0]).mean())
        rows[f"batch {batch}"] = {
            **{f"{name}_ms": round(value, 3) for name, value in milliseconds.items()},
            "times_eager": round(milliseconds["eager"] / milliseconds["graphs"], 2),
            "equal_labels": equal,
        }
    return {"precision": precision, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--camvid", type=Path, default=ROOT.parent / "shared" / "data" / "camvid", help="its folder")
    parser.add_argument("--smallest", action="store_true", help="rehearse on the CPU in about a minute; saves nothing")
    arguments = parser.parse_args()
    scale = SMALLEST if arguments.smallest else FULL
    if scale.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "PyTorch finds no GPU here. `python -m benchmarks.gpu --smallest` rehearses on the CPU; it measures nothing."
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch), arguments.camvid
        if arguments.smallest:
            data = folder / "shapes"
            generate_dataset(data, counts={"train": 8, "val": 2, "test": 2}, size=(48, 64))
        if not data.is_dir():
            sys.exit(f"{data} is no folder; name that of CamVid with --camvid.")
        results: dict[str, Any] = {"machine": host_info(), "torch": torch.__version__}
        results["tests"] = run_tests(scale)
        results["parity"] = check_parity(scale)
        results["training"] = measure_training(scale)
        results["camvid"] = train_camvid(scale, data, folder)
        results["engine"] = measure_engine(scale, folder / f"{scale.minutes[0]:g}-minutes" / "bundle")
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.smallest:
        print("A rehearsal on the CPU: nothing was measured, and nothing is saved.")
    else:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        target = Path(__file__).parent / "results" / f"gpu-{name}.json"
        target.write_text(f"{text}\n")
        print(target)
    if not (results["tests"]["passed"] and results["parity"]["passed"]):
        sys.exit("The tests or the parity of the augmentation failed.")


if __name__ == "__main__":
    main()
