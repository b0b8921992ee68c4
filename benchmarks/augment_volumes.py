"""CPU seconds to augment a patch of 128 x 128 x 128 voxels, on one core: `python -m benchmarks.augment_volumes`.

plan   patches as training samples them, with the settings that the plan chooses for MR: mean, and 95% of them
all    every change at once, with a rotation
each   one change alone, less the time of a copy

Each patch is cut from a volume of 160 x 160 x 160 voxels, and takes the way of a worker: `training.augment.volumes.augment_volume`.

Prints a table and writes benchmarks/results/augment_volumes.json.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.usage import print_help_if_requested
from models.engines.host_info import host_info
from models.imaging.decode import Labels
from models.readers.statistics import sample_statistics
from models.sample import Values
from models.spec import InputRule, Scaling
from training.augment import volumes
from training.augment.volumes import augment_volume
from training.config import TrainConfig

RESULTS = Path(__file__).parent / "results" / "augment_volumes.json"
CROP, SIDE, PATCHES, ROUNDS = (128, 128, 128), 160, 100, 5
RULE = InputRule(
    rule="native", axes="DHW", channels=("mr",), dtype="float32", scaling=Scaling(kind="zscore", low=(), high=())
)
PLAN = {
    "rotate": 30, "scale": (0.7, 1.4), "noise": 15, "blur": 1, "color_jitter": 0.25, "gamma": 0.4, "low_resolution": 0.5,
    "bias_field": 0.2, "class_balanced_crops": 0.33, "flip_axes": "W",
}  # fmt: skip
NOTHING = {
    **dict.fromkeys(("rotate", "elastic", "blur", "noise", "color_jitter", "gamma", "bias_field", "class_balanced_crops"), 0),
    "scale": (1, 1), "low_resolution": 1,
}  # fmt: skip
CHANGES = ("rotate", "scale", "noise", "blur", "color_jitter", "gamma", "low_resolution", "bias_field")
PROBABILITIES = [name for name in vars(volumes) if name.startswith("P_")]


def main() -> None:
    print_help_if_requested(__doc__)
    torch.set_num_threads(1)
    values, labels = draw_volume()
    seconds = measure(values, labels, TrainConfig(**PLAN), PATCHES)  # type: ignore[arg-type]
    found = {"plan": {"mean": round(float(np.mean(seconds)), 3), "p95": round(float(np.percentile(seconds, 95)), 3)}}
    for name in PROBABILITIES:
        setattr(volumes, name, 0.0 if name == "P_INVERTED_GAMMA" else 1.0)
    alone = {
        name: median_seconds(values, labels, NOTHING if name == "copy" else NOTHING | {name: PLAN[name]})
        for name in ("copy", *CHANGES)
    }
    found["all"] = {
        "without elastic": median_seconds(values, labels, PLAN),
        "with elastic": median_seconds(values, labels, PLAN | {"elastic": 0.05}),
    }
    found["each"] = {"copy": alone["copy"]} | {name: round(alone[name] - alone["copy"], 3) for name in CHANGES}
    for name, figures in found.items():
        print(f"{name:6}" + ", ".join(f"{kind} {value:.3f} s" for kind, value in figures.items()), flush=True)
    RESULTS.write_text(
        json.dumps(host_info() | {"torch": torch.__version__, "crop": CROP, "cpu_seconds": found}, indent=2) + "\n"
    )


def draw_volume() -> tuple[Values, Labels]:
    """A volume of smooth noise and its labels, of three classes."""
    coarse = torch.randn((1, 1, 20, 20, 20), generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (SIDE,) * 3, mode="trilinear")[0, 0].numpy()
    return (smooth * 100 + 400)[..., None].astype(np.float32), np.digitize(smooth, (0.5, 1.0)).astype(np.uint8)


def measure(values: Values, labels: Labels, config: TrainConfig, count: int) -> list[float]:
    """CPU seconds of each patch."""
    statistics, seconds = sample_statistics(values), list[float]()
    for seed in range(count + 1):
        start = time.process_time()
        augment_volume(values, labels, np.random.default_rng(seed), CROP, config, RULE, statistics)
        seconds.append(time.process_time() - start)
    return seconds[1:]  # the first one fills caches


def median_seconds(values: Values, labels: Labels, settings: dict[str, object]) -> float:
    return round(float(np.median(measure(values, labels, TrainConfig(**settings), ROUNDS))), 3)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
