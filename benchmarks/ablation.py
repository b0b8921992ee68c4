"""The effect of each training setting: `python -m benchmarks.ablation CAMVID [--hold-out 0006R0] [--rows NAME ...] [--seeds 0 1]`.

Each row is the base with some settings changed, trained for the same number of epochs; the result is the validation mIoU at
the end, in percent. CamVid's validation images belong to a sequence that is also in the training split, so a setting that
memorizes looks good there: `--hold-out PREFIX` validates on the training images of one sequence instead, and does not
train on them. The test split is not used. Rows that are already in benchmarks/results/ablation.json are not run again.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from models.engines.host_info import host_info
from training.config_io import load_config
from training.run_folder import METRICS_CSV
from training.train import train

BASE_OVERRIDES = [
    "encoder=tu-regnetx_004", "optimizer=adamw", "lr=0.01", "weight_decay=0.05", "warmup=100", "batch=8", "crop=256,320",
    "scale=0.5,1.5", "color_jitter=0.3", "class_weights=enet", "tensorboard=false",
]  # fmt: skip

ROWS = {
    "base": [],
    "no class weights": ["class_weights=none"],
    "median class weights": ["class_weights=median"],
    "ce+dice, no class weights": ["class_weights=none", "loss=ce+dice"],
    "ohem": ["loss=ohem"],
    "focal": ["loss=focal"],
    "lr 0.005": ["lr=0.005"],
    "lr 0.02": ["lr=0.02"],
    "averaged weights": ["ema=0.99"],
    "balanced crops": ["class_balanced_crops=0.5"],
    "label smoothing 0.1": ["label_smoothing=0.1"],
    "weight decay 0.2": ["weight_decay=0.2"],
    "color 0.6, hue, blur, noise": ["color_jitter=0.6", "hue=0.05", "blur=1.5", "noise=10"],
    "scale 0.5 to 2": ["scale=0.5,2"],
    "rotation by 10 degrees": ["rotate=10"],
    "output stride 16": ["output_stride=16"],
    "32s, no skips": ["skips=32s"],
    "auxiliary head": ["aux=true"],
    "learned upsampling": ["upsampling=learned"],
    "ASPP": ["head=aspp"],
    "smp/Linknet": ["architecture=smp/Linknet"],
    "smp/FPN": ["architecture=smp/FPN"],
}
RESULTS = Path(__file__).parent / "results" / "ablation.json"


def make_held_out_split(data: Path, prefix: str, target: Path) -> Path:
    """CamVid as links, with the training images whose names start with `prefix` as the validation split."""
    for image in sorted((data / "train").iterdir()):
        split = "val" if image.name.startswith(prefix) else "train"
        mask = data / "trainannot" / f"{image.stem}.png"
        for file, folder in ((image, target / split), (mask, target / f"{split}annot")):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file.name).symlink_to(file.resolve())
    return target


def train_and_score(data: Path, overrides: list[str], seed: int, epochs: int, folder: Path) -> dict[str, float]:
    """Train, and return the last row of metrics.csv."""
    config = load_config(
        None, [*BASE_OVERRIDES, f"epochs={epochs}", f"validate_every={epochs}", *overrides, f"seed={seed}"]
    )
    run = train(data, folder / "run", config, console=Console(stderr=True))
    with (run / METRICS_CSV).open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    return {name: round(float(last[name]), 4) for name in ("miou", "pixel_accuracy", "minutes")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--hold-out", help="prefix of the training images' names to validate on")
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=14)
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = (
            make_held_out_split(arguments.data, arguments.hold_out, Path(folder) / "data")
            if arguments.hold_out
            else arguments.data
        )
        name = f"{f'held out {arguments.hold_out}' if arguments.hold_out else 'validation split'}, {arguments.epochs} epochs"
        table = results.setdefault(
            name, {"machine": host_info(), "torch": torch.__version__, "base": BASE_OVERRIDES, "rows": {}}
        )
        for seed in arguments.seeds:
            for row in arguments.rows:
                scores = table["rows"].setdefault(row, {})
                if str(seed) not in scores:
                    with tempfile.TemporaryDirectory() as scratch:
                        scores[str(seed)] = train_and_score(data, ROWS[row], seed, arguments.epochs, Path(scratch))
                    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
                print(f"{100 * scores[str(seed)]['miou']:6.2f}  {row}, seed {seed}")


if __name__ == "__main__":
    main()
