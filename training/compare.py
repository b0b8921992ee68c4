"""Put evaluations side by side: `maskserve compare RUN RUN ...`.

Two intervals that overlap say little: both runs met the same easy and hard images. So a difference is resampled itself,
image by image of both runs at once (a paired bootstrap); where its interval holds 0, no difference is shown.
It is of these networks on these images: what another seed would have done is not in it.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.bundle import CHECKSUM_FILE
from models.errors import ConfigError, RunError
from training.evaluate import METRICS_FILE, evaluation_folder
from training.metrics.bootstrap import MIN_IMAGES, PerImageCounts, bootstrap_metrics, images_per_class, interval_to_list
from training.metrics.bootstrap import percentile_interval as middle
from training.metrics.confusion import round_or_none
from training.reports.console import HEADLINE_METRICS, format_interval, format_rate

NOT_SIGNIFICANT = "not significant"


@dataclass
class Evaluation:
    """A run's evaluation, read back."""

    name: str
    file: Path
    metrics: dict[str, Any]
    per_image: PerImageCounts
    # To the first run, by metric (of classes: by name too): value, interval, shown; None where it is not paired.
    difference: dict[str, Any] | None = None


def compare(runs: list[Path], as_json: bool, console: Console) -> None:
    """Print the evaluations of two or more runs side by side, as a table or as JSON.

    A run is a run folder, a bundle, an evaluation's folder, or its metrics.json.
    Raises: ConfigError for fewer than two; RunError where one has no evaluation, or where they do not belong together.
    """
    if len(runs) < 2:
        raise ConfigError(
            "One run has nothing to be compared with; name two or more, as in `maskserve compare RUN RUN`."
        )
    found = assign_names(runs, [read_evaluation(run) for run in runs])
    first, *others = found
    for other in others:
        check_comparable(first, other)
        if align_images(first, other):
            other.difference = paired_differences(first, other)
    if as_json:
        print(json.dumps(as_dict(found), indent=2))
    else:
        print_comparison(found, console)


def read_evaluation(run: Path) -> Evaluation:
    """The evaluation that a run has. Raises: RunError."""
    places = [run] if run.is_file() else [run / METRICS_FILE, run / "evaluation" / METRICS_FILE]
    if (run / CHECKSUM_FILE).is_file():
        places.append(evaluation_folder(run) / METRICS_FILE)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise RunError(
            f"{run} has no evaluation{'' if run.exists() else ', for it is not there'}; {_evaluate_command(run)}"
        )
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        check_up_to_date(run, file, metrics)
        tally = PerImageCounts.from_rows(metrics["per_image"], len(metrics["per_class_iou"]))
        missing = [
            name
            for name in (*HEADLINE_METRICS, "per_class_iou")
            if name not in metrics or name not in metrics["intervals"]
        ]
        if missing:
            raise KeyError(*missing)
        return Evaluation("", file, metrics, tally)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError(f"{file} is no evaluation that this maskserve wrote; evaluate the bundle again.") from error


def check_up_to_date(run: Path, file: Path, metrics: dict[str, Any]) -> None:
    """Raises: RunError where the run's bundle is another by now than the one that was evaluated."""
    for bundle in (run, run / "bundle"):
        sums = bundle / CHECKSUM_FILE
        if sums.is_file() and hashlib.sha256(sums.read_bytes()).hexdigest() != metrics["bundle"]["hash"]:
            raise RunError(f"{file} is of another bundle than {bundle} holds now; {_evaluate_command(run)}")


def _evaluate_command(run: Path) -> str:
    """The command to type, with the data set where the run knows it."""
    data = "DATA"
    with suppress(OSError, ValueError, KeyError, TypeError):  # it is no run, or a broken one
        data = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]
    bundle = run if (run / CHECKSUM_FILE).is_file() else run / "bundle"
    export = (
        ""
        if (bundle / CHECKSUM_FILE).is_file() or not (run / "run.json").is_file()
        else f"maskserve export {run}, then "
    )
    return f"type: {export}maskserve evaluate {bundle} {data}"


def assign_names(runs: list[Path], found: list[Evaluation]) -> list[Evaluation]:
    """The same with a name for each: its folder's, or all that was typed where folders go by the same name."""
    short = [
        (one.file.parent.parent if one.file.parent.name.startswith("evaluation") else one.file.parent).resolve().name
        for one in found
    ]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    for place, (one, name) in enumerate(zip(found, names, strict=True), start=1):
        one.name = name if names.count(name) == 1 else f"{name} ({place})"
    return found


def check_comparable(first: Evaluation, other: Evaluation) -> None:
    """Raises: RunError where two were asked different things."""
    for what, one, two in (
        ("split", first.metrics.get("split"), other.metrics.get("split")),
        ("classes", ", ".join(first.metrics["per_class_iou"]), ", ".join(other.metrics["per_class_iou"])),
    ):
        if one != two:
            raise RunError(
                f"{first.file} and {other.file} cannot be compared: their {what} differ, {one} and {two}; "
                "evaluate both on the same."
            )


