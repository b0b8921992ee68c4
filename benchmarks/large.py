"""Images larger than the network's scale: `python -m benchmarks.large BUNDLE DATA [IMAGES]`.

Four measurements of a trained bundle on the test split of its data set, on the CPU, written to
benchmarks/results/large.json:

scales    images enlarged 1, 2, 4 and 8 times: mIoU with the input rules `fit` and `native`
tiles     mosaics of 3 x 3 images at the network's scale: in tiles, compared with untiled
8192      8192 x 8192 pixels in tiles: peak resident memory and seconds, of this bundle and of an FCN-ResNet-50, stride 8
sizes     1,000 images of random sizes: resident memory, with the segmenter's padding and without
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.usage import print_help_if_requested
from models.bundle import SPEC_FILE, Bundle, bundle_writer, open_bundle
from models.engines.host_info import host_info
from models.imaging.decode import Labels
from models.inference.geometry import resize_labels
from models.inference.segmenter import Segmenter, agreement
from models.spec import BundleSpec, ClassInfo, InputRule, default_rgb
from training.data import SegmentationDataset, load_split
from training.metrics.confusion import ConfusionMatrix

SCALES = (1, 2, 4, 8)
MOSAIC_SIDE = 3  # images a side
RESULTS = Path(__file__).parent / "results" / "large.json"


def main(folder: Path, data: Path, count: int) -> None:
    bundle, samples = open_bundle(folder), load_split(data, "test")
    chosen = samples.evenly_spaced_indices(count)
    result: dict[str, Any] = {
        "machine": host_info(), "bundle": bundle.spec.name,
        "input": bundle.spec.input.model_dump(), "images": len(chosen), "scales": measure_scales(bundle, samples, chosen),
        "tiles": measure_tiles(bundle, samples, chosen),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        resnet50 = write_random_resnet50(Path(scratch) / "resnet50")
        bundles = {bundle.spec.name: folder, "FCN-ResNet-50, stride 8": resnet50}
        result["8192"] = {name: run_isolated("huge", path) for name, path in bundles.items()}
    result["sizes"] = {
        "buckets": run_isolated("sizes", folder, "buckets"),
        "none": run_isolated("sizes", folder, "none"),
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def measure_scales(bundle: Bundle, samples: SegmentationDataset, chosen: list[int]) -> dict[str, dict[str, float]]:
    """mIoU by input rule and enlargement; the ground truth is enlarged by nearest neighbor."""
    found: dict[str, dict[str, float]] = {}
    for rule in (bundle.spec.input, InputRule(rule="native")):
        segmenter = Segmenter.load(bundle, precision="f32")
        segmenter.rule = rule
        for scale in SCALES:
            matrix = ConfusionMatrix(len(samples.classes))
            for index in chosen:
                image, target = samples.image(index), samples.labels(index)
                height, width = target.shape[0] * scale, target.shape[1] * scale
                larger = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
                matrix.add(resize_labels(target, (height, width)), segmenter.segment(larger).labels)
            found.setdefault(rule.rule, {})[str(scale)] = round(matrix.miou(), 4)
            print(f"{rule.rule:8} x{scale}  mIoU {matrix.miou():.4f}", flush=True)
    return found


def measure_tiles(bundle: Bundle, samples: SegmentationDataset, chosen: list[int]) -> dict[str, dict[str, float]]:
    """Mosaics at the network's scale, untiled and in tiles of several sizes: mIoU and agreement with untiled labels."""
    segmenter = Segmenter.load(bundle, precision="f32")
    segmenter.rule = InputRule(rule="native")
    each = MOSAIC_SIDE**2
    groups = [chosen[start : start + each] for start in range(0, len(chosen) - each + 1, each)]
    found: dict[str, dict[str, float]] = {}
    untiled: list[Labels] = []
    for tile in (8192, 1024, 768, 512, 384):
        segmenter.tile_size = tile
        matrix, agreements = ConfusionMatrix(len(samples.classes)), []
        for number, group in enumerate(groups):
            labels = segmenter.segment(make_mosaic([samples.image(index) for index in group])).labels
            if tile == 8192:
                untiled.append(labels)
            matrix.add(make_mosaic([samples.labels(index) for index in group]), labels)
            agreements.append(agreement(labels, untiled[number]))
        name = "untiled" if tile == 8192 else f"tiles of {tile}"
        found[name] = {"miou": round(matrix.miou(), 4), "agreement": round(float(np.mean(agreements)), 5)}
        print(f"{name:16} mIoU {matrix.miou():.4f}  agreement {np.mean(agreements):.3%}", flush=True)
    return found


def make_mosaic(parts: list[Any]) -> Any:
    """Join nine images, or nine masks, of one size."""
    return np.vstack([np.hstack(parts[row : row + MOSAIC_SIDE]) for row in range(0, len(parts), MOSAIC_SIDE)])


def run_isolated(task: str, *arguments: str | Path) -> Any:
    """Run benchmarks/memory.py in a separate process, which imports what a service imports, and no torch."""
    command = [sys.executable, "-m", "benchmarks.memory", task, *map(str, arguments)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(task, *arguments, result, flush=True)
    return result


def write_random_resnet50(target: Path) -> Path:
    """Write a bundle of FCN-ResNet-50 at stride 8 with 21 classes; its memory does not depend on its weights."""
    import torch

    from models.architectures import build
    from training.freezing.onnx_export import export_network

    torch.manual_seed(0)
    network = build("fcn", 21, encoder="resnet50", output_stride=8, skips="32s", head="fcn").eval()
    classes = [ClassInfo(name=str(label), rgb=default_rgb(label)) for label in range(21)]
    # A trained one is served in bf16 if the CPU supports it.
    spec = BundleSpec(
        name="resnet50", classes=classes, input=InputRule(rule="native"), architecture=network.architecture,
        parity={"openvino": {"f32": 1.0, "bf16": 1.0}},
    )  # fmt: skip
    with bundle_writer(target) as folder:
        export_network(network, folder)
        (folder / SPEC_FILE).write_text(spec.model_dump_json())
    return target


if __name__ == "__main__":
    print_help_if_requested(__doc__)
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 45)
