"""Receptive fields: the theoretical box of a pixel, and the part of it that the trained network uses.

The effective field is the gradient of the logit with respect to the image (Luo et al. 2016, arXiv 1701.04128): a spot that
falls off like a Gaussian, narrower than the theoretical box. Its width is that of the shortest interval of columns (and rows)
that holds 95% of the gradient's mass; the median of several pixels is taken, because a single one is noisy.
"""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.explain.colors import heat_colors
from models.explain.facts import Facts, Finding
from models.explain.thresholds import THRESHOLDS
from models.imaging.decode import RGB, Labels
from models.inference.geometry import network_input_size, resize_labels
from training.explain.subject import NetworkSubject

TITLE = "Receptive fields"
MASS = 0.95  # fraction of the gradient that the effective width holds
GRID = 3  # the width is the median over GRID x GRID pixels
NUM_MASKS = 8  # of --data, for the thickness of its objects
MIN_OBJECT = 0.002  # fraction of the image; smaller objects are not measured

Heat = NDArray[np.float32]  # H x W


def compute(subject: NetworkSubject) -> Facts:
    """The box and the heat map of the subject's point, the widths, and the thickness of the objects in the image."""
    theoretical = subject.inside.receptive_field
    height, width = subject.size
    points = [
        (int(x), int(y))
        for y in np.linspace(0, height - 1, GRID + 2)[1:-1]
        for x in np.linspace(0, width - 1, GRID + 2)[1:-1]
    ]
    heat, *fields = gradient_fields(subject, [subject.point, *points])
    widths = [max(mass_width(field, axis) for axis in (0, 1)) for field in fields]
    effective = int(np.median(widths))
    objects = object_thickness(subject.labels, len(subject.classes))
    rows = [
        {
            "name": subject.classes[label].name,
            "objects": len(thick),
            "thickness": round(float(np.median(thick)), 1),
            "largest": round(float(max(thick)), 1),
            "ratio": round(effective / max(1.0, float(np.median(thick))), 3),
            "blind_fraction": round(blind_fraction(subject.labels, label, theoretical), 4),
        }
        for label, thick in objects.items()
    ]
    typical = [float(np.median(thick)) for thick in (data_thickness(subject) or objects).values()]
    logit_stride = subject.input.shape[-1] / subject.logits(subject.image).shape[-1]
    numbers = {
        "theoretical": theoretical,
        "effective": effective,
        "effective_at_point": [mass_width(heat, axis) for axis in (1, 0)],
        "effective_widths": widths,
        "point": list(subject.point),
        "logit_stride": logit_stride,
        "objects": rows,
        "typical_thickness": round(float(np.median(typical)), 1) if typical else None,
        "size": [height, width],
    }
    return Facts(numbers, {"field": field_image(subject, heat, theoretical)}, page_data={"box": theoretical or 0})


