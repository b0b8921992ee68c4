"""Writes `report.html`: an evaluation as one page that opens offline.

`templates/page.html` holds the order of its sections; `confusion_matrix`, `gallery`, `line_chart` and `latency` render
theirs.
"""

import datetime
import math
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from models.bundle import Bundle
from models.engines.host_info import host_info
from models.inference.segmenter import Segmenter
from training.data import SegmentationDataset
from training.metrics.bootstrap import PerImageCounts
from training.metrics.confusion import ConfusionMatrix
from training.metrics.monitor import DEFAULT_MONITOR
from training.metrics.resampling import CONFIDENCE_LEVEL, NUM_RESAMPLES, SEED
from training.metrics.results import EvaluationMetrics, Interval, Rate
from training.metrics.thresholds import positive_label
from training.reports.confusion_matrix import confusion_section
from training.reports.console import count_samples, headline_metrics, metric_warnings
from training.reports.gallery import gallery_section
from training.reports.latency import EngineLatency, engines_section
from training.reports.layout import render, render_page
from training.reports.line_chart import curves_section, threshold_section
from training.reports.records import records_section

CURVES_FILE = "report/metrics.csv"  # in a bundle


def write_evaluation_report(
    target: Path,
    metrics: EvaluationMetrics,
    bundle: Bundle,
    segmenter: Segmenter,
    samples: SegmentationDataset,
    matrix: ConfusionMatrix,
    tally: PerImageCounts,
    latencies: list[EngineLatency],
) -> None:
    """Write the page of an evaluation; segments a few images again to show them. Raises: OSError."""
    evaluated = metrics.bundle
    pixels = tally.counts[:, 0, 1].sum(axis=0).tolist()
    used = (segmenter.choice.engine_id, evaluated.precision) if segmenter.choice else ("", "")
    main = render(
        "page.html",
        metrics=metrics,
        headline_metrics=headline_metrics([metrics]),
        warnings=[*metric_warnings(metrics, matrix), *bundle.spec.provenance.get("warnings", [])],
        classes=list(zip(samples.classes, pixels, strict=True)),
        total_pixels=sum(pixels),
        confusion=confusion_section(matrix, samples.classes),
        gallery=(records_section if metrics.events else gallery_section)(segmenter, samples, tally),
        thresholds=threshold_section(metrics.threshold_curve) if metrics.threshold_curve else None,
        positive=samples.classes[positive_label([entry.name for entry in samples.classes])].name
        if metrics.threshold_curve
        else "",
        curves=curves_section(find_training_curves(bundle), find_monitor(bundle)),
        engines=engines_section(bundle, latencies, used),
        method=[*describe_method(metrics, matrix), *describe_monitor(bundle), *describe_calibration(bundle)],
        facts=describe_run(bundle),
        headline_axis=zoomed_axis(headline_intervals(metrics)),
        class_axis=zoomed_axis(class_intervals(metrics)),
        event_axis=zoomed_axis(event_intervals(metrics)),
    )
    page = render_page(
        title=f"{evaluated.name} on {metrics.data} ({metrics.split})",
        eyebrow="maskserve evaluation",
        name=evaluated.name,
        subtitle=f"{count_samples(metrics)} of {metrics.data}, split {metrics.split}, {len(samples.classes)} classes; "
        f"{evaluated.engine} {evaluated.precision} on {evaluated.device}",
        nav=render("nav.html", is_signal=metrics.events is not None, has_thresholds=bool(metrics.threshold_curve)),
        main=main,
    )
    target.write_text(page, encoding="utf-8", errors="backslashreplace")


def describe_run(bundle: Bundle) -> dict[str, str]:
    """When, by what and on what the evaluation was made, by title."""
    host = host_info()
    training = bundle.spec.provenance.get("config", {}).get("seed")
    seeds = [f"training {training}"] * (training is not None) + [f"intervals {SEED}"]
    by_command = Path(sys.argv[0]).name == "maskserve"
    return {
        "Date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Version": f"maskserve {version('maskserve')}",
        **({"Command": shlex.join(["maskserve", *sys.argv[1:]])} if by_command else {}),
        "Seed": ", ".join(seeds),
        "Hardware": f"{host['cpu']}, {host['cores']} cores" + (f", {host['gpu']}" if host["gpu"] else ""),
    }


def headline_intervals(metrics: EvaluationMetrics) -> list[tuple[Rate, Interval]]:
    """The headline metrics, each with its interval."""
    first = [(metrics.events.event_f1, metrics.events.event_f1_interval)] if metrics.events else []
    return first + [(getattr(metrics, name), getattr(metrics.intervals, name)) for name in headline_metrics([metrics])]


def class_intervals(metrics: EvaluationMetrics) -> list[tuple[Rate, Interval]]:
    """The IoU of each class with its interval."""
    return [(value, metrics.intervals.per_class_iou[name]) for name, value in metrics.per_class_iou.items()]


def event_intervals(metrics: EvaluationMetrics) -> list[tuple[Rate, Interval]]:
    """The F1 of the onsets and offsets of each class with its interval; of signals."""
    classes = metrics.events.per_class.values() if metrics.events else ()
    return [(each.f1, each.f1_interval) for points in classes for each in points.values()]


