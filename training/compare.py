"""Compare evaluations side by side: `maskserve compare RUN RUN ...`.

Two intervals that overlap prove little, because both runs had the same easy and hard images. So the difference itself is
resampled, image by image of both runs at once (a paired bootstrap); if its interval contains 0, it is not significant.
It holds for these networks on these images; the effect of another seed is not in it.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from models.bundle import CHECKSUM_FILE
from models.console import Console, name_text
from models.errors import ConfigError, RunError
from models.spec import AXES
from training.evaluate import evaluation_folder
from training.metrics.bootstrap import (
    MIN_IMAGES,
    PerImageCounts,
    bootstrap_metrics,
    count_all_groups,
    images_per_value,
    value_names,
)
from training.metrics.confusion import Rates, nan_mean, round_or_none
from training.metrics.events import POINTS, bootstrap_events
from training.metrics.resampling import percentile_interval, plain_interval
from training.metrics.results import METRICS_FILE, EvaluationMetrics, EventMetrics, Interval, Rate, VolumeMetrics
from training.metrics.volumes import resampled_means
from training.reports.console import (
    HEADLINE_METRICS,
    OTHER_METRICS,
    best_threshold,
    count_samples,
    format_error,
    format_interval,
    format_rate,
    headline_metrics,
    other_metrics,
)
from training.run_folder import METADATA_FILE, read_run_metadata

CLASS_METRICS = {
    "per_class_iou": "IoU",
    "per_class_precision": "precision",
    "per_class_recall": "recall",
    "per_class_specificity": "specificity",
    "per_class_false_positive_rate": "false positive images",
}
SIZE_METRICS = {"recall_by_size": "recall of objects"}
CaseMetricName = Literal["dice", "surface_dice", "hd95"]
CASE_METRICS: dict[CaseMetricName, str] = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95": "HD95, mm",
}  # of volumes
LOWER_IS_BETTER = ("ece", "per_class_false_positive_rate", "hd95")
NOT_SIGNIFICANT = "not significant"


class Difference(BaseModel):
    """The difference of a metric to the first run; None if the metric is absent or rests on too few images."""

    value: Rate = None
    interval: Interval = None  # paired, 95%
    significant: bool = False  # whether the interval leaves out 0


class EventDifferences(BaseModel):
    """The differences of the F1 of events to the first run."""

    event_f1: Difference
    f1: dict[str, dict[str, Difference]]  # by class name, and by onset or offset


class VolumeDifferences(BaseModel):
    """The differences of the metrics of volumes by case to the first run; of the foreground, and by class name."""

    dice: Difference
    surface_dice: Difference
    hd95: Difference
    per_class: dict[str, dict[CaseMetricName, Difference]]


class Differences(BaseModel):
    """The differences of all metrics to the first run."""

    miou: Difference
    foreground_miou: Difference
    boundary_iou: Difference
    mean_dice: Difference
    foreground_dice: Difference
    mean_precision: Difference
    mean_recall: Difference
    pixel_accuracy: Difference
    mean_image_miou: Difference
    per_class_iou: dict[str, Difference]  # by class name
    per_class_precision: dict[str, Difference]
    per_class_recall: dict[str, Difference]
    per_class_specificity: dict[str, Difference]
    per_class_false_positive_rate: dict[str, Difference]
    recall_by_size: dict[str, Difference]  # by size
    ece: Difference
    average_precision: Difference
    events: EventDifferences | None = None  # of signals
    volumes: VolumeDifferences | None = None  # of volumes


@dataclass
class Evaluation:
    """The evaluation of a run."""

    name: str
    file: Path
    metrics: EvaluationMetrics
    per_image: PerImageCounts
    differences: Differences | None = None  # to the first run; None if the two cannot be paired


def compare(runs: list[Path], as_json: bool, console: Console) -> None:
    """Print the evaluations of two or more runs side by side, as a table or as JSON.

    A run is a run folder, a bundle, an evaluation folder, or its metrics.json.
    Raises: ConfigError for fewer than two runs; RunError for a run without an evaluation, or if they do not belong together.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare needs two or more runs, and got {len(runs)}: `maskserve compare RUN RUN`.")
    found = [read_evaluation(run) for run in runs]
    assign_names(runs, found)
    first, *others = found
    for other in others:
        check_comparable(first, other)
        if align_images(first, other):
            other.differences = paired_differences(first, other)
    if as_json:
        print(json.dumps(as_dict(found), indent=2))
    else:
        print_comparison(found, console)


