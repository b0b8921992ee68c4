"""Hippocampus of the Medical Segmentation Decathlon: `python -m benchmarks.hippocampus --data FOLDER [KEY=VALUE ...] --minutes 40`.

FOLDER holds `imagesTr`, `labelsTr` and `dataset.json` (Task04_Hippocampus, CC-BY-SA 4.0). Cases whose number is divisible by 4
are the test, the others with a number that leaves 1 divided by 10 validation. Trains by the plan with the given settings,
exports, and evaluates the bundle. The test cases are read only with `--test`.

`--slices` trains a network of images on the axial slices instead, scaled by the mean and deviation of their volume, and measures
the cases that its labels of the slices make up, slice by slice.

Appends a line to benchmarks/results/hippocampus.jsonl: Dice, surface Dice at 1 mm and HD95 by class, mean over the cases, with
intervals.
"""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.training_run import benchmark_training, make_parser, split_by_number
from models.bundle import open_bundle
from models.imaging.decode import Labels
from models.inference.segmenter import Segmenter
from models.readers import read_sample
from models.readers.statistics import sample_statistics
from models.sample import Values
from models.spec import ClassInfo
from training.metrics.results import EvaluationMetrics
from training.metrics.volumes import compute_volume_metrics, measure_case

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


CLASSES = ("background", "Anterior", "Posterior")
# Deviations from the mean of the volume, which are mapped to 0..255; a setting of a network of slices.
SLICE_RANGE = "-4,8"


def case_names(data: Path) -> list[str]:
    """The names of the cases. Exits if there are none."""
    names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "labelsTr").glob("[!.]*.nii.gz"))
    if not names:
        sys.exit(f"{data} has no labelsTr/*.nii.gz; --data names the folder of Task04_Hippocampus.")
    return names


def case_split(name: str) -> str:
    return split_by_number(int(re.sub(r"[^0-9]", "", name)), SPLITS)


def write_split(data: Path, folder: Path) -> Path:
    """A data set of links to `data`, with a table of the split above. Returns its folder."""
    names = case_names(data)
    folder.mkdir(parents=True)
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (folder / name).symlink_to((data / name).resolve())
    rows = [f"{name},{case_split(name)}" for name in names]
    (folder / "splits.csv").write_text("\n".join(["record,split", *rows]) + "\n")
    return folder


def read_case(data: Path, name: str) -> tuple[Values, Labels, tuple[float, ...]]:
    """Values D x H x W x 1 in deviations from their mean, labels uint8 D x H x W, and the spacing along D, H, W in mm."""
    image, target = (
        read_sample((data / folder / f"{name}.nii.gz").read_bytes(), axes="DHW") for folder in ("imagesTr", "labelsTr")
    )
    assert image.spacing is not None  # of a NIfTI
    mean, deviation = sample_statistics(image.values)
    scaled = ((image.values - mean) / deviation).astype(np.float32)
    return scaled, target.values[..., 0].astype(np.uint8), image.spacing.values


def write_slices(data: Path, folder: Path, splits: tuple[str, ...]) -> Path:
    """A data set of images: the axial slices of the cases of `splits`. Returns its folder."""
    for name in case_names(data):
        if (split := case_split(name)) not in splits:
            continue
        values, labels, _ = read_case(data, name)
        images, masks = (folder / kind / split for kind in ("images", "masks"))
        for target in (images, masks):
            target.mkdir(parents=True, exist_ok=True)
        for index, (plane, mask) in enumerate(zip(values, labels, strict=True)):
            np.save(images / f"{name}_{index:03}.npy", plane)
            Image.fromarray(mask).save(masks / f"{name}_{index:03}.png")
    (folder / "classes.csv").write_text("name\n" + "\n".join(CLASSES) + "\n")
    return folder


def predict_slices(bundle: Path, data: Path, split: str) -> Iterator[tuple[str, Labels, Labels, tuple[float, ...]]]:
    """Of each case of a split: its name, the target, the labels slice by slice, uint8 D x H x W, and the spacing."""
    segmenter = Segmenter.load(open_bundle(bundle))
    for name in case_names(data):
        if case_split(name) == split:
            values, target, spacing = read_case(data, name)
            yield name, target, np.stack([segmenter.segment(plane).labels for plane in values]), spacing


def slice_figures(bundle: Path, data: Path, split: str) -> dict[str, Any]:
    """As `case_figures`, of a network of slices."""
    cases = {
        name: measure_case(target, labels, len(CLASSES), spacing, TOLERANCE)
        for name, target, labels, spacing in predict_slices(bundle, data, split)
    }
    infos = [ClassInfo(name=name, rgb=(0, 0, 0)) for name in CLASSES]
    volumes = compute_volume_metrics(list(cases.values()), list(cases), infos, TOLERANCE)
    means = {name: float(np.nanmean(case.dice[1:])) for name, case in cases.items()}
    return {"cases": len(cases), "network": "of slices", **volumes.model_dump(mode="json"), "worst": worst_cases(means)}


def case_figures(metrics: EvaluationMetrics) -> dict[str, Any]:
    """The metrics by case, and the worst cases."""
    volumes = metrics.volumes
    assert volumes is not None  # of volumes
    means = {
        row.name: float(np.mean([dice for label, dice, *_ in row.volumes if label and dice is not None]))
        for row in metrics.per_image
    }
    return {
        "cases": metrics.images,
        "precision": metrics.bundle.precision,
        **volumes.model_dump(mode="json"),
        "worst": worst_cases(means),
    }


def worst_cases(dice: dict[str, float]) -> dict[str, float]:
    """The five cases of the lowest mean Dice, with it."""
    return {name: round(dice[name], 4) for name in sorted(dice, key=lambda name: dice[name])[:5]}


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
    parser.add_argument("--slices", action="store_true", help="train a network of images on the axial slices")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data names the folder of Task04_Hippocampus")

    def report(split: str, metrics: EvaluationMetrics) -> dict[str, Any]:
        if arguments.slices:
            figures = slice_figures(arguments.out / "run" / "bundle", arguments.data, split)
        else:
            figures = case_figures(metrics)
        print_figures(split, figures, arguments.minutes)
        return figures

    if arguments.slices:
        arguments.settings = ["scaling=fixed", f"sample_range={SLICE_RANGE}", *arguments.settings]
        splits = ("train", "val", "test") if arguments.test else ("train", "val")
        return benchmark_training(arguments, RESULTS, partial(write_slices, splits=splits), report)
    benchmark_training(arguments, RESULTS, write_split, report, evaluate_options=["--tolerance-mm", f"{TOLERANCE:g}"])


if __name__ == "__main__":
    main()
