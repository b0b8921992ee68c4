"""Evaluate a bundle on a data set: `maskserve evaluate BUNDLE DATA`.

The bundle predicts through the Segmenter that the service uses, and its predictions are compared with the masks at the
images' own size: the mIoU reported is the mIoU served. Images are streamed; of each, only some counts per class are kept
(`training/metrics/bootstrap.py`). Recordings are evaluated at their own rate, with their events
(`training/metrics/events.py`). Writes `metrics.json` and `report.html`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.atomic_write import check_writable, name_disk_full
from models.bundle import CHECKSUM_FILE, open_bundle
from models.console import Console
from models.errors import ConfigError, DataError
from models.imaging.decode import Labels
from models.inference.geometry import Image
from models.inference.segmenter import Prediction, Segmenter
from models.inference.signals import segment_signals
from models.inference.tta import TTAOptions
from models.inference.volumes import segment_volume
from models.sample import Sample
from models.spec import AXES, IGNORE_INDEX, BundleSpec, ClassInfo, InputRule
from training.data import SegmentationDataset, has_split, load_all_splits, load_split
from training.data.dataset import SPLITS, check_same_classes
from training.data.leads import arrange_leads, leads_for
from training.data.prefetch import NUM_THREADS, prefetch
from training.data.scan.pixel_stats import pixel_digest
from training.metrics.bootstrap import PerImageCounts, compute_metrics
from training.metrics.boundary_iou import boundary_counts
from training.metrics.calibration import reliability_bins
from training.metrics.confusion import ConfusionMatrix
from training.metrics.events import DEFAULT_TOLERANCE_MS, compute_event_metrics, count_events
from training.metrics.object_size import size_counts
from training.metrics.results import METRICS_FILE, EvaluatedBundle, EvaluationMetrics, VolumeMetrics
from training.metrics.thresholds import positive_label, score_counts
from training.metrics.volumes import DEFAULT_TOLERANCE as DEFAULT_TOLERANCE_MM
from training.metrics.volumes import compute_volume_metrics, measure_case
from training.reports.build import write_evaluation_report
from training.reports.console import print_metrics
from training.reports.latency import measure_latencies

REPORT_FILE = "report.html"
ALL_SPLITS = "all"  # as a split: every image with a mask
NUM_TIMED_IMAGES = 3


def evaluate(
    bundle: Path, data: Path, split: str = "test", out: Path | None = None, data_format: str = "auto", tta: str | None = None,
    engine: str = "auto", precision: str = "auto", device: str = "auto", console: Console | None = None,
    speed: bool = False, tolerance_ms: float = DEFAULT_TOLERANCE_MS, tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> EvaluationMetrics:  # fmt: skip
    """Measure a bundle on a split, or on `all` images; with `out`, write `metrics.json` and `report.html` there.

    `tta` is test-time augmentation, as in `flip,0.75,1,1.25`; the service uses none. With `speed` the report also shows
    how fast each engine is on this machine, which takes some seconds. `tolerance_ms`: how far an onset or offset of a signal may
    be off, in ms; `tolerance_mm`: the same of the surface of a volume, in mm.

    Returns: the content of metrics.json.
    Raises: BundleError, DataError, EngineError; ConfigError for an `out` that cannot be written.
    """
    console = console or Console()
    opened = open_bundle(bundle)
    create_output_folder(out)
    samples = fit_to_bundle(load_samples(data, split, data_format, opened.spec.classes), opened.spec, data)
    augmentation = TTAOptions.parse(tta) if tta else None
    segmenter = Segmenter.load(opened, engine, precision, device, tta=augmentation)
    assert segmenter.choice is not None  # `load` made it
    console.print(f"Engine: {segmenter.choice.reason}", highlight=False, markup=False, soft_wrap=True)
    matrix, tally = evaluate_split(segmenter, samples, console, True, tolerance_ms, tolerance_mm)
    metrics = EvaluationMetrics(
        **dict(compute_metrics(tally, samples.classes)),
        axes=samples.axes,
        events=compute_event_metrics(tally, samples.classes, tolerance_ms) if samples.axes == "T" else None,
        volumes=tally_volume_metrics(tally, samples.classes, tolerance_mm) if samples.axes == "DHW" else None,
        split=split,
        images=len(samples),
        images_without_mask=len(samples.unmatched_images),
        ignored_pixels=matrix.ignored_pixels,
        data=data.resolve().name,
        tta=tta,
        bundle=EvaluatedBundle(
            name=opened.spec.name, hash=opened.hash, calibration=opened.spec.calibration, **asdict(segmenter.choice)
        ),
        per_image=tally.to_rows(),
    )
    print_metrics(metrics, matrix, console)
    if out:
        metrics.save(out / METRICS_FILE)
        with console.status("writing the report"), name_disk_full(out / REPORT_FILE):
            timed = [samples.sample(index) for index in range(min(NUM_TIMED_IMAGES, len(samples)))] if speed else []
            latencies = measure_latencies(opened, timed) if timed else []
            write_evaluation_report(out / REPORT_FILE, metrics, opened, segmenter, samples, matrix, tally, latencies)
        console.print(f"{out}: {METRICS_FILE}, {REPORT_FILE}", highlight=False, markup=False, soft_wrap=True)
    return metrics


def load_samples(data: Path, split: str, data_format: str, classes: list[ClassInfo]) -> SegmentationDataset:
    """The split, or every image for `all`. `classes`: the bundle's. Raises: DataError if it has no image with a mask."""
    if split == ALL_SPLITS:
        return load_all_splits(data, data_format, classes)
    if split in SPLITS and not has_split(data, split, data_format):
        available = [name for name in SPLITS if has_split(data, name, data_format)]
        raise DataError(
            f"{data} has no image with a mask in the split {split}; it has the splits {', '.join(available) or 'none'}. "
            f"Name one, as in --split {(available or ['val'])[-1]}, or evaluate every image with --split {ALL_SPLITS}."
        )
    return load_split(data, split, data_format, classes=classes)


