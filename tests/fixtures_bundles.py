"""A small bundle with random weights of a fixed seed, exported like a trained one."""

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console

from models import architectures
from models.bundle import SPEC_FILE, Bundle, bundle_writer
from models.inference.segmenter import Segmenter
from models.spec import BundleSpec, ClassInfo, InputRule, default_rgb
from training.freezing.onnx_export import export_network

INPUT_SIDE = 192  # long side of the network's input, in pixels
CLASSES = 6
ENCODER = "tu-test_resnet"  # of the tiny bundle: 0.4 million parameters, which compile in a moment

# Overrides for a training that takes seconds, and a console without output.
QUICK_TRAIN_OVERRIDES = [
    "epochs=2", "batch=8", "workers=0", "optimizer=adamw", "lr=0.002", "warmup=4", "crop=96,128", f"encoder={ENCODER}",
    "tensorboard=false",
]  # fmt: skip
QUIET_CONSOLE = Console(quiet=True)


def tiny_bundle(folder: Path) -> Path:
    """Write the bundle into `folder/tiny` and return that path; takes some seconds."""
    from tests.fixtures_networks import calibrate_norms  # which imports this module

    torch.manual_seed(1)
    network = architectures.build("fcn", CLASSES, encoder=ENCODER)
    calibrate_norms(network, torch.from_numpy(np.stack([synthetic_image(128, 160, seed) for seed in range(4)])))
    spec = BundleSpec(
        name="tiny",
        classes=[ClassInfo(name=f"class {label}", rgb=default_rgb(label)) for label in range(CLASSES)],
        input=InputRule(rule="fit", side=INPUT_SIDE),
        architecture=network.architecture,
    )
    with bundle_writer(folder / "tiny") as new:
        export_network(network, new)
        (new / SPEC_FILE).write_text(spec.model_dump_json(indent=2))
        _write_probe(new, spec)
    return folder / "tiny"


def synthetic_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with soft shapes, RGB uint8 H x W x 3. Unlike noise, its labels do not change by rounding."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def _write_probe(new: Path, spec: BundleSpec) -> None:
    probes = new / "probes"
    probes.mkdir()
    image = synthetic_image(120, 160)
    labels = Segmenter.load(Bundle(new, spec, ""), precision="f32").segment(image).labels
    Image.fromarray(image).save(probes / "0.png")
    Image.fromarray(labels).save(probes / "0.labels.png")
