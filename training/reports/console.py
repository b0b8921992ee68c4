"""Console output of `maskserve evaluate`."""

from rich.table import Table
from rich.text import Text

from models.console import Console, name_text
from training.metrics.confusion import ConfusionMatrix
from training.metrics.results import EvaluationMetrics, Interval, Rate

ABSENT = "absent from this split"
HEADLINE_METRICS = {
    "miou": "mIoU",
    "foreground_miou": "foreground mIoU",
    "boundary_iou": "boundary IoU",
    "mean_dice": "mean Dice",
    "foreground_dice": "foreground Dice",
    "mean_precision": "mean precision",
    "mean_recall": "mean recall",
    "pixel_accuracy": "pixel accuracy",
    "mean_image_miou": "mean image mIoU",
}
OTHER_METRICS = {"ece": "calibration error (ECE)"}  # less is better


def print_metrics(metrics: EvaluationMetrics, matrix: ConfusionMatrix, console: Console) -> None:
    """Print the metrics as a table, with 95% intervals and warnings."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("class")
    for title in ("IoU", "95%", "Dice", "precision", "recall", "boundary IoU"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, value in metrics.per_class_iou.items():
        if value is None:
            table.add_row(name_text(name), Text(ABSENT, style="dim"))
            continue
        others = (
            metrics.per_class_dice,
            metrics.per_class_precision,
            metrics.per_class_recall,
            metrics.per_class_boundary_iou,
        )
        interval = format_interval(metrics.intervals.per_class_iou[name])
        table.add_row(name_text(name), format_rate(value), interval, *(format_rate(other[name]) for other in others))
    console.print(table)
    console.print(f"\n{metrics.split}, {metrics.images} images", highlight=False, markup=False)
    for name, title in (headline_metrics([metrics]) | OTHER_METRICS).items():
        interval = format_interval(getattr(metrics.intervals, name))
        console.print(
            f"  {title:24} {format_rate(getattr(metrics, name), 4)}  {interval}", highlight=False, markup=False
        )
    for warning in metric_warnings(metrics, matrix):
        console.print(warning, highlight=False, markup=False, soft_wrap=True)


def headline_metrics(evaluations: list[EvaluationMetrics]) -> dict[str, str]:
    """`HEADLINE_METRICS` without the means of the foreground if no evaluation has them."""
    return {
        name: title
        for name, title in HEADLINE_METRICS.items()
        if not name.startswith("foreground_") or any(getattr(each, name) is not None for each in evaluations)
    }


def metric_warnings(metrics: EvaluationMetrics, matrix: ConfusionMatrix) -> list[str]:
    """Sentences on what the figures do not show: absent classes, classes never predicted, masks that look wrong."""
    names, warnings = list(metrics.per_class_iou), []
    _, target, predicted = matrix.class_counts.tolist()
    by_class = list(zip(names, target, predicted, strict=True))
    if metrics.images_without_mask:
        warnings.append(
            f"Left out, because they have no mask: {metrics.images_without_mask} images; `maskserve data lint` lists them."
        )
    if metrics.absent:
        warnings.append(f"Absent from this split, and in no mean unless predicted: {', '.join(metrics.absent)}.")
    if wrong := [name for name, in_target, in_prediction in by_class if in_prediction and not in_target]:
        warnings.append(f"Predicted though absent, which counts as IoU 0: {', '.join(wrong)}.")
    if never := [name for name, in_target, in_prediction in by_class if in_target and not in_prediction]:
        warnings.append(f"Never predicted: {', '.join(never)}.")
    if len(metrics.absent) == len(names) - 1 and matrix.ignored_pixels:
        ignored = matrix.ignored_pixels / (matrix.ignored_pixels + sum(target))
        only = next(name for name in names if name not in metrics.absent)
        warnings.append(
            f"The masks hold only {only} and ignored pixels (255, {ignored:.0%}). If 255 is meant as a class, none of it was "
            "counted: replace it by the class's label; `maskserve data lint` says how."
        )
    return warnings


def format_rate(value: Rate, digits: int = 3) -> str:
    """A rate as text; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_interval(interval: Interval) -> str:
    """An interval as text; empty for None."""
    return "" if interval is None else f"{interval[0]:.3f}..{interval[1]:.3f}"
