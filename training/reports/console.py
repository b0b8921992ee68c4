"""Console output of `maskserve evaluate`."""

from rich.table import Table
from rich.text import Text

from models.console import Console, name_text
from models.spec import AXES
from training.metrics.confusion import ConfusionMatrix
from training.metrics.results import EvaluationMetrics, EventMetrics, Interval, PointMetrics, Rate, VolumeMetrics

ABSENT = "absent from this split"
HEADLINE_METRICS = {  # of signals, a pixel is a time step, an image a record
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
OTHER_METRICS = {"ece": "calibration error (ECE)", "average_precision": "average precision"}


def print_metrics(metrics: EvaluationMetrics, matrix: ConfusionMatrix, console: Console) -> None:
    """Print the metrics as a table, with 95% intervals and warnings."""
    columns = {
        "Dice": metrics.per_class_dice,
        "precision": metrics.per_class_precision,
        "recall": metrics.per_class_recall,
        "boundary IoU": metrics.per_class_boundary_iou,
    }
    if metrics.axes != "HW":
        del columns["boundary IoU"]
    table = make_table("class", "IoU", "95%", *columns)
    for name, value in metrics.per_class_iou.items():
        if value is None:
            table.add_row(name_text(name), Text(ABSENT, style="dim"))
            continue
        interval = format_interval(metrics.intervals.per_class_iou[name])
        others = (format_rate(values[name]) for values in columns.values())
        table.add_row(name_text(name), format_rate(value), interval, *others)
    console.print(table)
    if metrics.events:
        print_events(metrics.events, console)
    if metrics.volumes:
        print_volumes(metrics.volumes, console)
    console.print(f"\n{metrics.split}, {count_samples(metrics)}", highlight=False, markup=False)
    for name, title in (headline_metrics([metrics]) | other_metrics([metrics])).items():
        interval = format_interval(getattr(metrics.intervals, name))
        console.print(
            f"  {title:24} {format_rate(getattr(metrics, name), 4)}  {interval}", highlight=False, markup=False
        )
    for warning in metric_warnings(metrics, matrix):
        console.print(warning, highlight=False, markup=False, soft_wrap=True)


def print_events(events: EventMetrics, console: Console) -> None:
    """Print a row for the onsets and one for the offsets of each class, and their mean F1."""
    console.print(f"\nEvents, within {events.tolerance_ms:g} ms", highlight=False, markup=False)
    table = make_table("event", "F1", "95%", "Se", "PPV", "error, ms", "match", "miss", "false")  # in 80 columns
    for name, points in events.per_class.items():
        for point, each in points.items():
            counts = map(str, (each.matched, each.missed, each.false))
            rates = format_rate(each.sensitivity, 4), format_rate(each.ppv, 4)
            interval = format_interval(each.f1_interval)
            error = format_error(each).replace(" ", "")
            table.add_row(name_text(f"{name} {point}"), format_rate(each.f1, 4), interval, *rates, error, *counts)
    console.print(table)
    interval = format_interval(events.event_f1_interval)
    console.print(f"mean F1 {format_rate(events.event_f1, 4)}  {interval}", highlight=False, markup=False)


def print_volumes(volumes: VolumeMetrics, console: Console) -> None:
    """Print a row for each class: its metrics, mean over the cases."""
    console.print(f"\nBy case; surface Dice within {volumes.tolerance_mm:g} mm", highlight=False, markup=False)
    table = make_table("class", "Dice", "95%", "median", "surface Dice", "HD95, mm", "volume error, ml", "cases")
    for name, found in volumes.per_class.items():
        dice, error = found["dice"], found["volume_error"].mean
        table.add_row(
            name_text(name), format_rate(dice.mean, 4), format_interval(dice.interval), format_rate(dice.median, 4),
            format_rate(found["surface_dice"].mean, 4), format_rate(found["hd95"].mean, 2),
            "-" if error is None else f"{error:+.3g}", f"{dice.cases:,}",
        )  # fmt: skip
    console.print(table)
    interval = format_interval(volumes.dice_interval)
    console.print(
        f"mean Dice of the foreground {format_rate(volumes.dice, 4)}  {interval}", highlight=False, markup=False
    )


def make_table(first: str, *others: str) -> Table:
    """A table without lines; all columns but the first are aligned right."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first)
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def format_error(point: PointMetrics) -> str:
    """The mean error and its standard deviation, ms; a dash without a match."""
    return "-" if point.mean_ms is None else f"{point.mean_ms:+.1f} ± {point.sd_ms:.1f}"


def count_samples(metrics: EvaluationMetrics) -> str:
    """Such as "12 images", or for signals "24 recordings (2 groups)"."""
    noun = "recordings" if metrics.axes == "T" else AXES[metrics.axes]
    groups = {row.group for row in metrics.per_image if row.group}
    return f"{metrics.images:,} {noun}" + (f" ({len(groups)} groups)" if 0 < len(groups) < metrics.images else "")


def headline_metrics(evaluations: list[EvaluationMetrics]) -> dict[str, str]:
    """`HEADLINE_METRICS` without the means of the foreground if no evaluation has them, and the boundaries of images for others."""
    return {
        name: title
        for name, title in HEADLINE_METRICS.items()
        if not name.startswith("foreground_") or any(getattr(each, name) is not None for each in evaluations)
        if name != "boundary_iou" or any(each.axes == "HW" for each in evaluations)
    }


def other_metrics(evaluations: list[EvaluationMetrics]) -> dict[str, str]:
    """`OTHER_METRICS` without the average precision if no evaluation has it: it is of two classes."""
    return {
        name: title
        for name, title in OTHER_METRICS.items()
        if name == "ece" or any(getattr(each, name) is not None for each in evaluations)
    }


def best_threshold(metrics: EvaluationMetrics) -> str:
    """The highest F1 of the threshold curve, and its threshold, as in "0.641 at 0.35"."""
    best = max(metrics.threshold_curve, key=lambda point: point.f1 or 0.0)
    return f"{format_rate(best.f1, 4)} at {best.threshold:.2f}"


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
