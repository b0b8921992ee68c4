"""Hippocampus of the Medical Segmentation Decathlon: `python -m benchmarks.hippocampus --data FOLDER [KEY=VALUE ...] --minutes 40`.

FOLDER holds `imagesTr`, `labelsTr` and `dataset.json` (Task04_Hippocampus, CC-BY-SA 4.0). Cases whose number is divisible by 4
are the test, the others with a number that leaves 1 divided by 10 validation. Trains by the plan with the given settings,
exports, and evaluates the bundle. The test cases are read only with `--test`.

Appends a line to benchmarks/results/hippocampus.jsonl: Dice, surface Dice at 1 mm and HD95 by class, mean over the cases, with
intervals.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training_run import benchmark_training, make_parser, split_by_number
from training.metrics.results import EvaluationMetrics

RESULTS = Path(__file__).parent / "results" / "hippocampus.jsonl"
SPLITS = {"test": (4, 0), "val": (10, 1)}  # divisor of the case's number, and the remainder
TOLERANCE = 1.0  # mm, of the surface Dice, as in the Decathlon
TARGETS = {40.0: 0.870}  # mean foreground Dice of the test, by minutes on two cores

# Mean foreground Dice on other splits of this task.
PUBLISHED = {
    "nnU-Net, 7 h on an H100, mean over folds": 0.8915,
    "Med-NCA (Kalkhof et al. 2023, arXiv 2302.03473)": 0.886,
    "its U-Net": 0.858,
}


def write_split(data: Path, folder: Path) -> Path:
    """A data set of links to `data`, with a table of the split above. Returns its folder."""
    names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "labelsTr").glob("[!.]*.nii.gz"))
    if not names:
        sys.exit(f"{data} has no labelsTr/*.nii.gz; --data names the folder of Task04_Hippocampus.")
    folder.mkdir(parents=True)
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (folder / name).symlink_to((data / name).resolve())
    rows = [f"{name},{split_by_number(int(re.sub(r'[^0-9]', '', name)), SPLITS)}" for name in names]
    (folder / "splits.csv").write_text("\n".join(["record,split", *rows]) + "\n")
    return folder


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
    parser = make_parser(__doc__, 40, "Task04_Hippocampus", "cases")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data names the folder of Task04_Hippocampus")

    def report(split: str, metrics: EvaluationMetrics) -> dict[str, Any]:
        figures = case_figures(metrics)
        print_figures(split, figures, arguments.minutes)
        return figures

    benchmark_training(arguments, RESULTS, write_split, report, evaluate_options=["--tolerance-mm", f"{TOLERANCE:g}"])


if __name__ == "__main__":
    main()
