"""A training on a real data set whose test split stays closed: train by the plan, export, evaluate, and keep the figures.

Used by `ludb.py` and `hippocampus.py`, which say what the data set is and which figures they keep.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.engines.host_info import host_info
from training.metrics.results import METRICS_FILE, EvaluationMetrics
from training.run_folder import read_run_metadata

Residues = Mapping[str, tuple[int, int]]  # by split: a divisor of the sample's number, and the remainder


def split_by_number(number: int, residues: Residues) -> str:
    """The split of a sample, by its number; the first one that fits, else train."""
    return next((name for name, (divisor, rest) in residues.items() if number % divisor == rest), "train")


def make_parser(description: str | None, minutes: float, data: str, test: str) -> argparse.ArgumentParser:
    """The options of such a benchmark. `data`, `test`: what the folder and the test split hold."""
    assert description is not None
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that override the plan")
    parser.add_argument("--data", type=Path, help=f"folder of {data}")
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the run, which stays (default: a temporary one)")
    parser.add_argument("--test", action="store_true", help=f"also evaluate the test {test}")
    parser.add_argument("--note", default="", help="stored with the result")
    return parser


def benchmark_training(
    arguments: argparse.Namespace,
    results: Path,
    write_split: Callable[[Path, Path], Path],
    report: Callable[[str, EvaluationMetrics], dict[str, Any]],
    export_options: Sequence[str] = (),
    evaluate_options: Sequence[str] = (),
) -> None:
    """Train, export and evaluate; add a line to `results`.

    Args:
        arguments: those of `make_parser`.
        results: the file of results, one JSON object a line.
        write_split: makes a data set of (`arguments.data`, a new folder), and returns its folder.
        report: prints the figures of (split, metrics), and returns those to keep.
        export_options, evaluate_options: further options of the subcommands.
    """
    if arguments.out is None:
        with tempfile.TemporaryDirectory() as folder:
            arguments.out = Path(folder) / "out"
            return benchmark_training(arguments, results, write_split, report, export_options, evaluate_options)
    run = arguments.out / "run"
    data = write_split(arguments.data, arguments.out / results.stem)
    overrides = [f"minutes={arguments.minutes:g}", f"seed={arguments.seed}", "tensorboard=false", *arguments.settings]
    seconds = {"train": run_maskserve("train", str(data), *overrides, "--out", str(run))}
    seconds["export"] = run_maskserve("export", str(run), *export_options)
    end = read_run_metadata(run).end
    row: dict[str, Any] = {
        "settings": arguments.settings,
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "note": arguments.note,
        "epochs": end and round(end.epochs, 2),
        "cores": len(os.sched_getaffinity(0)),
        "machine": host_info(),
        "plan": read_plan(run) if (run / "plan.yaml").exists() else None,
    }
    for split in ("val", "test") if arguments.test else ("val",):
        out = run / f"evaluation-{split}"
        options = ["--split", split, "--no-speed", *evaluate_options, "--out", str(out)]
        seconds[split] = run_maskserve("evaluate", str(run / "bundle"), str(data), *options)
        row[split] = report(split, EvaluationMetrics.load(out / METRICS_FILE))
    row["seconds"] = seconds
    with results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(f"{results}: one line added. Bundle: {run / 'bundle'}", flush=True)


def read_plan(run: Path) -> list[str]:
    """The settings of a run's plan with their reasons, without the comment that names its folder."""
    return [line for line in (run / "plan.yaml").read_text().splitlines() if not line.startswith("#")]


def run_maskserve(*arguments: str) -> float:
    """Run a subcommand; returns the seconds that it took."""
    start = time.perf_counter()
    if subprocess.run([sys.executable, "-m", "maskserve", *arguments]).returncode:
        sys.exit(f"failed: maskserve {' '.join(arguments)}")
    return round(time.perf_counter() - start, 1)
