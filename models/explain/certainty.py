"""Sure or not: confidence, entropy, margin, and the spread under test-time augmentation, pixel by pixel.

Confidence is the probability of the predicted class, entropy is in units of its maximum log K, and the margin is the
difference between the two most probable classes. The spread is the mean total variation distance between the class
probabilities of augmented images (flipped, scaled) and their mean: 0 if all agree.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.explain.colors import heat_colors, label_colors
from models.explain.facts import Facts, Finding, mean_of
from models.explain.subject import Probabilities, Subject
from models.explain.thresholds import THRESHOLDS
from models.inference.geometry import resize_image

TITLE = "Sure or not"
SCALES = (0.75, 1.25)  # of the augmented images; a network of one size is only flipped
UNSURE = 0.6  # confidence; the page counts the pixels below it

Map = NDArray[np.float32]  # H x W


def compute(subject: Subject) -> Facts:
    """Maps and their means, over the image and by predicted class."""
    probabilities = subject.probabilities
    maps = certainty_maps(probabilities)
    variants = augmented_probabilities(subject)
    spread, changed = tta_spread(probabilities, variants)
    by_class = []
    for label, entry in enumerate(subject.classes):
        inside = subject.labels == label
        if inside.any():
            means = {name: round(float(values[inside].mean()), 4) for name, values in maps.items()}
            by_class.append({"name": entry.name, "fraction": round(float(inside.mean()), 4), **means})
    numbers = {
        **{name: round(float(values.mean()), 4) for name, values in maps.items()},
        "unsure_fraction": round(float((maps["confidence"] < UNSURE).mean()), 4),
        "tta_spread": round(float(spread.mean()), 4),
        "tta_changed": round(float(changed.mean()), 4),
        "reversed_channels_gain": reversed_channels_gain(subject, maps["confidence"]),
        "by_class": by_class,
    }
    images = {
        "prediction": label_colors(subject.labels, subject.classes),
        "confidence": heat_colors(maps["confidence"], 1.0),
        "entropy": heat_colors(maps["entropy"], 1.0),
        "margin": heat_colors(maps["margin"], 1.0),
        "spread": heat_colors(spread, 0.5),
    }
    return Facts(numbers, images)


def reversed_channels_gain(subject: Subject, confidence: Map) -> float | None:
    """The rise of the mean confidence when RGB is read as BGR; None for a network of other channels."""
    if not subject.segmenter.rule.is_photograph:
        return None
    reversed_image = np.ascontiguousarray(subject.image[..., ::-1])
    swapped = certainty_maps(subject.predict(reversed_image))["confidence"]
    return round(float(swapped.mean() - confidence.mean()), 4)


def certainty_maps(probabilities: Probabilities) -> dict[str, Map]:
    """confidence, entropy and margin, float32 H x W in 0..1, of class probabilities K x H x W."""
    ordered = np.sort(np.partition(probabilities, -2, axis=0)[-2:], axis=0)
    logs = np.log(np.maximum(probabilities, 1e-12))
    entropy = -(probabilities * logs).sum(axis=0) / np.log(len(probabilities))
    return {"confidence": ordered[1], "entropy": entropy.clip(0, 1), "margin": ordered[1] - ordered[0]}


def augmented_probabilities(subject: Subject) -> list[Probabilities]:
    """Class probabilities of the image flipped and scaled, each mapped back to the image, K x H x W."""
    flipped = subject.predict(np.ascontiguousarray(subject.image[:, ::-1]))[:, :, ::-1]
    variants = [np.ascontiguousarray(flipped)]
    height, width = subject.size
    if subject.segmenter.rule.rule != "exact":
        for scale in SCALES:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            planes = subject.predict(resize_image(subject.image, size))
            variants.append(np.stack([cv2.resize(plane, (width, height)) for plane in planes]).astype(np.float32))
    return variants


def tta_spread(probabilities: Probabilities, variants: list[Probabilities]) -> tuple[Map, NDArray[np.bool_]]:
    """Spread float32 H x W in 0..1, and where the label of any variant differs from the image's own, bool H x W."""
    members = np.stack([probabilities, *variants])
    distance = 0.5 * np.abs(members - members.mean(axis=0)).sum(axis=1)
    labels = members.argmax(axis=1)
    return distance.mean(axis=0), (labels != labels[0]).any(axis=0)


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """A network that is unsure everywhere, or surer of the images with their channels reversed."""
    found = []
    entropy = mean_of(images, "entropy")
    gain = mean_of(images, "reversed_channels_gain") if images[0]["reversed_channels_gain"] is not None else 0.0
    if THRESHOLDS["uncertain"].crossed_by(entropy):
        found.append(
            Finding(
                "uncertain",
                "certainty",
                entropy,
                f"The mean entropy is {entropy:.0%} of its maximum: the network is unsure almost everywhere.",
                "Train longer, or check that these images are of the kind that the network was trained on.",
            )
        )
    if THRESHOLDS["channel order"].crossed_by(gain):
        found.append(
            Finding(
                "channel order",
                "certainty",
                gain,
                f"The mean confidence rises by {gain:.1%} when the channels are reversed (RGB to BGR).",
                "Check the channel order: training and serving may read it differently.",
            )
        )
    return found