def fit_to_bundle(samples: SegmentationDataset, spec: BundleSpec, data: Path) -> SegmentationDataset:
    """The data set as the network of a bundle takes it. Raises: DataError for other classes, or images for a network of signals."""
    if samples.axes != spec.input.axes:
        raise DataError(
            f"{data} holds {AXES[samples.axes]}, and the bundle {spec.name} takes {AXES[spec.input.axes]}; evaluate it on those."
        )
    check_same_classes(samples, spec.classes, data)
    return replace(arrange_leads(samples, leads_for(spec.input)), input=spec.input)


def evaluation_folder(bundle: Path) -> Path:
    """Default folder of an evaluation: `evaluation` beside a run's `bundle`, `evaluation-NAME` beside another bundle.

    Bundles of other names may lie side by side, so each gets a folder of its own.
    """
    bundle = bundle.resolve()
    return bundle.with_name("evaluation" if bundle.name == "bundle" else f"evaluation-{bundle.name}")


def tally_volume_metrics(tally: PerImageCounts, classes: list[ClassInfo], tolerance: float) -> VolumeMetrics:
    """The metrics of the cases of a tally. `tolerance`: mm."""
    measured = [image for image in tally.images if image.case]
    cases = [image.case for image in measured if image.case]
    return compute_volume_metrics(cases, [image.group or image.name for image in measured], classes, tolerance)


