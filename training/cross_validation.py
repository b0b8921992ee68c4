"""Cross-validation: `maskserve train FOLDER --folds` trains on each table that `maskserve data split --folds` wrote.

Finds and checks the tables, and after the trainings writes `folds.json`: the validation metrics of each fold at its best
checkpoint, their mean and their standard deviation. The checkpoint is chosen on the same images, so the figures are a little
higher than on images that chose nothing.
"""

import csv
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from models.atomic_write import write_atomically
from models.console import Console, name_text
from models.errors import DataError, RunError
from training.run_folder import METRICS_CSV, read_run_metadata

SUMMARY_FILE = "folds.json"
MIN_FOLDS = 2
COURSE_COLUMNS = (
    "epoch",
    "step",
    "lr",
    "loss",
    "images_per_second",
    "minutes",
)  # of metrics.csv; the others are metrics


def find_fold_tables(folder: Path) -> list[Path]:
    """The tables fold0.tsv, fold1.tsv and so on of a folder.

    Raises: DataError if there are fewer than two, one is missing, or an image is in the val split of two of them.
    """
    advice = f"write them with `maskserve data split DATA {folder} --folds 5`."
    tables = {
        int(match[1]): file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"fold(\d+)\.tsv", file.name))
    }
    if len(tables) < MIN_FOLDS:
        found = "is no folder" if not folder.is_dir() else f"holds {len(tables)} fold table{'s' * (len(tables) != 1)}"
        raise DataError(f"{folder} {found}, but --folds needs fold0.tsv, fold1.tsv and so on; {advice}")
    if missing := [number for number in range(max(tables)) if number not in tables]:
        raise DataError(f"{folder / f'fold{missing[0]}.tsv'} is missing, but there is fold{max(tables)}.tsv; {advice}")
    ordered = [tables[number] for number in range(len(tables))]
    held_out: dict[str, Path] = {}
    for table in ordered:
        for image in validation_images(table):
            if held_out.setdefault(image, table) != table:
                raise DataError(
                    f"{image} is in val of {held_out[image]} and of {table}, but is to be validated once; {advice}"
                )
    return ordered


def find_fold_runs(folder: Path) -> list[Path]:
    """The runs of a cross-validation whose folder this is, in order; none for any other folder. Raises: RunError."""
    if not (folder / SUMMARY_FILE).is_file():
        return []
    try:
        return [folder / fold["run"] for fold in json.loads((folder / SUMMARY_FILE).read_bytes())["folds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / SUMMARY_FILE} cannot be read ({error}); name the runs one by one.") from error


def validation_images(table: Path) -> list[str]:
    """The images of the val split of a table. Raises: DataError if it cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            return [row["image"] for row in csv.DictReader(stream, delimiter="\t") if row["split"] == "val"]
    except (OSError, KeyError) as error:
        raise DataError(f"{table} is no fold table ({error}); expected columns split, image, mask.") from error


def best_validation(run: Path) -> dict[str, float | None]:
    """The metrics of the validation that chose the best checkpoint of a finished run. Raises: RunError."""
    end = read_run_metadata(run).end
    file = run / METRICS_CSV
    if end is None or not file.is_file():
        raise RunError(f"{run} is not finished; continue with --resume.")
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [{key: _number(cell) for key, cell in row.items()} for row in csv.DictReader(stream)]
    best = max(rows, key=lambda row: row[end.monitor] or 0.0)  # the first of equal ones
    return {key: value for key, value in best.items() if key not in COURSE_COLUMNS}


def _number(cell: str) -> float | None:
    """A cell's number; None for an empty cell, such as the IoU of an absent class."""
    return None if cell == "" or math.isnan(float(cell)) else float(cell)


def summarise_folds(runs: list[Path]) -> dict[str, Any]:
    """The metrics of each fold, their mean and standard deviation (n - 1), over the folds that have the metric."""
    end = read_run_metadata(runs[0]).end
    folds = [best_validation(run) for run in runs]
    values = {name: [value for fold in folds if (value := fold.get(name)) is not None] for name in folds[0]}
    return {
        "monitor": end.monitor if end else "miou",
        "mean": {name: round(statistics.fmean(known), 6) if known else None for name, known in values.items()},
        "sd": {name: round(statistics.stdev(known), 6) if len(known) > 1 else None for name, known in values.items()},
        "folds": [{"run": run.name, **fold} for run, fold in zip(runs, folds, strict=True)],
    }


def write_summary(runs: list[Path], folder: Path, console: Console) -> None:
    """Write `folds.json` into `folder`, and print it as a table. Raises: RunError, OSError."""
    summary = summarise_folds(runs)
    write_atomically(folder / SUMMARY_FILE, f"{json.dumps(summary, indent=2)}\n".encode())
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(f"validation of {len(runs)} folds")
    for title in ("mean", "SD", *(run.name for run in runs)):
        table.add_column(title, justify="right")
    for name, mean in summary["mean"].items():
        cells = [mean, summary["sd"][name], *(fold[name] for fold in summary["folds"])]
        table.add_row(name_text(name), *("-" if value is None else f"{value:.3f}" for value in cells))
    console.print(table)
    console.print(
        f"Checkpoints chosen by {summary['monitor']} on the same images. {folder / SUMMARY_FILE}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
