"""What padding an image to multiples of a divisor changes: `python -m benchmarks.padding [PART ...] [--minutes M] ...`.

The parts, all by default; each is replaced in benchmarks/results/padding.json:

shapes        drawn shapes: an FCN-8s on ResNet-18, trained for M minutes, by divisor: mIoU on test images stretched to random
              proportions, so that no side is a multiple of anything, and the labels that differ from those without padding
camvid        the same on CamVid
torchvision   an imported torchvision network with random weights: labels that differ from those of torchvision's own code,
              which does not pad
cost          200 images of 200 sizes on OpenVINO: processor time, growth of the resident memory, and sizes of the canvas

Only `cost` depends on other load: run it on a quiet machine. Divisor 1 is no padding.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.memory import memory_mb
from models.bundle import SPEC_FILE, bundle_writer, open_bundle
from models.engines.host_info import host_info
from models.imaging.decode import RGB, Labels
from models.inference.geometry import canvas_size, network_input_size, resize_image, resize_labels
from models.inference.segmenter import Segmenter, agreement
from models.spec import BundleSpec, ClassInfo, InputRule, default_rgb
from training.data import SegmentationDataset, load_split

DIVISORS = (1, 32, 64)
RESULTS = Path(__file__).parent / "results" / "padding.json"
CAMVID = Path(__file__).parents[2] / "shared" / "data" / "camvid"
SETTINGS = ["encoder=resnet18", "skips=8s", "optimizer=adamw", "lr=0.002", "weight_decay=0.05", "warmup=30", "batch=8",
            "workers=0", "tensorboard=false", "precision=f32", "validate_every=100", "scale=0.8,1.25"]  # fmt: skip
TORCHVISION = "lraspp_mobilenet_v3_large"
NUM_ODD_SIZES, NUM_MIXED_SIZES = 20, 200
COST_SIDES = (96, 320)  # pixels, of the mixed sizes


def measure_trained(
    folder: Path, data: Path, settings: list[str], minutes: float, images: int, side: int
) -> dict[str, Any]:
    """Train on `data` into `folder`, and measure the best network, in PyTorch and float32, on stretched test images."""
    from training.config_io import load_config
    from training.engine.model_factory import load_network, make_torch_segmenter
    from training.run_folder import read_run_metadata
    from training.train import train

    run = train(data, folder / "run", load_config(None, [*SETTINGS, *settings, f"minutes={minutes}"]))
    network, end = load_network(run).eval(), read_run_metadata(run).end
    samples = load_split(data, "test")
    chosen = [stretched(samples, index, side) for index in samples.evenly_spaced_indices(images)]
    labels = {
        divisor: [
            make_torch_segmenter(network, InputRule(rule="native", divisor=divisor)).segment(image).labels
            for image, _ in chosen
        ]
        for divisor in DIVISORS
    }
    return {
        "minutes": minutes, "epochs": end and round(end.epochs, 1), "images": len(chosen), "long_side": side,
        "divisors": {
            str(divisor): {
                "miou": miou(found, [target for _, target in chosen], len(samples.classes)),
                **differences(found, labels[1]),
            }
            for divisor, found in labels.items()
        },
    }  # fmt: skip


def stretched(samples: SegmentationDataset, index: int, side: int) -> tuple[RGB, Labels]:
    """An image and its mask, brought to `side` pixels and stretched by up to a fifth in each direction."""
    image, target = samples.image(index), samples.labels(index)
    fitted = network_input_size((image.shape[0], image.shape[1]), InputRule(rule="fit", side=side))
    factors = np.random.default_rng(index).uniform(0.8, 1.2, 2)
    size = tuple(int(length * factor) | 1 for length, factor in zip(fitted, factors, strict=True))  # odd
    return resize_image(image, (size[0], size[1])), resize_labels(target, (size[0], size[1]))


def miou(found: list[Labels], targets: list[Labels], classes: int) -> float:
    """The mIoU over all images."""
    from training.metrics.confusion import ConfusionMatrix

    matrix = ConfusionMatrix(classes)
    for labels, target in zip(found, targets, strict=True):
        matrix.add(target, labels)
    return round(matrix.miou(), 4)


def differences(found: list[Labels], expected: list[Labels]) -> dict[str, float]:
    """The fraction of labels that differ: the mean over the images, and the worst image."""
    each = [1 - agreement(one, other) for one, other in zip(found, expected, strict=True)]
    return {"different": round(float(np.mean(each)), 5), "worst": round(max(each), 5)}


def measure_torchvision(folder: Path) -> dict[str, Any]:
    """The imported bundle on OpenVINO in float32, by divisor, against torchvision's own code on the same pixels."""
    import torch
    import torchvision

    from training.import_model import import_model

    torch.manual_seed(0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    random, images = np.random.default_rng(0), []
    for _ in range(NUM_ODD_SIZES):
        height, width = (int(side) | 1 for side in random.integers(33, 320, 2))
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        images.append(np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8))
    inputs = [((torch.from_numpy(image).float() / 255 - mean) / std).permute(2, 0, 1)[None] for image in images]
    network = torchvision.models.get_model(TORCHVISION, weights=None, weights_backbone=None).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # takes the mean of all batches
    with torch.no_grad():  # statistics of the batch norms, without which one class covers every image
        network(torch.cat([torch.nn.functional.interpolate(each, (160, 160)) for each in inputs]))
    network.eval()
    with torch.inference_mode():
        expected = [network(each)["out"][0].argmax(0).numpy().astype(np.uint8) for each in inputs]
    weights = folder / "weights.pth"
    torch.save(network.state_dict(), weights)
    bundle = open_bundle(import_model(f"torchvision/{TORCHVISION}", None, folder / "bundle", weights))
    segmenter = Segmenter.load(bundle, "openvino", "f32", "cpu")
    found: dict[str, Any] = {
        "network": TORCHVISION,
        "images": NUM_ODD_SIZES,
        "classes": len(np.unique(np.concatenate([labels.ravel() for labels in expected]))),
        "divisors": {},
    }
    for divisor in DIVISORS:
        segmenter.rule = InputRule(rule="native", divisor=divisor)
        labels = [segmenter.segment(image).labels for image in images]
        found["divisors"][str(divisor)] = differences(labels, expected)
    return found


