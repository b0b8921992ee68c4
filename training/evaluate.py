"""Evaluate a bundle on a data set: `maskserve evaluate BUNDLE DATA`, or `python -m training.evaluate BUNDLE DATA`.

The bundle itself answers, through the Segmenter that the service calls, and its answers are compared with the masks
at the pictures' own size: the mIoU reported is the mIoU served.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from models.bundle import Bundle, open_bundle
from models.errors import DataError
from models.segmenter import Segmenter
from models.spec import VOID
from models.tta import Augmentation
from training.data import Samples, load
from training.metrics import Confusion
from training.report import confusion, panel

WORST = 6  # pictures that are drawn


def evaluate(
    bundle: Path, data: Path, split: str = "test", out: Path | None = None, format: str = "auto", tta: str | None = None,
    engine: str = "auto", precision: str = "auto", device: str = "auto", console: Console | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a bundle on a split; with `out`, leave `metrics.json` and `report/` there.

    `tta` asks for test-time augmentation, as in `flip,0.75,1,1.25`; the service answers without it.

    Returns: `miou`, `per_class_iou`, `pixel_accuracy` (0..1, None where a class is absent), and what was measured.
    Raises: BundleError, DataError, EngineError.
    """
    console = console or Console()
    opened = open_bundle(bundle)
    samples = load(data, split, format)
    same_classes(opened, samples, data)
    augmentation = Augmentation.parse(tta) if tta else None
    segmenter = Segmenter.load(opened, engine, precision, device, augmentation=augmentation)
    assert segmenter.choice is not None  # `load` made it
    console.print(f"running on {segmenter.choice.why}", highlight=False, markup=False, soft_wrap=True)
    matrix, by_picture = measure(segmenter, samples, console)
    metrics = {
        **matrix.summary(samples.classes),
        "split": split,
        "pictures": len(samples),
        "tta": tta,
        "bundle": {"name": opened.spec.name, "hash": opened.hash, **asdict(segmenter.choice)},
    }
    show(metrics, console)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        draw_report(segmenter, samples, matrix, by_picture, out / "report")
    return metrics


def measure(segmenter: Segmenter, samples: Samples, console: Console) -> tuple[Confusion, list[float]]:
    """Segment every picture; returns the confusion matrix and the mIoU of each picture."""
    total, by_picture = Confusion(len(samples.classes)), []
    for index in track(
        range(len(samples)), "evaluating", console=console, transient=True, disable=not console.is_terminal
    ):
        single = Confusion(len(samples.classes))
        truth = samples.labels(index)
        picture = samples.picture(index)
        if picture.shape[:2] != truth.shape:
            raise DataError(
                f"{samples.pairs[index].mask} has not the size of its picture; run `maskserve data lint` on the data set."
            )
        strange = truth[(truth >= len(samples.classes)) & (truth != VOID)]
        if strange.size:
            raise DataError(
                f"{samples.pairs[index].mask} holds the label {strange[0]}, which is no class; run `maskserve data lint`."
            )
        single.add(truth, segmenter.segment(picture).labels)
        by_picture.append(single.miou())
        total += single
    return total, by_picture


def same_classes(bundle: Bundle, samples: Samples, data: Path) -> None:
    """Raises: DataError where the data set's classes are not the bundle's."""
    names, wanted = ([entry.name for entry in classes] for classes in (samples.classes, bundle.spec.classes))
    if names != wanted:
        raise DataError(f"{data} has the classes {', '.join(names)}; the bundle was trained on {', '.join(wanted)}.")


def show(metrics: dict[str, Any], console: Console) -> None:
    """Print the metrics as a table."""
    table = Table(box=None, header_style="bold")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, value in metrics["per_class_iou"].items():
        table.add_row(name, "absent" if value is None else f"{value:.3f}")
    console.print(table)
    miou, accuracy = (
        f"{metrics[name]:.4f}" if metrics[name] is not None else "absent" for name in ("miou", "pixel_accuracy")
    )
    console.print(f"{metrics['split']}, {metrics['pictures']} pictures: mIoU {miou}, pixel accuracy {accuracy}")


def draw_report(
    segmenter: Segmenter, samples: Samples, matrix: Confusion, by_picture: list[float], target: Path
) -> None:
    """Draw the confusion matrix and the pictures with the lowest mIoU."""
    target.mkdir(parents=True, exist_ok=True)
    confusion(matrix, samples.classes, target / "confusion.png")
    ranked = sorted((value, index) for index, value in enumerate(by_picture) if value == value)
    for place, (value, index) in enumerate(ranked[:WORST], start=1):
        picture = samples.picture(index)
        answer = segmenter.segment(picture).labels
        caption = f"{samples.pairs[index].name}, mIoU {value:.2f}"
        panel(picture, samples.labels(index), answer, samples.classes, caption).save(target / f"worst_{place}.png")


if __name__ == "__main__":
    from maskserve.cli import main  # the script's words are the verb's

    main("evaluate")