def read_evaluation(run: Path) -> Evaluation:
    """Read the evaluation of a run. Raises: RunError if there is none, or it is of another version or another bundle."""
    candidates = [run] if run.is_file() else [run / METRICS_FILE, run / "evaluation" / METRICS_FILE]
    if (run / CHECKSUM_FILE).is_file():
        candidates.append(evaluation_folder(run) / METRICS_FILE)
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        problem = "has no evaluation" if run.exists() else "does not exist"
        raise RunError(f"{run} {problem}; run: {_evaluate_command(run)}")
    metrics = EvaluationMetrics.load(file)
    for bundle in (run, run / "bundle"):
        sums = bundle / CHECKSUM_FILE
        if sums.is_file() and hashlib.sha256(sums.read_bytes()).hexdigest() != metrics.bundle.hash:
            raise RunError(
                f"{file} is of another bundle than {bundle}, which changed since; run: {_evaluate_command(run)}"
            )
    try:
        per_image = PerImageCounts.from_rows(metrics.per_image, len(metrics.per_class_iou))
    except IndexError as error:
        raise RunError(f"{file} was changed: it counts pixels of a class that it does not list.") from error
    return Evaluation("", file, metrics, per_image)


def _evaluate_command(run: Path) -> str:
    """The command that evaluates a run, with its data set if the run knows it."""
    data = "DATA"
    with suppress(RunError):  # it is not a run, or a broken one
        data = str(read_run_metadata(run).data)
    bundle = run if (run / CHECKSUM_FILE).is_file() else run / "bundle"
    exported = (bundle / CHECKSUM_FILE).is_file() or not (run / METADATA_FILE).is_file()
    return f"{'' if exported else f'maskserve export {run}, then '}maskserve evaluate {bundle} {data}"