def measure_costs(folder: Path) -> dict[str, Any]:
    """Each divisor in a process of its own, twice in turn; the smaller processor time and the larger memory of the two."""
    bundle = write_random_fcn(folder / "fcn")
    rounds = [{divisor: run_cost(bundle, divisor) for divisor in DIVISORS} for _ in range(2)]
    found: dict[str, Any] = {
        "network": "FCN-8s, ResNet-18",
        "images": NUM_MIXED_SIZES,
        "sides": COST_SIDES,
        "divisors": {},
    }
    for divisor in DIVISORS:
        each = [one[divisor] for one in rounds]
        found["divisors"][str(divisor)] = {
            "canvases": each[0]["canvases"],
            "cpu_seconds": min(one["cpu_seconds"] for one in each),
            "median_ms": min(one["median_ms"] for one in each),
            "memory_mb": max(one["memory_mb"] for one in each),
        }
    reference = found["divisors"]["64"]["cpu_seconds"]
    for entry in found["divisors"].values():
        entry["ratio"] = round(entry["cpu_seconds"] / reference, 3)
    return found


def run_cost(bundle: Path, divisor: int) -> dict[str, Any]:
    """`measure_cost` in a new process."""
    command = [sys.executable, "-m", "benchmarks.padding", "--worker", str(bundle), str(divisor)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_cost(folder: Path, divisor: int) -> dict[str, Any]:
    """Segment 200 images, each of another size: of every image the first time that its size occurs, and then once more."""
    segmenter = Segmenter.load(open_bundle(folder), "openvino", "f32", "cpu", threads=1)
    segmenter.rule = rule = InputRule(rule="native", divisor=divisor)
    sizes = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(*COST_SIDES, (NUM_MIXED_SIZES, 2))]
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    before, start, again = memory_mb("VmRSS"), time.process_time(), []
    for image in images:
        segmenter.segment(image)
    cpu_seconds, memory = time.process_time() - start, memory_mb("VmRSS") - before
    for image in images:
        started = time.perf_counter()
        segmenter.segment(image)
        again.append(1000 * (time.perf_counter() - started))
    return {
        "canvases": len({canvas_size(size, rule) for size in sizes}),
        "cpu_seconds": round(cpu_seconds, 3),
        "median_ms": round(float(np.median(again)), 2),
        "memory_mb": memory,
    }


def write_random_fcn(target: Path) -> Path:
    """Write a bundle of FCN-8s on ResNet-18 with 6 classes; its cost does not depend on its weights."""
    import torch

    from models.architectures import build
    from training.freezing.onnx_export import export_network

    torch.manual_seed(0)
    network = build("fcn", 6, encoder="resnet18", skips="8s").eval()
    classes = [ClassInfo(name=str(label), rgb=default_rgb(label)) for label in range(6)]
    spec = BundleSpec(
        name="fcn", classes=classes, input=InputRule(rule="native"), architecture=network.architecture,
        parity={"openvino": {"f32": 1.0}},
    )  # fmt: skip
    with bundle_writer(target) as folder:
        export_network(network, folder)
        (folder / SPEC_FILE).write_text(spec.model_dump_json())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="shapes, camvid, torchvision, cost")
    parser.add_argument("--minutes", type=float, default=5, help="of each training")
    parser.add_argument("--camvid", type=Path, default=CAMVID, help="folder of CamVid in SegNet's layout")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep data sets, runs and bundles there")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure_cost(Path(options.worker[0]), int(options.worker[1]))))
        return
    known: dict[str, Callable[[Path], dict[str, Any]]] = {
        "shapes": lambda folder: measure_shapes(folder, options.minutes),
        "camvid": lambda folder: measure_trained(
            folder, options.camvid, ["input=fit", "side=480", "crop=256,320"], options.minutes, images=50, side=480
        ),
        "torchvision": measure_torchvision,
        "cost": measure_costs,
    }
    if unknown := set(options.parts) - set(known):
        parser.error(f"no part {', '.join(unknown)}; the parts are {', '.join(known)}")
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.parts or known:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(options.keep or scratch) / name
            folder.mkdir(parents=True)
            result[name] = known[name](folder) | {"machine": host_info()}
        print(name, json.dumps(result[name]), flush=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure_shapes(folder: Path, minutes: float) -> dict[str, Any]:
    """The data set of the demo."""
    from training.data.synthetic import generate_dataset

    generate_dataset(folder / "shapes", 0, {"train": 600, "val": 30, "test": 60})
    return measure_trained(folder, folder / "shapes", ["input=native", "crop=128,160"], minutes, images=60, side=192)


if __name__ == "__main__":
    main()
