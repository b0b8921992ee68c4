"""What healthy networks measure, beside the thresholds of `maskserve explain`: the table of docs/explain.md.

maskserve explain runs/demo/bundle shapes/images/test/test_000{1,2}.jpg --data shapes --out inside-shapes
maskserve explain runs/camvid/bundle --data camvid --at 240,280 --out inside-camvid
python -m benchmarks.explain shapes=inside-shapes CamVid=inside-camvid
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from models.explain.thresholds import THRESHOLDS

RESULTS = Path(__file__).parent / "results" / "explain.json"


def measured(folder: Path) -> dict[str, float]:
    """The value of each threshold's measurement, from the explain.json of a folder: the worst of its images and stages."""
    views = json.loads((folder / "explain.json").read_text(encoding="utf-8"))["views"]

    def images(view: str) -> list[dict[str, Any]]:
        return list(views[view].values())

    kernels, failures = images("kernels")[0], views["failures"]
    stages = [row for numbers in images("maps") for row in numbers["stages"]]
    objects = [row for numbers in images("fields") for row in numbers["objects"]]
    swapped = np.mean([numbers["reversed_channels_gain"] for numbers in images("certainty")])
    checks = [row for numbers in images("why") for row in numbers["maps"] if row["target"] == "object"]
    values = {
        "dead kernels": len(kernels["dead"]) / kernels["shape"][0],
        "dead channels": max(len(row["dead"]) / row["channels"] for row in stages),
        "duplicate channels": max(len(row["duplicates"]) / row["channels"] for row in stages),
        "small field": min(row["ratio"] for row in objects),
        "blind pixels": max(row["blind_fraction"] for row in objects),
        "coarse grid": max(each["logit_stride"] / each["typical_thickness"] for each in images("fields")),
        "unstable labels": np.mean([numbers["changed_at_named_shift"] for numbers in images("shifts")]),
        "channel order": max(swapped, failures["reversed_channels_gain"]),
        "uncertain": np.mean([numbers["entropy"] for numbers in images("certainty")]),
        "failed check": np.median([row["rank_correlation"] for row in checks]),
        "mask shift": max(map(abs, failures["mask_shift_by_edges"] + failures["mask_shift_by_prediction"])),
        "border errors": failures["near_border"],
        "overconfident": failures["ece"],
        "idle blocks": min(1 - row["agreement"] for row in views["residual"]["blocks"]),
    }
    return {kind: round(float(value), 4) for kind, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help="a folder that `maskserve explain` wrote")
    results = {}
    for name, separator, folder in (word.partition("=") for word in parser.parse_args().folders):
        if not separator:
            parser.error(f"{name} is not of the form NAME=FOLDER")
        results[name] = measured(Path(folder))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"| finding | measured | threshold | {' | '.join(results)} |\n|{' --- |' * (3 + len(results))}")
    for kind, each in THRESHOLDS.items():
        values = " | ".join(f"{result[kind]:.2g}" for result in results.values())
        print(f"| {kind} | {each.meaning} | {'above' if each.above else 'below'} {each.limit:g} | {values} |")


if __name__ == "__main__":
    main()
