"""What each part of the family buys and costs, from scratch: `python -m benchmarks.heads [EPOCHS]`.

Every variant of `fcn` on a ResNet-18, and FCN-AlexNet, is trained on the same drawn pictures by the same settings,
frozen, and its bundle measured on the test split. The bundles are then timed beside each other, picture by picture in
one run. Prints a table and writes benchmarks/results/heads.json. Six epochs take a quarter of an hour on two cores.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.serving import cpu_name
from models.architectures.measure import gflop, parameters, receptive_field
from models.bundle import open_bundle
from models.segmenter import Segmenter
from training.config import load_config
from training.data import load
from training.data.shapes import draw
from training.evaluate import evaluate
from training.export import export
from training.network import load_network
from training.train import train

VARIANTS = {
    "FCN-32s": ["skips=32s"],
    "FCN-16s": ["skips=16s"],
    "FCN-8s": [],
    "FCN-8s, 1x1 head": ["head=linear"],
    "FCN-8s, learned upsampling": ["upsampling=learned"],
    "FCN-8s, auxiliary head": ["aux=true"],
    "FCN-8s, Xavier": ["init=xavier"],
    "FCN-32s, stride 16": ["skips=32s", "output_stride=16"],
    "FCN-32s, stride 8": ["skips=32s", "output_stride=8"],
    "FCN-D6": ["head=d6"],
    "ASPP": ["head=aspp"],
    "ASPP, separable": ["head=aspp", "separable=true"],
    "PSP": ["head=psp"],
    "FCN-AlexNet, 32s": ["encoder=alexnet", "head=linear", "skips=32s", "lr=0.0003"],
}
SETTINGS = ["batch=16", "optimizer=adamw", "lr=0.002", "weight_decay=0.05", "warmup=30", "scale=0.8,1.25"]
COUNTS = {"train": 400, "val": 30, "test": 60}
ROUNDS, WARM = 30, 5


def main(epochs: int) -> None:
    console, silent = Console(), Console(quiet=True)
    found: dict[str, dict[str, Any]] = {}
    segmenters = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shapes"
        draw(data, counts=COUNTS)
        for place, (name, words) in enumerate(VARIANTS.items()):
            begun = time.perf_counter()
            config = load_config(None, [*SETTINGS, f"epochs={epochs}", *words])
            run = train(data, Path(folder) / str(place), config, console=silent)
            bundle, network = export(run, console=silent), load_network(run)
            metrics = evaluate(bundle, data, "test", console=silent)
            found[name] = {
                "settings": words,
                "test_miou": round(metrics["miou"], 4),
                "million_parameters": round(parameters(network) / 1e6, 2),
                "gflop": round(gflop(network, load(data, "test").picture(0).shape[:2]), 2),
                "receptive_field": receptive_field(network),
                "parity": open_bundle(bundle).spec.parity,
            }
            segmenters[name] = Segmenter.load(open_bundle(bundle), precision="f32")
            console.print(f"{name}: {metrics['miou']:.3f} in {time.perf_counter() - begun:.0f} s", highlight=False)
        picture = load(data, "test").picture(0)
        times: dict[str, list[float]] = {name: [] for name in segmenters}
        for turn in range(WARM + ROUNDS):
            for name, segmenter in segmenters.items():
                begun = time.perf_counter()
                segmenter.segment(picture)
                if turn >= WARM:
                    times[name].append(time.perf_counter() - begun)
    usual = statistics.median(times["FCN-8s"])
    for name, row in found.items():
        row["time_to_fcn_8s"] = round(statistics.median(times[name]) / usual, 2)
        console.print(
            f"{name:28} mIoU {row['test_miou']:.3f}  {row['million_parameters']:6.2f} M  {row['gflop']:7.2f} GFLOP  "
            f"x{row['time_to_fcn_8s']:.2f} of FCN-8s's time",
            highlight=False,
        )
    result = {"cpu": cpu_name(), "cores": os.cpu_count(), "epochs": epochs, "pictures": COUNTS, "variants": found}
    target = Path(__file__).parent / "results" / "heads.json"
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