def gradient_fields(subject: NetworkSubject, points: list[tuple[int, int]]) -> list[Heat]:
    """For each pixel (x, y), the absolute gradient of the predicted class's logit, summed over channels, float32 H x W."""
    values = subject.input.clone().requires_grad_()
    logits = subject.inside.network.calibrate(subject.inside.network.body(values))
    height, width = subject.size
    fields = []
    for x, y in points:
        row = min(y * logits.shape[2] // values.shape[2], logits.shape[2] - 1)
        column = min(x * logits.shape[3] // values.shape[3], logits.shape[3] - 1)
        label = int(logits[0, :, row, column].argmax())
        (gradient,) = torch.autograd.grad(logits[0, label, row, column], values, retain_graph=True)
        fields.append(np.asarray(gradient[0].abs().sum(dim=0)[:height, :width].numpy(), np.float32))
    return fields


def mass_width(heat: Heat, axis: int, mass: float = MASS) -> int:
    """Length in pixels of the shortest interval of rows (axis 0) or columns (axis 1) that holds this fraction of the mass."""
    profile = heat.sum(axis=1 - axis, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(profile)])
    if total[-1] <= 0:
        return 0
    needed = mass * total[-1] * (1 - 1e-9)
    stops = np.searchsorted(total, total[:-1] + needed)  # for each start, the first stop that holds enough
    lengths = [int(stop) - start for start, stop in enumerate(stops) if stop < len(total)]
    return min(lengths) if lengths else len(profile)


def object_thickness(labels: Labels, classes: int) -> dict[int, list[float]]:
    """By class, the thickness of each object in pixels: the diameter of the largest disc that fits into it.

    Objects are connected components of the labels; a class that fills the border of the image counts as if it ended there.
    """
    found: dict[int, list[float]] = {}
    for label in range(classes):
        mask = (labels == label).astype(np.uint8)
        number, components, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        if number == 1:
            continue
        distance = border_distance(mask)
        for component in range(1, number):
            if stats[component, cv2.CC_STAT_AREA] >= MIN_OBJECT * labels.size:
                inside = distance[components == component]
                found.setdefault(label, []).append(2 * float(inside.max()) - 1)
    return found


def data_thickness(subject: NetworkSubject) -> dict[int, list[float]]:
    """As `object_thickness`, of the ground truth of a few images of the data at the network's scale; none without data."""
    found: dict[int, list[float]] = {}
    samples = subject.samples
    for index in samples.evenly_spaced_indices(NUM_MASKS) if samples is not None else ():
        mask = samples.labels(index)  # type: ignore[union-attr]
        fitted = resize_labels(mask, network_input_size((mask.shape[0], mask.shape[1]), subject.segmenter.rule))
        for label, thick in object_thickness(fitted, len(subject.classes)).items():
            found.setdefault(label, []).extend(thick)
    return found


def border_distance(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """For each pixel of a mask H x W, the distance to the nearest pixel outside it, the image's outside included."""
    padded = np.pad(mask, 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def blind_fraction(labels: Labels, label: int, theoretical: int | None) -> float:
    """The fraction of a class's pixels whose theoretical field lies inside their own class, so that no border is in it."""
    inside = labels == label
    if theoretical is None or not inside.any():
        return 0.0
    window = np.ones((theoretical, theoretical), np.uint8)
    deep = cv2.erode(inside.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return float(deep.sum() / inside.sum())


def field_image(subject: NetworkSubject, heat: Heat, theoretical: int | None) -> RGB:
    """The image in gray, the effective field over it, and the theoretical box."""
    gray = subject.gray
    smooth = cv2.GaussianBlur(heat, (0, 0), max(1.0, min(subject.size) / 200))
    strength = np.clip(smooth / max(float(smooth.max()), 1e-12), 0, 1)[..., None] ** 0.5
    image = np.ascontiguousarray(gray * (1 - strength) * 0.7 + heat_colors(strength[..., 0]) * strength, np.uint8)
    x, y = subject.point
    if theoretical:
        half = theoretical // 2
        cv2.rectangle(image, (x - half, y - half), (x + half, y + half), (255, 255, 255), 1)
    cv2.drawMarker(image, (x, y), (255, 60, 60), cv2.MARKER_CROSS, 9, 1)
    return image


def findings(images: list[dict[str, Any]]) -> list[Finding]:
    """A field that is too small for a class, and a grid that is too coarse for the objects."""
    found = []
    effective, theoretical = int(np.median([numbers["effective"] for numbers in images])), images[0]["theoretical"]
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in (row for numbers in images for row in numbers["objects"]):
        by_class.setdefault(row["name"], []).append(row)
    thickness = {name: float(np.median([row["thickness"] for row in rows])) for name, rows in by_class.items()}
    for name, rows in by_class.items():
        blind = float(np.mean([row["blind_fraction"] for row in rows]))
        ratio = effective / max(1.0, thickness[name])
        if THRESHOLDS["blind pixels"].crossed_by(blind):
            found.append(
                Finding(
                    "blind pixels",
                    "fields",
                    round(blind, 4),
                    f"The theoretical receptive field is {theoretical} pixels wide: {blind:.0%} of the pixels of class {name} "
                    "see no border of it, only its inside.",
                    "Use a deeper encoder, or a head with a wide field: head=d6 or head=aspp.",
                )
            )
        elif effective and THRESHOLDS["small field"].crossed_by(ratio):
            found.append(
                Finding(
                    "small field",
                    "fields",
                    round(ratio, 3),
                    f"The effective receptive field is {effective} pixels wide; class {name} is {thickness[name]:.0f} pixels "
                    "thick.",
                    "Try head=d6 or a deeper encoder, or a smaller side= of the input.",
                )
            )
    known = [numbers["typical_thickness"] for numbers in images if numbers["typical_thickness"]]
    typical = float(np.median(known)) if known else 0.0
    coarse = images[0]["logit_stride"] / typical if typical else 0.0
    if THRESHOLDS["coarse grid"].crossed_by(coarse):
        found.append(
            Finding(
                "coarse grid",
                "fields",
                round(coarse, 3),
                f"The network scores one position per {images[0]['logit_stride']:.0f} pixels; half of the classes are at most "
                f"{typical:.0f} pixels thick.",
                "Add finer maps (skips=8s), or dilate (output_stride=8).",
            )
        )
    return found
