"""Compares the plan with a recipe: `python -m benchmarks.plan DATA --recipe FILE --minutes 10 --seeds 0 1`.

Both train for the same minutes at the same time, each on half of the cores, so that other load on the machine affects both;
then both are exported and measured on the test split. Without --recipe the plan trains alone, on all cores.
An existing row in benchmarks/results/plan.json is overwritten.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models.engines.host_info import host_info
from training.metrics.results import METRICS_FILE, EvaluationMetrics

RESULTS = Path(__file__).parent / "results" / "plan.json"


def core_subset(part: int, parts: int) -> list[int]:
    """Part number `part` of `parts` equal parts of this process's cores."""
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // parts)
    return cores[part * size : (part + 1) * size] or cores


def start_run(data: Path, run: Path, settings: list[str], cores: list[int]) -> "subprocess.Popen[bytes]":
    """Train, export and evaluate on some cores."""
    command = f"{sys.executable} -m maskserve"
    steps = [
        f"{command} train {data} {' '.join(settings)} tensorboard=false --out {run}",
        f"{command} export {run} --no-int8",
        f"{command} evaluate {run}/bundle {data} --no-speed",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    with (run.parent / f"{run.name}.log").open("wb") as log:
        arguments = ["taskset", "-c", ",".join(map(str, cores)), "sh", "-ec", "\n".join(steps)]
        return subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)


def read_metrics(run: Path) -> dict[str, Any]:
    """The result of the evaluation, and the plan if there is one."""
    metrics = EvaluationMetrics.load(run / "evaluation" / METRICS_FILE)
    plan = (run / "plan.yaml").read_text().splitlines()[1:] if (run / "plan.yaml").exists() else None
    return {"miou": metrics.miou, "per_class_iou": metrics.per_class_iou, "plan": plan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", type=Path, help="YAML file of settings to compare with")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--note", default="", help="stored with the results")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            settings = {"plan": [f"minutes={arguments.minutes}", f"seed={seed}"]}
            if arguments.recipe:
                # The recipe's own number of epochs is ignored: its training ends after the minutes.
                settings["recipe"] = [f"--config={arguments.recipe}", *settings["plan"], "epochs=null"]
            running = {
                name: start_run(arguments.data, Path(scratch) / name, overrides, core_subset(part, len(settings)))
                for part, (name, overrides) in enumerate(settings.items())
            }
            for name, process in running.items():
                if process.wait():
                    sys.exit((Path(scratch) / f"{name}.log").read_text())
            row = {name: read_metrics(Path(scratch) / name) for name in settings}
        row |= {"minutes": arguments.minutes, "machine": host_info(), "note": arguments.note}
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.setdefault(arguments.data.name, {})[str(seed)] = row
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(arguments.data.name, seed, {name: round(row[name]["miou"], 4) for name in settings}, flush=True)


if __name__ == "__main__":
    main()
