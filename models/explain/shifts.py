"""Translation equivariance: whether the labels move with the image.

A convolution of stride 1 commutes with shifts. Strides do not: a network of stride s repeats itself only every s pixels
(Azulay and Weiss 2019, arXiv 1805.12177; Zhang 2019, arXiv 1904.11486). The image is moved by 1..s pixels along both axes and
the labels are compared where both have content.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.explain.colors import heat_colors
from models.explain.facts import Facts, Finding, mean_of
from models.explain.subject import Subject
from models.explain.thresholds import THRESHOLDS
from models.imaging.decode import Labels
from models.inference.geometry import Image

TITLE = "Equivariance"
MAX_SHIFTS = 9  # images that are segmented
NAMED_SHIFT = 3  # pixels; the shift of the finding


def compute(subject: Subject) -> Facts:
    """The agreement by shift in pixels, and a map of the fraction of shifts under which a pixel's label changes."""
    height, width = subject.size
    changes = np.zeros((height, width), np.float32)
    counts = np.zeros((height, width), np.float32)
    rows = [{"pixels": 0, "agreement": 1.0}]
    for pixels in shift_lengths(subject):
        same, compared = shifted_agreement(subject, pixels)
        rows.append({"pixels": pixels, "agreement": round(float(same[compared].mean()), 5)})
        changes += compared & ~same
        counts += compared
    unstable = changes / np.maximum(counts, 1)
    named = next((row for row in rows if row["pixels"] == NAMED_SHIFT), rows[-1])
    numbers = {
        "shifts": rows,
        "named_shift": named["pixels"],
        "changed_at_named_shift": round(1 - named["agreement"], 5),
        "unstable_fraction": round(float((changes > 0).mean()), 4),
    }
    return Facts(numbers, {"unstable": heat_colors(unstable, 1.0)})


def shift_lengths(subject: Subject) -> list[int]:
    """Up to MAX_SHIFTS lengths in pixels from 1 to the stride, the named one among them, smaller than the image."""
    longest = max(NAMED_SHIFT, subject.stride)
    spread = np.unique(np.linspace(1, longest, MAX_SHIFTS - 1).round().astype(int)).tolist()
    return [pixels for pixels in sorted({*spread, NAMED_SHIFT}) if pixels < min(subject.size) // 2]


def shift_image(image: Image, pixels: int, wrap: bool = False) -> Image:
    """Move an image H x W x C down and right; the edge is repeated, or with `wrap` what leaves comes in again."""
    padded = np.pad(image, ((pixels, 0), (pixels, 0), (0, 0)), mode="wrap" if wrap else "edge")
    return np.ascontiguousarray(padded[: image.shape[0], : image.shape[1]])


def shifted_agreement(subject: Subject, pixels: int, wrap: bool = False) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the labels of the moved image equal those of the image, and where both have content, bool H x W each."""
    moved: Labels = subject.predict(shift_image(subject.image, pixels, wrap)).argmax(axis=0).astype(np.uint8)
    returned = np.roll(moved, (-pixels, -pixels), axis=(0, 1))
    compared = np.ones(subject.size, bool)
    if not wrap:
        compared[-pixels:] = compared[:, -pixels:] = False
    return returned == subject.labels, compared


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """Labels that do not move with the image."""
    value = mean_of(images, "changed_at_named_shift")
    if not THRESHOLDS["unstable labels"].crossed_by(value):
        return []
    return [
        Finding(
            "unstable labels",
            "shifts",
            value,
            f"{value:.1%} of labels change when the image moves by {images[0]['named_shift']} pixels.",
            "Train with more random crops and scales, use a smaller output_stride, or predict with test-time augmentation.",
        )
    ]
