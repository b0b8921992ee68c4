"""The numbers under the pointer: class probabilities of the pixels of an image, coarse enough for a page."""

import base64
from typing import Any

import cv2
import numpy as np

from training.explain.subject import NetworkSubject

LONGEST = 160  # cells along the long side of an image
NUM_CLASSES = 3  # the most probable ones of each cell


def pointer_data(subject: NetworkSubject) -> dict[str, Any]:
    """JSON values: size, field, and the most probable classes of each cell, as base64 of uint8 (percent) and labels."""
    height, width = subject.size
    scale = min(1.0, LONGEST / max(height, width))
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    planes = [cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_NEAREST) for plane in subject.probabilities]
    probabilities = np.stack(planes)
    best = np.argsort(probabilities, axis=0)[::-1][:NUM_CLASSES]
    percent = np.take_along_axis(probabilities, best, axis=0) * 100
    field = subject.facts.receptive_field if subject.facts is not None else None
    return {
        "size": [height, width],
        "grid": [rows, columns],
        "field": field or 0,
        "stride": subject.stride,
        "classes": [entry.name for entry in subject.classes],
        "labels": base64.b64encode(best.astype(np.uint8).tobytes()).decode(),
        "percent": base64.b64encode(np.round(percent).astype(np.uint8).tobytes()).decode(),
        "pixels": [round(float(value), 1) for value in subject.image.reshape(-1, subject.image.shape[2]).mean(axis=0)],
    }