def assign_names(runs: list[Path], found: list[Evaluation]) -> None:
    """Name each evaluation by its run's folder, or by the path that was typed if folders have the same name."""
    folders = [one.file.parent for one in found]
    short = [(folder.parent if folder.name.startswith("evaluation") else folder).resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    for number, (one, name) in enumerate(zip(found, names, strict=True), start=1):
        one.name = name if names.count(name) == 1 else f"{name} ({number})"


def check_comparable(first: Evaluation, other: Evaluation) -> None:
    """Raises: RunError if two evaluations differ in split or classes."""
    for what, one, two in (
        ("split", first.metrics.split, other.metrics.split),
        ("classes", ", ".join(first.metrics.per_class_iou), ", ".join(other.metrics.per_class_iou)),
        ("samples", AXES[first.metrics.axes], AXES[other.metrics.axes]),
        ("tolerances", _tolerance(first.metrics), _tolerance(other.metrics)),
    ):
        if one != two:
            raise RunError(
                f"{first.file} and {other.file} cannot be compared: their {what} differ, {one} and {two}; "
                "evaluate both on the same."
            )


def _tolerance(metrics: EvaluationMetrics) -> str:
    if metrics.volumes:
        return f"{metrics.volumes.tolerance_mm:g} mm"
    return f"{metrics.events.tolerance_ms:g} ms" if metrics.events else "none"


def align_images(first: Evaluation, other: Evaluation) -> bool:
    """Bring `other` into the image order of `first`; returns whether both have the same images and masks."""
    if sorted(first.per_image.names) != sorted(other.per_image.names):
        return False
    other.per_image = other.per_image.reorder(first.per_image.names)
    same_masks = bool((first.per_image.counts[:, 0, 1] == other.per_image.counts[:, 0, 1]).all())
    digests = zip(first.per_image.digests, other.per_image.digests, strict=True)
    return same_masks and all(one == two or not (one and two) for one, two in digests)  # "" in older files


def paired_differences(first: Evaluation, other: Evaluation) -> Differences:
    """The metrics of `other` minus those of `first`, each with its paired 95% interval."""
    names, number = list(first.metrics.per_class_iou), count_all_groups(first.per_image)
    before, after = bootstrap_metrics(first.per_image, names), bootstrap_metrics(other.per_image, names)
    headline: dict[str, Any] = {
        name: _metric_difference(
            getattr(first.metrics, name), getattr(other.metrics, name), after[name] - before[name], number
        )
        for name in (*HEADLINE_METRICS, *OTHER_METRICS)
    }
    per_class: dict[str, Any] = {
        metric: {
            name: _metric_difference(
                getattr(first.metrics, metric)[name],
                getattr(other.metrics, metric)[name],
                after[metric][:, label] - before[metric][:, label],
                max(int(images_per_value(one.per_image, metric)[label]) for one in (first, other)),
            )
            for label, name in enumerate(value_names(metric, names))
        }
        for metric in CLASS_METRICS | SIZE_METRICS
    }
    events, volumes = event_differences(first, other), volume_differences(first, other)
    return Differences(**headline, **per_class, events=events, volumes=volumes)


def event_differences(first: Evaluation, other: Evaluation) -> EventDifferences | None:
    """The F1 of the events of `other` minus that of `first`, each with its paired 95% interval; None for images."""
    old, new = first.metrics.events, other.metrics.events
    if old is None or new is None:
        return None
    before, after = bootstrap_events(first.per_image), bootstrap_events(other.per_image)
    number = count_all_groups(first.per_image)
    by_class: dict[str, dict[str, Difference]] = {}
    for label, name in enumerate(old.per_class):
        by_class[name] = {}
        for index, point in enumerate(POINTS):
            resampled = after["f1"][:, label, index] - before["f1"][:, label, index]
            pair = old.per_class[name][point], new.per_class[name][point]
            enough = number if any(each.f1_interval for each in pair) else 0
            by_class[name][point] = _metric_difference(pair[0].f1, pair[1].f1, resampled, enough)
    mean = _metric_difference(old.event_f1, new.event_f1, after["event_f1"] - before["event_f1"], number)
    return EventDifferences(event_f1=mean, f1=by_class)


def volume_differences(first: Evaluation, other: Evaluation) -> VolumeDifferences | None:
    """The metrics by case of `other` minus those of `first`, each with its paired 95% interval; None for other axes.

    As in the metrics themselves, a case counts where it has a value: HD95 has none of a class that is found in one mask only.
    """
    old, new = first.metrics.volumes, other.metrics.volumes
    if old is None or new is None:
        return None
    labels = [list(first.metrics.per_class_iou).index(name) for name in old.per_class]
    overall: dict[CaseMetricName, Difference] = {}
    by_class: dict[str, dict[CaseMetricName, Difference]] = {name: {} for name in old.per_class}
    for metric in CASE_METRICS:
        tables = [case_table(one.per_image, metric)[:, labels] for one in (first, other)]
        before, after = (resampled_means(table, first.per_image.groups) for table in tables)
        in_both = first.per_image.count_groups(np.asarray(~np.isnan(tables).any(axis=0)))
        for index, name in enumerate(old.per_class):
            means = old.per_class[name][metric].mean, new.per_class[name][metric].mean
            by_class[name][metric] = _metric_difference(*means, after[:, index] - before[:, index], int(in_both[index]))
        mean = nan_mean(after) - nan_mean(before)
        number = int(in_both.max(initial=0))
        overall[metric] = _metric_difference(getattr(old, metric), getattr(new, metric), mean, number)
    return VolumeDifferences(**overall, per_class=by_class)


def case_table(tally: PerImageCounts, metric: str) -> Rates:
    """A metric of each case and class, N x C; NaN where there is nothing to measure."""
    nothing = np.full(tally.num_classes, np.nan)
    return np.array([nothing if image.case is None else getattr(image.case, metric) for image in tally.images])


def _metric_difference(old: Rate, new: Rate, resampled: NDArray[np.float64], images: int) -> Difference:
    """`resampled`: the difference in each resample, R; `images`: the number of images that the metric rests on."""
    if old is None or new is None:
        return Difference()
    value = round_or_none(new - old)
    if images < MIN_IMAGES:
        return Difference(value=value)
    low, high = ends = percentile_interval(resampled)
    return Difference(value=value, interval=plain_interval(ends), significant=bool(low > 0 or high < 0))


def as_dict(found: list[Evaluation]) -> dict[str, Any]:
    """The comparison as plain JSON values, without the counts of each image."""
    runs = [
        {
            "name": one.name,
            "file": str(one.file),
            **one.metrics.model_dump(mode="json", exclude={"per_image"}),
            "difference": one.differences and one.differences.model_dump(mode="json"),
        }
        for one in found
    ]
    return {"split": found[0].metrics.split, "runs": runs}


def print_comparison(found: list[Evaluation], console: Console) -> None:
    """Print the metrics of each run, the best in bold, and then the differences to the first."""
    first, *others = found
    table = _make_table(f"{first.metrics.split}, {count_samples(first.metrics)}", [one.name for one in found])
    if first.metrics.volumes:
        add_volume_rows(table, [one.metrics.volumes for one in found if one.metrics.volumes])
    if first.metrics.events:
        add_event_rows(table, [one.metrics.events for one in found if one.metrics.events])
    metrics = [one.metrics for one in found]
    for name, title in (headline_metrics(metrics) | other_metrics(metrics)).items():
        rates: list[Rate] = [getattr(one.metrics, name) for one in found]
        cells = [
            f"{format_rate(rate, 4)} {_bracket(getattr(one.metrics.intervals, name))}".strip()
            for rate, one in zip(rates, found, strict=True)
        ]
        table.add_row(title, *_bold_best(cells, rates, name))
    if all(each.threshold_curve for each in metrics):
        table.add_row("best F1 over thresholds", *map(best_threshold, metrics))
    for metric, title in (CLASS_METRICS | SIZE_METRICS).items():
        for name in getattr(first.metrics, metric):
            rates = [getattr(one.metrics, metric)[name] for one in found]
            table.add_row(name_text(f"{title} {name}"), *_bold_best(_class_cells(rates, metric), rates, metric))
    console.print(table)
    paired = {one.name: one.differences for one in others if one.differences is not None}
    if paired:
        console.print()
        console.print(difference_table(first.name, paired))
        console.print()
        noun = {"HW": "image", "T": "recording", "DHW": "case"}[first.metrics.axes]
        if any(row.group for row in first.metrics.per_image):
            noun = "group"
        note = f"Intervals hold 95% of the bootstrap resamples; those of differences are paired by {noun}."
        console.print(note, style="dim", highlight=False)
    for one in others:
        if one.differences is None:
            console.print(
                f"{one.name} was evaluated on different images or masks than {first.name}: no paired comparison.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def add_volume_rows(table: Table, volumes: list[VolumeMetrics]) -> None:
    """The means over the cases of each run: of the foreground, and of each class with the error of its volume."""
    for metric, title in CASE_METRICS.items():
        rates: list[Rate] = [getattr(each, metric) for each in volumes]
        cells = [format_rate(rate, 4) for rate in rates]
        if metric == "dice":
            cells = [
                f"{cell} {_bracket(each.dice_interval)}".strip() for cell, each in zip(cells, volumes, strict=True)
            ]
        table.add_row(f"mean {title}, by case", *_bold_best(cells, rates, metric))
    for name in volumes[0].per_class:
        for metric, title in CASE_METRICS.items():
            rates = [each.per_class[name][metric].mean for each in volumes]
            table.add_row(
                name_text(f"{title} {name}"), *_bold_best([format_rate(rate, 4) for rate in rates], rates, metric)
            )
        errors = [each.per_class[name]["volume_error"].mean for each in volumes]
        table.add_row(
            name_text(f"volume error {name}, ml"), *("-" if each is None else f"{each:+.3f}" for each in errors)
        )


def add_event_rows(table: Table, events: list[EventMetrics]) -> None:
    """The mean F1 of the events of each run, and that of each class's onsets and offsets with the timing error."""
    rates = [each.event_f1 for each in events]
    cells = [f"{format_rate(each.event_f1, 4)} {_bracket(each.event_f1_interval)}".strip() for each in events]
    table.add_row(f"event F1 ({events[0].tolerance_ms:g} ms)", *_bold_best(cells, rates, "event_f1"))
    for name, points in events[0].per_class.items():
        for point in points:
            found = [each.per_class[name][point] for each in events]
            cells = [f"{format_rate(each.f1, 4)}, {format_error(each)} ms" for each in found]
            table.add_row(name_text(f"F1, error {name} {point}"), *_bold_best(cells, [each.f1 for each in found], "f1"))


def difference_table(first: str, paired: dict[str, Differences]) -> Table:
    """The differences to the run `first`, by run name."""
    table = _make_table(f"Difference from {first}", list(paired))
    volumes = [each.volumes for each in paired.values() if each.volumes]
    for case_metric, title in CASE_METRICS.items() if volumes else ():
        cells = (_format_difference(getattr(each, case_metric), case_metric) for each in volumes)
        table.add_row(f"mean {title}, by case", *cells)
        for name in volumes[0].per_class:
            cells = (_format_difference(each.per_class[name][case_metric], case_metric) for each in volumes)
            table.add_row(name_text(f"{title} {name}"), *cells)
    events = [each.events for each in paired.values() if each.events]
    if events:
        table.add_row("event F1", *(_format_difference(each.event_f1, "event_f1") for each in events))
        for name, points in events[0].f1.items():
            for point in points:
                cells = (_format_difference(each.f1[name][point], "f1") for each in events)
                table.add_row(name_text(f"F1 {name} {point}"), *cells)
    for name, title in (HEADLINE_METRICS | OTHER_METRICS).items():
        if all(getattr(each, name).value is None for each in paired.values()):
            continue
        table.add_row(title, *(_format_difference(getattr(each, name), name) for each in paired.values()))
    for metric, title in (CLASS_METRICS | SIZE_METRICS).items():
        for name in getattr(next(iter(paired.values())), metric):
            cells = (_format_difference(getattr(each, metric)[name], metric) for each in paired.values())
            table.add_row(name_text(f"{title} {name}"), *cells)
    return table


def _class_cells(rates: list[Rate], metric: str) -> list[str]:
    """The rates of a class in each run as text; a class without an IoU is absent, one that is never predicted has no precision."""
    return [("absent" if metric == "per_class_iou" else "-") if rate is None else format_rate(rate) for rate in rates]


def _make_table(title: str, names: list[str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(name_text(title))
    for name in names:
        table.add_column(name_text(name))
    return table


def _bold_best(cells: list[str], rates: list[Rate], metric: str) -> list[Text]:
    """The cells, the best in bold unless all are equal."""
    known = {rate for rate in rates if rate is not None}
    best = (min if metric in LOWER_IS_BETTER else max)(known) if len(known) > 1 else None
    return [
        Text(cell, "bold" if rate is not None and rate == best else "") for cell, rate in zip(cells, rates, strict=True)
    ]


def _format_difference(difference: Difference, metric: str) -> Text:
    if difference.value is None:
        return Text("-")
    interval = difference.interval
    bracket = "" if interval is None else f" [{interval[0]:+.4f}..{interval[1]:+.4f}]"
    if not difference.significant:
        return Text(f"{difference.value:+.4f}{bracket} {NOT_SIGNIFICANT}", "dim")
    return Text(
        f"{difference.value:+.4f}{bracket}", "green" if (difference.value > 0) != (metric in LOWER_IS_BETTER) else "red"
    )


def _bracket(interval: Interval) -> str:
    return f"[{format_interval(interval)}]" if interval else ""
