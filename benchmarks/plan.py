"""The plan beside the best recipe that is known: `python -m benchmarks.plan DATA --recipe FILE --minutes 10 --seeds 0 1`.

Both are trained for the same minutes at the same time, on half of the cores each, so that they share what else the machine
does; then both are exported and measured on the test split. Without --recipe the plan trains alone, on all cores.
A row that stands in benchmarks/results/plan.json already is made again and written over.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from maskserve.host_info import host_info

RESULTS = Path(__file__).parent / "results" / "plan.json"


def core_subset(part: int, parts: int) -> list[int]:
    """One of so many equal parts of this process's cores."""
    mine = sorted(os.sched_getaffinity(0))
    each = max(1, len(mine) // parts)
    return mine[part * each : (part + 1) * each] or mine


def start_run(data: Path, run: Path, words: list[str], on: list[int]) -> "subprocess.Popen[bytes]":
    """Train, export and evaluate on some cores."""
    verb = f"{sys.executable} -m maskserve"
    steps = [
        f"{verb} train {data} {' '.join(words)} tensorboard=false --out {run}",
        f"{verb} export {run} --no-int8",
        f"{verb} evaluate {run}/bundle {data} --no-speed",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(on))}
    with (run.parent / f"{run.name}.log").open("wb") as log:
        command = ["taskset", "-c", ",".join(map(str, on)), "sh", "-ec", "\n".join(steps)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def read_metrics(run: Path) -> dict[str, Any]:
    """What the evaluation found."""
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    kept = {name: metrics[name] for name in ("miou", "per_class_iou")}
    return {**kept, "plan": (run / "plan.yaml").read_text().splitlines()[1:] if (run / "plan.yaml").exists() else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", type=Path, help="YAML file of settings to compare with")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--note", default="", help="to be kept beside the figures")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            words = {"plan": [f"minutes={arguments.minutes}", f"seed={seed}"]}
            if arguments.recipe:
                # The recipe's epochs end with the minutes, whatever it says.
                words["recipe"] = [f"--config={arguments.recipe}", *words["plan"], "epochs=null"]
            running = {
                name: start_run(arguments.data, Path(scratch) / name, told, core_subset(part, len(words)))
                for part, (name, told) in enumerate(words.items())
            }
            for name, process in running.items():
                if process.wait():
                    sys.exit((Path(scratch) / f"{name}.log").read_text())
            row = {name: read_metrics(Path(scratch) / name) for name in words}
        row |= {"minutes": arguments.minutes, "machine": host_info(), "note": arguments.note}
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept.setdefault(arguments.data.name, {})[str(seed)] = row
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
        print(arguments.data.name, seed, {name: round(row[name]["miou"], 4) for name in words}, flush=True)


if __name__ == "__main__":
    main()