def align_images(first: Evaluation, other: Evaluation) -> bool:
    """Whether two were asked about the same images with the same truth."""
    if sorted(first.per_image.names) != sorted(other.per_image.names):
        return False
    other.per_image = other.per_image.reorder(first.per_image.names)
    return bool((first.per_image.counts[:, 0, 1] == other.per_image.counts[:, 0, 1]).all())


def paired_differences(first: Evaluation, other: Evaluation) -> dict[str, Any]:
    """`other` less `first`, each metric with its paired 95% interval, and whether that leaves 0 out."""
    before, after = bootstrap_metrics(first.per_image), bootstrap_metrics(other.per_image)
    told: dict[str, Any] = {}
    for name in HEADLINE_METRICS:
        told[name] = _metric_difference(
            first.metrics[name], other.metrics[name], after[name] - before[name], len(first.per_image)
        )
    seen = np.maximum(images_per_class(first.per_image), images_per_class(other.per_image)).tolist()
    draws = after["per_class_iou"] - before["per_class_iou"]
    told["per_class_iou"] = {
        label: _metric_difference(was, other.metrics["per_class_iou"][label], draws[:, place], seen[place])
        for place, (label, was) in enumerate(first.metrics["per_class_iou"].items())
    }
    return told


def _metric_difference(
    was: float | None, now: float | None, draws: np.ndarray[Any, np.dtype[np.float64]], images: int
) -> dict[str, Any]:
    """`images`: how many the metric rests on."""
    if was is None or now is None:
        return {"value": None, "interval": None, "significant": False}
    if images < MIN_IMAGES:
        return {"value": round_or_none(now - was), "interval": None, "significant": False}
    low, high = middle(draws)
    return {
        "value": round_or_none(now - was),
        "interval": interval_to_list(np.array([low, high])),
        "significant": bool(low > 0 or high < 0),
    }


def as_dict(found: list[Evaluation]) -> dict[str, Any]:
    """Everything as plain JSON values, the images' own counts left out."""
    runs = [
        {
            "name": one.name,
            "file": str(one.file),
            **{name: value for name, value in one.metrics.items() if name != "per_image"},
            "difference": one.difference,
        }
        for one in found
    ]
    return {"split": found[0].metrics["split"], "runs": runs}


def print_comparison(found: list[Evaluation], console: Console) -> None:
    """Print what each run has, the best in bold, and then the differences to the first."""
    first, *others = found
    table = _make_table(f"{first.metrics['split']}, {first.metrics['images']} images", [one.name for one in found])
    for name, title in HEADLINE_METRICS.items():
        cells = [
            f"{format_rate(one.metrics[name], 4)} {_bracket(one.metrics['intervals'][name])}".strip() for one in found
        ]
        table.add_row(title, *_bold_best(cells, [one.metrics[name] for one in found]))
    for label in first.metrics["per_class_iou"]:
        values = [one.metrics["per_class_iou"][label] for one in found]
        cells = ["absent" if value is None else format_rate(value) for value in values]
        table.add_row(Text(f"IoU {label}"), *_bold_best(cells, values))
    console.print(table)
    paired = [one for one in others if one.difference is not None]
    if paired:
        console.print()
        console.print(difference_table(first, paired))
        console.print()
        console.print(
            "Intervals hold 95% of the resamples; of differences, image by image.", style="dim", highlight=False
        )
    for one in others:
        if one.difference is None:
            told = f"{one.name} met other images, or other masks, than {first.name}: their difference is not judged."
            console.print(told, markup=False, highlight=False, soft_wrap=True)


def difference_table(first: Evaluation, paired: list[Evaluation]) -> Table:
    """The differences to the first run, and whether they are shown."""
    table = _make_table(f"less {first.name}", [one.name for one in paired])
    for name, title in (
        *HEADLINE_METRICS.items(),
        *((label, f"IoU {label}") for label in first.metrics["per_class_iou"]),
    ):
        cells = []
        for one in paired:
            assert one.difference is not None  # it is paired
            cells.append(
                _format_difference(
                    (one.difference if name in HEADLINE_METRICS else one.difference["per_class_iou"])[name]
                )
            )
        table.add_row(Text(title), *cells)
    return table


def _make_table(title: str, names: list[str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(Text(title))
    for name in names:
        table.add_column(Text(name))
    return table


def _bold_best(cells: list[str], values: list[float | None]) -> list[Text]:
    """The best in bold, unless all are equal."""
    there = [value for value in values if value is not None]
    best = max(there, default=None) if len(set(there)) > 1 else None
    return [
        Text(cell, "bold" if value is not None and value == best else "")
        for cell, value in zip(cells, values, strict=True)
    ]


def _format_difference(one: dict[str, Any]) -> Text:
    if one["value"] is None:
        return Text("-")
    ends = one["interval"]
    span = "" if ends is None else f" [{ends[0]:+.4f}..{ends[1]:+.4f}]"
    if not one["significant"]:
        return Text(f"{one['value']:+.4f}{span} {NOT_SIGNIFICANT}", "dim")
    return Text(f"{one['value']:+.4f}{span}", "green" if one["value"] > 0 else "red")


def _bracket(ends: list[float] | None) -> str:
    return f"[{format_interval(ends)}]" if ends else ""
