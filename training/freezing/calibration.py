"""Fits on validation images what an export adds to a network's logits: biases for the best F1, and a temperature.

A threshold other than 0.5 on the probability of a class is a bias of its logit, so that labels stay the argmax in every engine.
The bias of one class after another is chosen from `BIASES` such that the mean F1 of the chosen classes is the highest. The
temperature (Guo et al. 2017, arXiv 1706.04599) divides all logits such that the likelihood of the ground truth is the highest; it
changes no label. Both use a random sample of the labeled pixels, at the network's scale.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.architectures.base import Network, upsample
from models.errors import ConfigError, closest_names, quoted
from models.imaging.decode import Labels
from models.inference.geometry import (
    Image,
    canvas_size,
    network_input_size,
    resize_and_pad,
    resize_image,
    resize_labels,
)
from models.inference.segmenter import TILE_SIZE
from models.inference.windows import MAX_WINDOW, extract_window, make_lattice
from models.spec import IGNORE_INDEX, Calibration, ClassInfo, InputRule
from training.data import SegmentationDataset
from training.metrics.calibration import expected_calibration_error, reliability_bins
from training.metrics.confusion import Rates, dice, is_background, nan_mean

MAX_IMAGES, MAX_PIXELS = 200, 2**20  # of the validation split; pixels of all images together
MAX_TEMPERATURE_PIXELS = 2**18
BIASES = np.linspace(-6, 6, 241)  # of a binary set: thresholds on the probability from 0.998 to 0.002
MAX_ROUNDS = 3  # over the chosen classes
MAX_TEMPERATURE = 20.0
ALL_CLASSES = "all"


@dataclass(frozen=True)
class PixelScores:
    """Pixels of the validation split."""

    logits: NDArray[np.float32]  # N x C
    target: Labels  # uint8 N, no 255
    images: int


def fit_calibration(
    network: Network,
    rule: InputRule,
    samples: SegmentationDataset,
    thresholds: str | None,
    temperature: bool,
) -> Calibration:
    """Fit biases for the classes of `thresholds`, `all` or names with commas, and the temperature.

    Raises: ConfigError for a class that is not in the data set, or not in its validation masks.
    """
    chosen = None if thresholds is None else parse_classes(thresholds, samples.classes)
    scores = score_pixels(network, rule, samples)
    names = [entry.name for entry in samples.classes]
    bias, f1 = np.zeros(len(names)), None
    if chosen is not None:
        present = set(np.unique(scores.target).tolist())
        missing = [names[label] for label in chosen if label not in present]
        if missing and thresholds != ALL_CLASSES:
            possible = ", ".join(names[label] for label in sorted(present)) or "(none)"
            raise ConfigError(
                f"--f1-thresholds {quoted(missing[0])}: the validation masks hold no pixel of it; possible are {possible}."
            )
        chosen = [label for label in chosen if label in present]
        bias = fit_biases(scores, chosen)
        f1 = mean_f1(scores, np.zeros(len(names)), chosen), mean_f1(scores, bias, chosen)
    adjusted = scores.logits + bias.astype(np.float32)
    divisor = fit_temperature(adjusted, scores.target) if temperature else 1.0
    return Calibration(
        bias={names[label]: round(float(bias[label]), 4) for label in chosen or []},
        temperature=round(divisor, 4),
        images=scores.images,
        f1=f1,
        ece=(calibration_error(scores.logits, scores.target), calibration_error(adjusted / divisor, scores.target)),
    )


def parse_classes(text: str, classes: list[ClassInfo]) -> list[int]:
    """The labels of `all` (without the background) or of names with commas. Raises: ConfigError that lists the classes."""
    names = [entry.name for entry in classes]
    if text == ALL_CLASSES:
        background = is_background(names)
        return [label for label in range(len(names)) if background.all() or not background[label]]
    chosen = [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in names:
            close = closest_names(name, names)
            raise ConfigError(
                f"--f1-thresholds {quoted(name)}: there is no such class.{f' Did you mean {close}?' if close else ''} "
                f"The classes are {', '.join(names)}, or all."
            )
    return sorted({names.index(name) for name in chosen})


def score_pixels(network: Network, rule: InputRule, samples: SegmentationDataset) -> PixelScores:
    """A random sample of the labeled pixels of evenly spaced images, as many of each; the same at each call."""
    indices = samples.evenly_spaced_indices(min(MAX_IMAGES, len(samples)))
    random, logits, target = np.random.default_rng(0), [], []
    for index in indices:
        sample, labels = samples.sample_and_labels(index)
        canvas, labels = middle_canvas(sample.values, rule), middle_target(labels, rule)
        known = np.flatnonzero(labels.ravel() != IGNORE_INDEX)
        if len(known) > MAX_PIXELS // len(indices):
            known = random.choice(known, MAX_PIXELS // len(indices), replace=False)
        statistics = () if sample.statistics is None else torch.from_numpy(sample.statistics)[None].unbind(1)
        with torch.inference_mode():
            scores = upsample(network(torch.from_numpy(canvas)[None], *statistics)[1], canvas.shape[:-1])[0]
        cropped = scores[(slice(None), *map(slice, labels.shape))].reshape(len(scores), -1)
        logits.append(cropped[:, torch.from_numpy(known)].T.numpy())
        target.append(labels.ravel()[known])
    return PixelScores(np.concatenate(logits), np.concatenate(target), len(indices))


def middle_canvas(image: Image, rule: InputRule) -> Image:
    """A sample as the network gets it in the service, [*axes, C]; of one that takes several windows, one from the middle."""
    if rule.axes != "HW":
        starts, sides = middle_window(image.shape[:-1], rule)
        return extract_window(image, starts, sides)
    size = network_input_size((image.shape[0], image.shape[1]), rule)
    middle = resize_image(image, size)[middle_tile(size)]
    middle_size = middle.shape[0], middle.shape[1]
    return resize_and_pad(middle, middle_size, canvas_size(middle_size, rule))


def middle_target(labels: Labels, rule: InputRule) -> Labels:
    """The labels of `middle_canvas` without its padding, uint8 [*axes]."""
    if rule.axes != "HW":
        starts, sides = middle_window(labels.shape, rule)
        return labels[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))]
    size = network_input_size((labels.shape[0], labels.shape[1]), rule)
    return resize_labels(labels, size)[middle_tile(size)]


def middle_tile(size: tuple[int, int]) -> tuple[slice, slice]:
    """The middle of an image of this size, at most a tile."""
    top, left = (max(0, side - TILE_SIZE) // 2 for side in size)
    return slice(top, top + TILE_SIZE), slice(left, left + TILE_SIZE)


def middle_window(lengths: tuple[int, ...], rule: InputRule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and lengths of the window in the middle of a signal or volume of these lengths."""
    sides = make_lattice(lengths, rule, MAX_WINDOW[rule.axes]).sides
    return tuple(max(0, length - side) // 2 for length, side in zip(lengths, sides, strict=True)), sides


def fit_biases(scores: PixelScores, chosen: list[int]) -> NDArray[np.float64]:
    """A bias for each class, C, 0 for those that are not chosen; never a lower mean F1 of the chosen ones than without."""
    bias = np.zeros(scores.logits.shape[1])
    for _ in range(MAX_ROUNDS):
        before = bias.copy()
        for label in chosen:
            bias[label] = _best_bias(scores, bias, label, chosen)
        if (bias == before).all():
            break
    return bias


def _best_bias(scores: PixelScores, bias: NDArray[np.float64], label: int, chosen: list[int]) -> float:
    """The bias of one class, from `BIASES`, with the highest mean F1 of the chosen classes while the others keep theirs."""
    classes, target = scores.logits.shape[1], scores.target
    others = scores.logits + np.where(np.arange(classes) == label, -np.inf, bias).astype(np.float32)
    rival = others.argmax(axis=1)
    needed = (
        others[np.arange(len(others)), rival] - scores.logits[:, label]
    )  # from this bias on the pixel is of the class
    first = np.searchsorted(BIASES, needed)  # the first of BIASES with which it is; all of them: never

    def switched(labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """BIASES x C: of the pixels that are of the class with each bias, how many have each of `labels` (C: none)."""
        flat = np.bincount(first * (classes + 1) + labels, minlength=(len(BIASES) + 1) * (classes + 1))
        return flat.reshape(-1, classes + 1).cumsum(axis=0)[:-1, :classes]

    right = np.where(rival == target, rival, classes)
    taken = switched(rival)
    prediction = np.bincount(rival, minlength=classes) - taken
    hits = np.bincount(right, minlength=classes + 1)[:classes] - switched(right)
    prediction[:, label] = taken.sum(axis=1)
    hits[:, label] = switched(np.where(target == label, target, classes))[:, label]
    f1 = _mean_f1(hits, np.bincount(target, minlength=classes), prediction, chosen)
    best = np.flatnonzero(f1 >= f1.max() - 1e-9)
    return float(BIASES[best[np.abs(BIASES[best]).argmin()]])


def mean_f1(scores: PixelScores, bias: NDArray[np.float64], chosen: list[int]) -> float:
    """The mean F1 of the chosen classes, 0..1, with these biases, C."""
    classes, target = len(bias), scores.target
    labels = (scores.logits + bias.astype(np.float32)).argmax(axis=1)
    hits, true, predicted = (
        np.bincount(each, minlength=classes) for each in (target[labels == target], target, labels)
    )
    return round(float(_mean_f1(hits, true, predicted, chosen)), 6)


def _mean_f1(hits: NDArray[Any], true: NDArray[Any], predicted: NDArray[Any], chosen: list[int]) -> Rates:
    """`hits` and `predicted`: ... x C pixels, `true`: C. Returns ..."""
    return nan_mean(dice(hits, np.broadcast_to(true, hits.shape), predicted)[..., chosen])


def fit_temperature(logits: NDArray[np.float32], target: Labels) -> float:
    """The temperature with the least negative log-likelihood, by bisection: it is convex in 1 / temperature."""
    step = -(-len(logits) // MAX_TEMPERATURE_PIXELS)
    logits, target = logits[::step], target[::step]
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    true = shifted[np.arange(len(target)), target]
    low, high = -np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(24):
        middle = (low + high) / 2
        weights = np.exp(shifted / np.exp(middle))
        expected = (weights * shifted).sum(axis=1) / weights.sum(axis=1)
        if (expected - true).mean() > 0:  # overconfident
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def calibration_error(logits: NDArray[np.float32], target: Labels) -> float:
    """The expected calibration error, 0..1, of N x C logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    confidence = (1 / np.exp(shifted).sum(axis=1)).astype(np.float32)
    return round(float(expected_calibration_error(reliability_bins(confidence, logits.argmax(axis=1) == target))[0]), 6)
