"""Recipes by data sets by seeds at equal minutes and cores: `python -m benchmarks.recipes --data FOLDER [--sets ...]`.

A recipe is settings that override the plan; `plan` overrides nothing. Each is trained, exported and evaluated as a user would,
one process after another. Peers (`benchmarks/recipe_peers.py`) train as long on the crops of the plan's run, with three learning
rates, of which the validation split chooses one. Every result is a line of benchmarks/results/recipes.jsonl as soon as it is there;
what is there is not run again, so that the command can be stopped and started. At the end it prints the table and draws
recipes.png: mean and standard deviation over the seeds, the difference to the plan paired by seed, and the error over that of the
best peer.

While recipes are chosen, they are measured on images held out of the training split; `--final` measures on the test split.
The figure is the mIoU without the background where there is one, else the mIoU.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.recipe_data import DATASETS
from benchmarks.training_run import read_plan, run_maskserve

RESULTS = Path(__file__).parent / "results" / "recipes.jsonl"
RECIPES: dict[str, list[str]] = {
    "plan": [],
    "sgd": ["optimizer=sgd", "lr=0.02", "weight_decay=5e-4"],
    "onecycle": ["schedule=onecycle"],
    "cosine": ["schedule=cosine"],
    "ce": ["loss=ce"],
    "ohem+dice": ["loss=ohem+dice"],
    "ce+lovasz": ["loss=ce+lovasz"],
    "ce+tversky": ["loss=ce+tversky"],
    "smoothing": ["label_smoothing=0.1"],
    "classmix": ["classmix=0.5"],
    "cutmix": ["cutmix=0.5"],
    "erasing": ["erasing=0.25"],
    "progressive": ["progressive=0.4"],
    "balanced": ["class_balanced_crops=0.5"],
    "wide scale": ["scale=0.5,2"],
    "rotate": ["rotate=15"],
    "ema": ["ema=0.99"],
    "clip": ["grad_clip=1"],
    "accumulate": ["accumulate=2"],
    "stride 16": ["output_stride=16"],
    "d6": ["head=d6"],
    "aux": ["aux=true"],
    "learned": ["upsampling=learned"],
    "resnet18": ["encoder=resnet18"],
    "regnetx_008": ["encoder=tu-regnetx_008"],
    "unet": ["architecture=unet"],
}
# The keys of benchmarks/recipe_peers.py, which imports torch.
PEER_NAMES = ("torchvision FCN-ResNet-50", "smp U-Net", "smp FPN")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds camvid and crackforest; other sets are drawn")
    parser.add_argument("--sets", nargs="*", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument(
        "--recipes", nargs="*", choices=[*RECIPES, *PEER_NAMES], default=[*RECIPES, *PEER_NAMES], metavar="NAME"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--final", action="store_true", help="measure on the test split, after all choices")
    parser.add_argument("--table", action="store_true", help="only print and draw what there is")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        for seed in [] if arguments.table else arguments.seeds:
            for name in arguments.sets:
                for recipe in arguments.recipes:
                    row = {"data": name, "recipe": recipe, "seed": seed, "minutes": arguments.minutes, "cores": cores}
                    measure({**row, "final": arguments.final}, arguments.data or Path(), Path(folder))
    rows = [row for row in read_rows() if row["minutes"] == arguments.minutes and row["final"] == arguments.final]
    for name in arguments.sets:
        print_table(name, [row for row in rows if row["data"] == name])
    draw([row for row in rows if row["data"] in arguments.sets], RESULTS.with_suffix(".png"))


def read_rows() -> list[Row]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def measure(row: Row, data: Path, scratch: Path) -> None:
    """Train, evaluate and append a result, unless it is there; a peer once for each learning rate."""
    done = {json.dumps({key: each.get(key) for key in [*row, "lr"]}) for each in read_rows()}
    dataset = scratch / f"{row['data']}-{row['final']}"
    if not dataset.exists():
        DATASETS[row["data"]](data, dataset, row["final"])
    if row["recipe"] in RECIPES:
        if json.dumps({**row, "lr": None}) not in done:
            append({**row, **measure_ours(row, dataset, scratch)})
        return
    from benchmarks.recipe_peers import LIBRARY_LEARNING_RATES, PEERS

    rates = LIBRARY_LEARNING_RATES[PEERS[row["recipe"]].library]
    if row["seed"] != 0 and (chosen := best_learning_rate(row)):
        rates = (chosen,)  # the first seed chose it
    for lr in rates:
        if json.dumps({**row, "lr": lr}) not in done:
            append({**row, "lr": lr, **measure_peer(row, lr, dataset, scratch)})


def measure_ours(row: Row, dataset: Path, scratch: Path) -> Row:
    """A recipe as a user would run it: train, export, evaluate."""
    from training.run_folder import read_run_metadata

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        run = Path(folder) / "run"
        limits = [f"minutes={row['minutes']:g}", f"seed={row['seed']}", "tensorboard=false"]
        run_maskserve("train", str(dataset), *RECIPES[row["recipe"]], *limits, "--quiet", "--out", str(run))
        run_maskserve("export", str(run), "--no-int8")
        scores = {}
        for split in ("val", "test"):
            out = run / f"evaluation-{split}"
            run_maskserve(
                "evaluate", str(run / "bundle"), str(dataset), "--split", split, "--no-speed", "--out", str(out)
            )
            scores[split] = figures(json.loads((out / "metrics.json").read_text()))
        end = read_run_metadata(run).end
        return {
            **scores,
            "epochs": end and round(end.epochs, 1),
            "settings": RECIPES[row["recipe"]],
            "plan": read_plan(run),
            **machine(),
        }


def measure_peer(row: Row, lr: float, dataset: Path, scratch: Path) -> Row:
    """A peer on the crops, batch, input size and precision that the plan gives for this data set."""
    from rich.console import Console

    from benchmarks.recipe_peers import PEERS, train_peer
    from training.config_io import load_config
    from training.data import load_split
    from training.evaluate import evaluate_split
    from training.metrics.bootstrap import compute_metrics
    from training.run_folder import read_run_metadata

    planned = scratch / f"planned-{dataset.name}"
    if not planned.exists():  # the plan follows from the minutes
        run_maskserve("plan", str(dataset), f"minutes={row['minutes']:g}", "--out", str(planned / "plan.yaml"))
        short = ["epochs=1", "minutes=0.2", "tensorboard=false", "--quiet"]
        run_maskserve(
            "train", str(dataset), "--config", str(planned / "plan.yaml"), *short, "--out", str(planned / "run")
        )
    run, config = read_run_metadata(planned / "run"), load_config(planned / "plan.yaml", [])
    samples = load_split(dataset, "train")
    segmenter, epochs = train_peer(
        PEERS[row["recipe"]], samples, run, config.batch, config.workers, lr, row["minutes"], row["seed"]
    )
    scores = {}
    for split in ("val", "test"):
        _, tally = evaluate_split(segmenter, load_split(dataset, split, classes=samples.classes), Console(quiet=True))
        scores[split] = figures(compute_metrics(tally, samples.classes).model_dump(mode="json"))
    settings = {"crop": run.crop, "batch": config.batch, "precision": run.precision, "input": run.input.rule}
    return {**scores, "epochs": round(epochs, 1), "settings": settings, **machine()}


def figures(metrics: Row) -> Row:
    """What is kept of an evaluation; `score` is the figure of the table."""
    foreground = metrics["foreground_miou"]
    kept = {name: metrics[name] for name in ("miou", "foreground_miou", "mean_dice", "pixel_accuracy", "boundary_iou")}
    return {"score": metrics["miou"] if foreground is None else foreground, **kept, "iou": metrics["per_class_iou"]}


def machine() -> Row:
    """Where a result was measured."""
    from models.engines.host_info import host_info

    return {"machine": host_info()}


def append(row: Row) -> None:
    """Add a line to the results, and print it."""
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(
        f"{row['test']['score']:.4f}  {row['data']}: {row['recipe']}, seed {row['seed']}, {row['epochs']} epochs",
        flush=True,
    )


def best_learning_rate(row: Row) -> float | None:
    """That of a peer with the best validation figure, over all seeds so far."""
    same = [each for each in read_rows() if all(each[key] == row[key] for key in row if key != "seed")]
    return max(same, key=lambda each: each["val"]["score"])["lr"] if same else None


def scores_by_recipe(rows: list[Row]) -> dict[str, dict[int, float]]:
    """The measured figure by recipe and seed; of a peer that of its best learning rate by validation."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    rates = {row["recipe"]: best_learning_rate({key: row[key] for key in KEYS}) for row in rows if "lr" in row}
    for row in rows:
        if row.get("lr") == rates.get(row["recipe"]):
            found[row["recipe"]][row["seed"]] = row["test"]["score"]
    return dict(sorted(found.items(), key=lambda item: -statistics.fmean(item[1].values())))