def create_output_folder(out: Path | None) -> None:
    """Create `out` before minutes of measuring. Raises: ConfigError if that is not possible."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder.")
    if any((folder / CHECKSUM_FILE).exists() for folder in (out.resolve(), *out.resolve().parents)):
        raise ConfigError(
            f"--out {out} is inside a bundle, whose files are sealed by checksums; choose another folder."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written ({error.strerror}); name another folder.") from error


def evaluate_split(
    segmenter: Segmenter, samples: SegmentationDataset, console: Console, all_metrics: bool = False,
    tolerance_ms: float = DEFAULT_TOLERANCE_MS, tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> tuple[ConfusionMatrix, PerImageCounts]:  # fmt: skip
    """Segment every image; returns the confusion matrix of the split and the counts of each image.

    `all_metrics`: also count calibration and object sizes, which takes longer, and the events of signals. The labels are the same
    with and without.
    Memory holds a few images at a time, whatever their number. Raises: DataError for a mask that does not fit its image.
    """
    classes, number = len(samples.classes), len(samples)
    total, tally = ConfusionMatrix(classes), PerImageCounts(classes)
    positive = positive_label([entry.name for entry in samples.classes]) if classes == 2 and all_metrics else None
    measure = partial(measure_sample, segmenter.rule, classes, positive, all_metrics, tolerance_ms, tolerance_mm)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        pairs = prefetch(pool, (partial(read_pair, samples, index) for index in range(number)))
        # Segmenting happens in this thread, when `prefetch` takes the next call from the generator.
        counting = (partial(measure, *each) for each in segment_pairs(segmenter, samples.axes, pairs, all_metrics))
        counted = track(
            prefetch(pool, counting),
            "evaluating",
            number,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        for pair, (single, counts) in zip(samples.pairs, counted, strict=True):
            total += single
            tally.add(pair.name, single.class_counts, **counts, group=pair.group)
    return total, tally


def segment_pairs(
    segmenter: Segmenter, axes: str, pairs: Iterator[tuple[Sample, Labels]], confidence: bool
) -> Iterator[tuple[Sample, Labels, Prediction]]:
    """Samples with their ground truth and prediction. Signals run together as in the service, so that the labels are the same."""
    if axes == "T":
        pairs, ahead = tee(pairs)
        predictions = segment_signals(segmenter, (sample for sample, _ in ahead), confidence)
        for (sample, target), prediction in zip(pairs, predictions, strict=True):
            yield sample, target, prediction
        return
    segment = segment_volume if axes == "DHW" else Segmenter.segment
    for sample, target in pairs:
        yield sample, target, segment(segmenter, sample, confidence)


def measure_sample(
    rule: InputRule, classes: int, positive: int | None, all_metrics: bool, tolerance_ms: float, tolerance_mm: float,
    sample: Sample, target: Labels, prediction: Prediction,
) -> tuple[ConfusionMatrix, dict[str, Any]]:  # fmt: skip
    """The confusion matrix of a sample, and the other arguments of `PerImageCounts.add`.

    With `all_metrics` they have the events of a signal, and the surfaces of a volume as well. `positive`: of two classes, the
    label that thresholds are of.
    """
    single, edges, digest, bins, sizes = measure_image(sample.values, target, prediction, classes, all_metrics)
    counts: dict[str, Any] = {"edges": edges, "digest": digest, "bins": bins, "sizes": sizes}
    if positive is not None and prediction.confidence is not None:
        known = target != IGNORE_INDEX
        labels, confidence = prediction.labels[known], prediction.confidence[known]
        probability = np.where(labels == positive, confidence, 1 - confidence)
        probability[labels == IGNORE_INDEX] = 0  # nodata
        counts["scores"] = score_counts(probability, target[known] == positive)
    if sample.axes == "T" and all_metrics:
        rate = sample.rate or rule.rate or 1.0  # as in `segment_signal`
        counts["events"] = count_events(target, prediction.labels, rate, classes, tolerance_ms)
    if sample.axes == "DHW" and all_metrics:
        spacing = sample.spacing or rule.spacing  # as in `segment_volume`
        steps = spacing.values if spacing else (1.0, 1.0, 1.0)
        counts["case"] = measure_case(target, prediction.labels, classes, steps, tolerance_mm)
    return single, counts


def measure_image(
    image: Image, target: Labels, prediction: Prediction, classes: int, all_metrics: bool
) -> tuple[ConfusionMatrix, NDArray[np.int64], str, NDArray[np.float64] | None, NDArray[np.int64] | None]:
    """The confusion matrix of one image, its boundary pixels by class, 3 x C, and a digest of image and ground truth.

    With `all_metrics` also its `reliability_bins`, if there is a confidence, and `size_counts`; otherwise None.
    `image`: H x W x C, of a photograph RGB uint8; masks: uint8 H x W. Samples of other axes have no boundaries and sizes.
    """
    single = ConfusionMatrix(classes)
    single.add(target, prediction.labels)
    bins = sizes = None
    if all_metrics:
        known = target != IGNORE_INDEX
        right = prediction.labels == target
        sizes = size_counts(target, known & ~right) if target.ndim == 2 else None
        if prediction.confidence is not None:
            bins = reliability_bins(prediction.confidence[known], right[known])
    digest = f"{pixel_digest(image)[:16]}{pixel_digest(target)[:16]}"
    edges = np.zeros((3, classes), np.int64)
    if target.ndim == 2:  # of an image
        edges = boundary_counts(target, prediction.labels, classes)
    return single, edges, digest, bins, sizes


def format_size(lengths: tuple[int, ...]) -> str:
    """Such as "640 x 480": the width first."""
    return " x ".join(map(str, reversed(lengths)))


def read_pair(samples: SegmentationDataset, index: int) -> tuple[Sample, Labels]:
    """An image as the network takes it, and its mask, uint8 H x W; recordings and volumes at their own rate or spacing.

    Raises: DataError if they do not fit, or not the classes.
    """
    image, target = samples.record_and_labels(index) if samples.axes != "HW" else samples.sample_and_labels(index)
    mask = samples.pairs[index].mask
    if image.size != target.shape:
        raise DataError(
            f"{mask} has the size {format_size(target.shape)}, its image {format_size(image.size)}; "
            "run `maskserve data lint` on the data set."
        )
    unknown = target[(target >= len(samples.classes)) & (target != IGNORE_INDEX)]
    if unknown.size:
        raise DataError(
            f"{mask} holds the label {unknown[0]}, but the data set has {len(samples.classes)} classes; "
            "run `maskserve data lint` on it."
        )
    return image, target
