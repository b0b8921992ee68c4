"""Where it fails: worst images, confusions, errors by distance to a border and by object size, calibration, and shifted masks.

Images are segmented at their own size by the Segmenter, as in an evaluation; calibration and object sizes are measured by its
functions.
"""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.explain.colors import label_colors, shrink
from models.explain.facts import Facts, Finding
from models.explain.thresholds import THRESHOLDS
from models.imaging.decode import RGB, Labels
from models.inference.segmenter import Segmenter
from models.readers.composite import to_rgb
from models.sample import Sample
from models.spec import IGNORE_INDEX, ClassInfo
from training.data import SegmentationDataset
from training.explain.source import Source
from training.metrics.calibration import NUM_BINS, expected_calibration_error, reliability_bins
from training.metrics.confusion import ConfusionMatrix
from training.metrics.object_size import SIZES, size_counts

TITLE = "Where it fails"
MAX_IMAGES, NUM_WORST, NUM_CONFUSIONS = 100, 4, 8
DISTANCES = (1, 2, 4, 8, 16, 32)  # pixels from a border between classes: upper ends of the bins; the last bin has none
NEAR_BORDER = 4  # pixels, for the finding
MAX_SHIFT = 8  # pixels, of masks against images
NUM_SWAPPED = 8  # images that are also segmented with reversed channels
MIN_CONTRAST = 1.15  # edge strength at the best shift / at none, before masks count as shifted
MIN_GAIN = 1.01  # agreement at the best shift / at none, likewise
MIN_ERROR = 0.005  # fraction of pixels; below it, where the errors lie is no finding


@dataclass
class Tally:
    """Sums over the images."""

    confusion: ConfusionMatrix
    bins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, NUM_BINS)))  # pixels, confidence, right
    by_distance: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(DISTANCES) + 1), np.int64))
    by_size: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(SIZES) + 1), np.int64))
    near: int = 0  # errors within NEAR_BORDER
    images: list[dict[str, Any]] = field(default_factory=list)
    edge_scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2 * MAX_SHIFT + 1,) * 2))
    match_scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2 * MAX_SHIFT + 1,) * 2))
    swapped: list[float] = field(default_factory=list)  # accuracy with reversed channels - accuracy


def compute(source: Source, samples: SegmentationDataset) -> Facts:
    """The sums over up to MAX_IMAGES images of the data, and views of the worst ones."""
    tally = Tally(ConfusionMatrix(len(source.classes)))
    indices = samples.evenly_spaced_indices(MAX_IMAGES)
    for number, index in enumerate(indices):
        sample, target = samples.sample_and_labels(index)
        swap = number < NUM_SWAPPED and source.segmenter.rule.is_photograph
        add_image(tally, source.segmenter, samples.pairs[index].name, index, sample, target, swap)
    worst = sorted(tally.images, key=lambda row: row["accuracy"])[:NUM_WORST]
    images: dict[str, RGB] = {}
    for rank, row in enumerate(worst):
        images |= worst_images(source.segmenter, samples, row["index"], rank, source.classes)
    return Facts(summarise(tally, source.classes, worst), images)


def add_image(
    tally: Tally, segmenter: Segmenter, name: str, index: int, sample: Sample, target: Labels, swap: bool
) -> None:
    """Add an image and its mask uint8 H x W to the sums."""
    prediction = segmenter.segment(sample, confidence=True)
    assert prediction.confidence is not None
    labels, known = prediction.labels, target != IGNORE_INDEX
    if not known.any():
        return
    right = (labels == target) & known
    wrong = known & ~right
    tally.confusion.add(target, labels)
    tally.bins += reliability_bins(prediction.confidence[known], right[known])
    distance = border_distance(target)
    bins = np.searchsorted(DISTANCES, distance, side="left")
    for row, mask in enumerate((known, wrong)):
        tally.by_distance[row] += np.bincount(bins[mask], minlength=len(DISTANCES) + 1)
    tally.near += int((wrong & (distance <= NEAR_BORDER)).sum())
    tally.by_size += size_counts(target, wrong)
    tally.images.append({"name": name, "index": index, "accuracy": round(float(right.sum() / known.sum()), 4)})
    tally.edge_scores += edge_scores(to_rgb(sample.values, segmenter.rule), target)
    tally.match_scores += match_scores(labels, target)
    if swap:
        swapped = segmenter.segment(np.ascontiguousarray(sample.values[..., ::-1])).labels
        tally.swapped.append(float(((swapped == target)[known]).mean() - right.sum() / known.sum()))