KEYS = ("data", "recipe", "minutes", "cores", "final")


def print_table(name: str, rows: list[Row]) -> None:
    """Mean, SD, paired difference to the plan, and error over that of the best peer, by recipe."""
    found = scores_by_recipe(rows)
    peers = [statistics.fmean(found[peer].values()) for peer in PEER_NAMES if peer in found]
    print(f"\n{name}{'recipe':>24} seeds    mean      SD  difference to plan  error / best peer's")
    for recipe, scores in found.items():
        mean = statistics.fmean(scores.values())
        sd = statistics.stdev(scores.values()) if len(scores) > 1 else math.nan
        paired = [scores[seed] - found["plan"][seed] for seed in scores if seed in found.get("plan", {})]
        error = statistics.stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else math.nan
        difference = f"{statistics.fmean(paired):+.4f} ± {error:.4f}" if paired and recipe != "plan" else ""
        ratio = f"{(1 - mean) / (1 - max(peers)):.3f}" if peers else ""
        print(f"{recipe:>{24 + len(name)}} {len(scores):5}  {mean:.4f}  {sd:6.4f}  {difference:>18}  {ratio:>19}")


def draw(rows: list[Row], target: Path) -> None:
    """One panel per data set: a dot per seed, a bar at the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in DATASETS if any(row["data"] == name for row in rows)]
    if not names:
        return
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 7), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        found = scores_by_recipe([row for row in rows if row["data"] == name])
        for height, (recipe, scores) in enumerate(reversed(found.items())):
            color = "tab:red" if recipe in PEER_NAMES else "black" if recipe == "plan" else "tab:blue"
            axis.plot(list(scores.values()), [height] * len(scores), ".", color=color)
            axis.plot([statistics.fmean(scores.values())], [height], "|", color=color, markersize=14)
        axis.set_yticks(range(len(found)), list(reversed(found)), fontsize=8)
        axis.set_title(f"{name}, {rows[0]['minutes']:g} minutes")
        axis.set_xlabel("mIoU, without the background if there is one")
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
