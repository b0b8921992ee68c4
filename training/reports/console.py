"""What `maskserve evaluate` prints."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.metrics.confusion import ConfusionMatrix

ABSENT = "absent from this split"


def print_metrics(metrics: dict[str, Any], matrix: ConfusionMatrix, console: Console) -> None:
    """Print the metrics as a table, with 95% intervals, and what people should know of them."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("class")
    for name in ("IoU", "95%", "Dice", "accuracy", "boundary IoU"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, value in metrics["per_class_iou"].items():
        if value is None:
            table.add_row(Text(name), Text(ABSENT, style="dim"))
            continue
        others = [metrics[f"per_class_{kind}"][name] for kind in ("dice", "accuracy", "boundary_iou")]
        span = format_interval(metrics["intervals"]["per_class_iou"][name])
        table.add_row(Text(name), format_rate(value), span, *map(format_rate, others))
    console.print(table)
    console.print(f"\n{metrics['split']}, {metrics['images']} images", highlight=False, markup=False)
    for name, title in HEADLINE_METRICS.items():
        span = format_interval(metrics["intervals"][name])
        console.print(f"  {title:24} {format_rate(metrics[name], 4)}  {span}", highlight=False, markup=False)
    for sentence in metric_warnings(metrics, matrix):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


HEADLINE_METRICS = {
    "miou": "mIoU",
    "boundary_iou": "boundary IoU",
    "mean_dice": "mean Dice",
    "mean_accuracy": "mean class accuracy",
    "pixel_accuracy": "pixel accuracy",
    "mean_image_miou": "mean image mIoU",
}


def metric_warnings(metrics: dict[str, Any], matrix: ConfusionMatrix) -> list[str]:
    """Sentences on what the figures alone do not say: what is absent, what was never answered, what looks wrong."""
    names, told = list(metrics["per_class_iou"]), []
    _, truth, answer = matrix.class_counts.tolist()
    if metrics.get("images_without_mask"):
        told.append(
            f"Images without a mask, which were left out: {metrics['images_without_mask']}; `maskserve data lint` names them."
        )
    absent = metrics["absent"]
    if absent:
        told.append(f"Absent from this split, and in no mean unless answered: {', '.join(absent)}.")
    wrong = [name for name, there, said in zip(names, truth, answer, strict=True) if said and not there]
    if wrong:
        told.append(f"Answered though absent, which counts as IoU 0: {', '.join(wrong)}.")
    never = [name for name, there, said in zip(names, truth, answer, strict=True) if there and not said]
    if never:
        told.append(f"Never answered: {', '.join(never)}.")
    if len(absent) == len(names) - 1 and matrix.ignored_pixels:
        share = matrix.ignored_pixels / (matrix.ignored_pixels + sum(truth))
        only = next(name for name in names if name not in absent)
        told.append(
            f"The masks hold {only} and void (255, {share:.0%} of the pixels) alone. If 255 stands for a class in them, "
            "nothing of it was counted: write its label, as `maskserve data lint` tells."
        )
    return told


def format_rate(value: float | None, digits: int = 3) -> str:
    """A rate for people; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_interval(ends: list[float] | None) -> str:
    """An interval for people."""
    return "" if ends is None else f"{ends[0]:.3f}..{ends[1]:.3f}"
