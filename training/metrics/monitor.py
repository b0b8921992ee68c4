"""The validation metric that chooses the checkpoint: the setting `monitor`.

Its names are those of an evaluation: `miou`, `foreground_dice`, and with a class `iou_CLASS`, as in the columns of
`metrics.csv`. More is better in all of them.
"""

import math
from typing import Any

from numpy.typing import NDArray

from models.errors import ConfigError, closest_names, quoted
from models.spec import ClassInfo
from training.metrics.confusion import ConfusionMatrix, is_background

DEFAULT_MONITOR = "miou"
# They are the keys of `ConfusionMatrix.summary`; a metric of a class is `per_class_METRIC` there.
OVERALL_METRICS = (
    "miou",
    "foreground_miou",
    "pixel_accuracy",
    "mean_dice",
    "foreground_dice",
    "mean_precision",
    "mean_recall",
)
CLASS_METRICS = ("iou", "dice", "precision", "recall", "specificity")


def check_monitor(monitor: str, classes: list[ClassInfo], pixels: NDArray[Any]) -> None:
    """Check that the data can give the metric. `pixels`: of each class in the validation masks, C.

    Raises: ConfigError that lists what is possible.
    """
    overall, by_class = possible_monitors(classes, pixels)
    if monitor in overall or monitor in by_class:
        return
    names = [entry.name for entry in classes]
    _, _, class_name = monitor.partition("_")
    if monitor in OVERALL_METRICS:
        reason = f"no class of {', '.join(names)} is named background"
    elif monitor in class_monitors(names):
        reason = f"the validation masks hold no pixel of {class_name}"
    else:
        close = closest_names(monitor, [*overall, *by_class])
        reason = f"it is no metric of these classes{f'; did you mean {close}?' if close else ''}"
    present = ", ".join(entry.name for entry, count in zip(classes, pixels, strict=True) if count)
    raise ConfigError(
        f"monitor={quoted(monitor)} cannot choose the checkpoint: {reason.rstrip('?')}. Possible are {', '.join(overall)}; and "
        f"{', '.join(f'{metric}_CLASS' for metric in CLASS_METRICS)} for the classes {present or '(none)'}."
    )


def possible_monitors(classes: list[ClassInfo], pixels: NDArray[Any]) -> tuple[list[str], list[str]]:
    """The metrics of the whole split and those of a class that these validation masks can give."""
    names = [entry.name for entry in classes]
    has_foreground = is_background(names).any() and not is_background(names).all()
    overall = [name for name in OVERALL_METRICS if has_foreground or not name.startswith("foreground_")]
    present = [name for name, count in zip(names, pixels, strict=True) if count]
    return overall, class_monitors(present)


def class_monitors(names: list[str]) -> list[str]:
    """The metrics of these classes, as in `iou_car`."""
    return [f"{metric}_{name}" for metric in CLASS_METRICS for name in names]


def monitored_value(monitor: str, confusion: ConfusionMatrix, classes: list[ClassInfo]) -> float:
    """The metric of a validation, 0..1; 0 where there is nothing to count, such as the precision of a class never predicted."""
    summary = confusion.summary(classes)
    if monitor in OVERALL_METRICS:
        value = summary[monitor]
    else:
        metric, _, class_name = monitor.partition("_")
        value = summary[f"per_class_{metric}"][class_name]
    return 0.0 if value is None or math.isnan(value) else float(value)
