"""Hippocampus of the Medical Segmentation Decathlon: `python -m benchmarks.hippocampus --data FOLDER [KEY=VALUE ...] --minutes 40`.

FOLDER holds `imagesTr`, `labelsTr` and `dataset.json` (Task04_Hippocampus, CC-BY-SA 4.0). Cases whose number is divisible by 4
are the test, the others with a number that leaves 1 divided by 10 validation. Trains by the plan with the given settings,
exports, and evaluates the bundle. The test cases are read only with `--test`.

Appends a line to benchmarks/results/hippocampus.jsonl: Dice, surface Dice at 1 mm and HD95 by class, mean over the cases, with
intervals.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.engines.host_info import host_info
from training.metrics.results import METRICS_FILE, EvaluationMetrics
from training.run_folder import read_run_metadata

RESULTS = Path(__file__).parent / "results" / "hippocampus.jsonl"
TEST, VALIDATION = (4, 0), (10, 1)  # divisor of the case's number, and the remainder
TOLERANCE = 1.0  # mm, of the surface Dice, as in the Decathlon
TARGETS = {40.0: 0.870}  # mean foreground Dice of the test, by minutes on two cores

# Mean foreground Dice on other splits of this task.
PUBLISHED = {
    "nnU-Net, 7 h on an H100, mean over folds": 0.8915,
    "Med-NCA (Kalkhof et al. 2023, arXiv 2302.03473)": 0.886,
    "its U-Net": 0.858,
}


def split_of(number: int) -> str:
    """The split of a case, by its number."""
    for name, (divisor, remainder) in (("test", TEST), ("val", VALIDATION)):
        if number % divisor == remainder:
            return name
    return "train"


def write_split(data: Path, folder: Path) -> Path:
    """A data set of links to `data`, with a table of the split above. Returns its folder."""
    names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "labelsTr").glob("[!.]*.nii.gz"))
    if not names:
        sys.exit(f"{data} has no labelsTr/*.nii.gz; --data names the folder of Task04_Hippocampus.")
    folder.mkdir(parents=True)
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (folder / name).symlink_to((data / name).resolve())
    rows = [f"{name},{split_of(int(re.sub(r'[^0-9]', '', name)))}" for name in names]
    (folder / "splits.csv").write_text("\n".join(["record,split", *rows]) + "\n")
    return folder


def run_maskserve(*arguments: str) -> float:
    """Run a subcommand; returns the seconds that it took."""
    start = time.perf_counter()
    if subprocess.run([sys.executable, "-m", "maskserve", *arguments]).returncode:
        sys.exit(f"failed: maskserve {' '.join(arguments)}")
    return round(time.perf_counter() - start, 1)


def case_figures(metrics: EvaluationMetrics) -> dict[str, Any]:
    """The metrics by case, and the worst cases."""
    volumes = metrics.volumes
    assert volumes is not None  # of volumes
    means = {
        row.name: np.mean([dice for label, dice, *_ in row.volumes if label and dice is not None])
        for row in metrics.per_image
    }
    worst = sorted(means, key=lambda name: float(means[name]))[:5]
    return {
        "cases": metrics.images,
        "precision": metrics.bundle.precision,
        **volumes.model_dump(mode="json"),
        "worst": {name: round(float(means[name]), 4) for name in worst},
    }


def benchmark(arguments: argparse.Namespace) -> None:
    """Train, export and evaluate; add a line to the results."""
    run = arguments.out / "run"
    data = write_split(arguments.data, arguments.out / "hippocampus")
    overrides = [f"minutes={arguments.minutes:g}", f"seed={arguments.seed}", "tensorboard=false", *arguments.settings]
    seconds = {"train": run_maskserve("train", str(data), *overrides, "--out", str(run))}
    seconds["export"] = run_maskserve("export", str(run))
    end = read_run_metadata(run).end
    row: dict[str, Any] = {
        "settings": arguments.settings,
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "note": arguments.note,
        "epochs": end and round(end.epochs, 2),
        "cores": len(os.sched_getaffinity(0)),
        "machine": host_info(),
        "plan": (run / "plan.yaml").read_text().splitlines() if (run / "plan.yaml").exists() else None,
    }
    for split in ("val", "test") if arguments.test else ("val",):
        out = run / f"evaluation-{split}"
        options = ["--split", split, "--no-speed", "--tolerance-mm", f"{TOLERANCE:g}", "--out", str(out)]
        seconds[split] = run_maskserve("evaluate", str(run / "bundle"), str(data), *options)
        row[split] = case_figures(EvaluationMetrics.load(out / METRICS_FILE))
        print_figures(split, row[split], arguments.minutes)
    row["seconds"] = seconds
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(f"{RESULTS}: one line added. Bundle: {run / 'bundle'}", flush=True)


def print_figures(split: str, row: dict[str, Any], minutes: float) -> None:
    """The figures of a split beside the published ones."""
    target = f"; at least {TARGETS[minutes]} was asked for" if split == "test" and minutes in TARGETS else ""
    print(f"\n{split}, {row['cases']} cases: mean foreground Dice {row['dice']:.4f} {row['dice_interval']}{target}")
    for name, found in row["per_class"].items():
        dice, surface, hd95 = found["dice"], found["surface_dice"]["mean"], found["hd95"]["mean"]
        print(
            f"  {name:12} Dice {dice['mean']:.4f} (median {dice['median']:.4f}), surface {surface:.4f}, HD95 {hd95:.2f} mm"
        )
    print(f"  worst: {', '.join(f'{name} {value:.3f}' for name, value in row['worst'].items())}")
    for title, value in PUBLISHED.items():
        print(f"  {title}: {value}")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that override the plan")
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the run, which stays (default: a temporary one)")
    parser.add_argument("--test", action="store_true", help="also evaluate the test cases")
    parser.add_argument("--note", default="", help="stored with the result")
    arguments = parser.parse_args()
    if arguments.out:
        benchmark(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments.out = Path(folder) / "out"
            benchmark(arguments)


if __name__ == "__main__":
    main()