def border_distance(target: Labels) -> NDArray[np.float32]:
    """For each pixel, the distance in pixels to the nearest pixel of another class, >= 1; ignored pixels are no class."""
    edge = np.ones(target.shape, np.uint8)
    for axis in (0, 1):
        first, second = target[:-1] if axis == 0 else target[:, :-1], target[1:] if axis == 0 else target[:, 1:]
        differ = (first != second) & (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
        (edge[:-1] if axis == 0 else edge[:, :-1])[differ] = 0
        (edge[1:] if axis == 0 else edge[:, 1:])[differ] = 0
    if edge.all():
        return np.full(target.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform(edge, cv2.DIST_L2, 5) + 1, np.float32)


def edge_scores(image: RGB, target: Labels) -> NDArray[np.float64]:
    """The strength of the image's edges under the borders of the mask moved by (dy, dx) = -MAX_SHIFT..MAX_SHIFT.

    The maximum lies at (0, 0) if image and mask match, and at the opposite of the shift if the mask was shifted.
    """
    gray = image.astype(np.float32).mean(axis=2)
    gray = cv2.GaussianBlur(gray, (0, 0), 1.0)
    strength = np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    border = border_distance(target) <= 1
    return shifted_means(strength.astype(np.float64) / max(1e-6, float(strength.mean())), border)


def shifted_means(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean of values H x W over a mask moved by (dy, dx), for all shifts up to MAX_SHIFT; zeros for an empty mask."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    span = range(-MAX_SHIFT, MAX_SHIFT + 1)
    keep = (rows >= MAX_SHIFT) & (rows < height - MAX_SHIFT) & (columns >= MAX_SHIFT) & (columns < width - MAX_SHIFT)
    rows, columns = rows[keep], columns[keep]
    if not rows.size:
        return np.zeros((2 * MAX_SHIFT + 1,) * 2)
    return np.array([[values[rows + dy, columns + dx].mean() for dx in span] for dy in span])


def match_scores(prediction: Labels, target: Labels) -> NDArray[np.float64]:
    """The agreement of the prediction with the mask moved by (dy, dx), over all shifts up to MAX_SHIFT."""
    size, span = target.shape, range(-MAX_SHIFT, MAX_SHIFT + 1)
    if min(size) <= 2 * MAX_SHIFT:
        return np.zeros((2 * MAX_SHIFT + 1,) * 2)
    core = (slice(MAX_SHIFT, size[0] - MAX_SHIFT), slice(MAX_SHIFT, size[1] - MAX_SHIFT))
    mask = target[core]
    known = mask != IGNORE_INDEX
    if not known.any():
        return np.zeros((2 * MAX_SHIFT + 1,) * 2)
    scores = []
    for dy in span:
        rows = slice(MAX_SHIFT + dy, size[0] - MAX_SHIFT + dy)
        scores.append(
            [
                ((prediction[rows, MAX_SHIFT + dx : size[1] - MAX_SHIFT + dx] == mask) & known).sum() / known.sum()
                for dx in span
            ]
        )
    return np.array(scores, np.float64)


def best_shift(scores: NDArray[np.float64], contrast: float) -> tuple[int, int]:
    """The (dx, dy) of the highest score; (0, 0) if it is not `contrast` times that of no shift and of the opposite one.

    Masks that are drawn too thick match better when they are shifted to any side.
    """
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    if scores[row, column] < contrast * max(scores[MAX_SHIFT, MAX_SHIFT], scores[::-1, ::-1][row, column], 1e-12):
        return 0, 0
    return int(column) - MAX_SHIFT, int(row) - MAX_SHIFT


def summarise(tally: Tally, classes: list[ClassInfo], worst: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the sums."""
    ece, bias = (float(np.nan_to_num(value)) for value in expected_calibration_error(tally.bins))
    errors = max(1, int(tally.by_distance[1].sum()))
    counts = tally.confusion.counts.copy()
    targets = tally.confusion.class_counts[1]
    np.fill_diagonal(counts, 0)
    order = np.argsort(counts.ravel())[::-1][:NUM_CONFUSIONS]
    confusions = [
        {
            "target": classes[index // len(classes)].name,
            "prediction": classes[index % len(classes)].name,
            "fraction_of_errors": round(float(counts.ravel()[index] / errors), 4),
            "fraction_of_class": round(float(counts.ravel()[index] / max(1, targets[index // len(classes)])), 4),
        }
        for index in order.tolist()
        if counts.ravel()[index]
    ]
    by_images, by_prediction = best_shift(tally.edge_scores, MIN_CONTRAST), best_shift(tally.match_scores, MIN_GAIN)
    miou = tally.confusion.miou()
    return {
        "images": len(tally.images),
        "miou": None if np.isnan(miou) else round(miou, 4),
        "error": round(errors / max(1, int(tally.by_distance[0].sum())), 5),
        "worst": worst,
        "confusions": confusions,
        "by_distance": error_rows(tally.by_distance, DISTANCES),
        "by_size": error_rows(tally.by_size, SIZES),
        "near_border": round(tally.near / errors, 4),
        "reliability": [
            {"pixels": int(pixels), "confidence": round(sure / pixels, 4), "accuracy": round(right / pixels, 4)}
            for pixels, sure, right in tally.bins.T.tolist()
            if pixels
        ],
        "ece": round(ece, 4),
        "confidence_minus_accuracy": round(bias, 4),
        "mask_shift_by_edges": [-value for value in by_images],
        "mask_shift_by_prediction": [-value for value in by_prediction],
        "reversed_channels_gain": round(float(np.mean(tally.swapped)), 4) if tally.swapped else None,
    }


def error_rows(counts: NDArray[np.int64], ends: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row per bin: its upper end (None for the last), pixels, errors and their rate."""
    return [
        {
            "up_to": end,
            "pixels": int(pixels),
            "errors": int(errors),
            "rate": round(errors / pixels, 5) if pixels else None,
        }
        for end, pixels, errors in zip((*ends, None), *counts.tolist(), strict=True)
    ]


def worst_images(
    segmenter: Segmenter, samples: SegmentationDataset, index: int, rank: int, classes: list[ClassInfo]
) -> dict[str, RGB]:
    """The image, ground truth, prediction, and errors in red."""
    sample, target = samples.sample_and_labels(index)
    labels, image = segmenter.segment(sample).labels, to_rgb(sample.values, segmenter.rule)
    errors = image.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    errors[(labels != target) & (target != IGNORE_INDEX)] = (230, 40, 40)
    panes = {
        "image": image,
        "target": label_colors(target, classes),
        "prediction": label_colors(labels, classes),
        "errors": errors,
    }
    return {f"worst-{rank}-{name}": shrink(image, 480) for name, image in panes.items()}


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """Shifted masks, errors at borders only, overconfidence, and channels that are swapped."""
    numbers, found = images[0], []
    by_edges, by_prediction = numbers["mask_shift_by_edges"], numbers["mask_shift_by_prediction"]
    shift = max((by_edges, by_prediction), key=lambda pair: max(map(abs, pair)))
    if THRESHOLDS["mask shift"].crossed_by(max(map(abs, shift))):
        against = "the edges of the images" if shift == by_edges else "what the network predicts"
        found.append(
            Finding(
                "mask shift",
                "failures",
                float(max(map(abs, shift))),
                f"The masks lie {shift[0]} pixels to the right and {shift[1]} pixels below {against}.",
                "Check how the masks were made, resized or padded; the images of training and of this data may differ in it.",
            )
        )
    elif numbers["error"] > MIN_ERROR and THRESHOLDS["border errors"].crossed_by(numbers["near_border"]):
        found.append(
            Finding(
                "border errors",
                "failures",
                numbers["near_border"],
                f"{numbers['near_border']:.0%} of errors lie within {NEAR_BORDER} pixels of a border between classes.",
                "Use finer scores (skips=8s, output_stride=8), train at a larger side, or check the borders of the masks.",
            )
        )
    if THRESHOLDS["overconfident"].crossed_by(numbers["ece"]):
        more = "above" if numbers["confidence_minus_accuracy"] > 0 else "below"
        found.append(
            Finding(
                "overconfident",
                "failures",
                numbers["ece"],
                f"The confidence lies {numbers['ece']:.0%} {more} the accuracy on average (expected calibration error).",
                "Do not use the confidence as a probability; label_smoothing, ema and more data lower the error.",
            )
        )
    gain = numbers["reversed_channels_gain"] or 0.0
    if THRESHOLDS["channel order"].crossed_by(gain):
        found.append(
            Finding(
                "channel order",
                "failures",
                gain,
                f"The accuracy rises by {gain:.1%} when the channels are reversed (RGB to BGR).",
                "Check the channel order: training and serving read it differently.",
            )
        )
    return found