def zoomed_axis(rates: list[tuple[Rate, Interval]]) -> tuple[float, float]:
    """The ends of an axis that holds all rates and intervals, multiples of 0.05: on 0 to 1 most intervals are a dot."""
    values = [value for rate, interval in rates for value in (rate, *(interval or ())) if value is not None]
    if not values:
        return 0.0, 1.0
    low, high = math.floor(min(values) * 20 + 1e-9) / 20, math.ceil(max(values) * 20 - 1e-9) / 20
    return (low, high) if low < high else (max(0.0, low - 0.05), min(1.0, high + 0.05))


def find_training_curves(bundle: Bundle) -> Path | None:
    """The metrics.csv of the training of a bundle: in the bundle, or else in the run that holds it."""
    if bundle.has_file(CURVES_FILE):
        return bundle.folder / CURVES_FILE
    beside = bundle.folder.resolve().parent / "metrics.csv"
    return beside if beside.is_file() else None


def find_monitor(bundle: Bundle) -> str:
    """The validation metric that chose the checkpoint of a bundle; miou if it was trained elsewhere."""
    return str(bundle.spec.provenance.get("config", {}).get("monitor", DEFAULT_MONITOR))


def describe_monitor(bundle: Bundle) -> list[str]:
    """Which validation metric chose the checkpoint, for a bundle that was trained here."""
    trained = "config" in bundle.spec.provenance
    return [f"The checkpoint with the best {find_monitor(bundle)} on the validation images was exported."] * trained


def describe_calibration(bundle: Bundle) -> list[str]:
    """What an export fitted on validation images, and what that changed there."""
    fitted, sentences = bundle.spec.calibration, []
    if fitted and fitted.f1:
        biases = ", ".join(f"{name} {bias:+.2f}" for name, bias in fitted.bias.items())
        sentences.append(
            f"The export added a bias to logits for the best F1 on {fitted.images} validation images ({biases}): mean F1 of these "
            f"classes {fitted.f1[0]:.4f} before, {fitted.f1[1]:.4f} after."
        )
    if fitted and fitted.ece:
        sentences.append(
            f"The export divides logits by the temperature {fitted.temperature:.3f}: calibration error on {fitted.images} "
            f"validation images {fitted.ece[0]:.4f} before, {fitted.ece[1]:.4f} after."
        )
    return sentences


def describe_method(metrics: EvaluationMetrics, matrix: ConfusionMatrix) -> list[str]:
    """Sentences on how the figures were measured and what they mean."""
    counted = int(matrix.class_counts[1].sum())
    total = matrix.ignored_pixels + counted
    ignored = matrix.ignored_pixels / total if total else 0.0
    bundle = metrics.bundle
    resampled = "images"
    if metrics.events:
        resampled = "groups (patients)" if any(row.group for row in metrics.per_image) else "recordings"
    used = [
        f"Test-time augmentation: {metrics.tta or 'none'}. Engine: {bundle.reason}.",
        f"{counted:,} {'time steps' if metrics.events else 'pixels'} were counted; {ignored:.1%} of all are ignored in the ground "
        "truth. A prediction that is no class is a miss.",
        f"Intervals hold {CONFIDENCE_LEVEL:.0%} of {NUM_RESAMPLES:,} bootstrap resamples of the {resampled}, with replacement.",
        *CLASS_SENTENCES,
    ]
    if metrics.events:
        return [
            f"The bundle {bundle.name} ({bundle.hash[:12]}) segmented every recording with the code that serves it, and each "
            "time step was compared with the labels at the recording's own rate.",
            *used,
            *EVENT_SENTENCES,
        ]
    return [
        f"The bundle {bundle.name} ({bundle.hash[:12]}) segmented every image with the code that serves it, and each "
        "pixel was compared with the mask at the image's own size.",
        *used,
        *IMAGE_SENTENCES,
    ]


CLASS_SENTENCES = (
    "A mean over classes uses those that occur in the ground truth or the prediction, precision those that are predicted, "
    "recall those in the ground truth; an absent class has no figure instead of 0.",
    "Precision: the fraction of the pixels predicted as a class that are of it. Recall: the fraction of the pixels of a "
    "class that are predicted as it. Foreground means leave out the class named background.",
    "Specificity: the fraction of the pixels of other classes that are not predicted as the class. False positive images: "
    "the fraction of the images without the class on which it is predicted, if only in one pixel.",
)
IMAGE_SENTENCES = (
    "The expected calibration error is the mean distance of confidence and accuracy over 10 bins of confidence (Guo et al. "
    "2017). Objects are connected areas of one class, the background's too; their size is their greatest thickness.",
    "Boundary IoU compares only the pixels within 2% of the image's diagonal from a contour (Cheng et al. 2021).",
)
EVENT_SENTENCES = (
    "A pixel of these definitions is a time step, an image a recording.",
    "Events are stretches of one class. Sensitivity: the fraction of the annotated onsets (offsets) that are matched. PPV: the "
    "fraction of the predicted ones that are. F1: their harmonic mean. Onsets and offsets are matched one to one, as many as "
    "possible, with the least total error (the tolerance of 150 ms is that of ANSI/AAMI EC57).",
    "The error is the predicted time minus the annotated one, of those that are matched; SD is its standard deviation.",
    "What is not annotated is not judged: a predicted event there may match, but is never false. An event that the recording's "
    "end cuts has no onset (or offset) there.",
)
