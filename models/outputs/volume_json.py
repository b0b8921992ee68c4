"""The format `json` of volumes: what each class takes up.

    {"model": "hippocampus", "shape": [35, 51, 35],      voxels along the axes of the file, i, j, k
     "spacing": [1.0, 1.0, 1.0],                         mm along them; null if the file does not state it
     "voxel_ml": 0.001,                                  null without a spacing
     "classes": [{"label": 1, "name": "anterior", "rgb": [200, 60, 60],
                  "voxels": 1532, "fraction": 0.0245,    of all voxels of the file
                  "ml": 1.532,                           null without a spacing
                  "bbox": [10, 12, 8, 14, 20, 16],       first voxel i, j, k, then the lengths along them
                  "mean_confidence": 0.97}],             softmax probability, 0..1
     "unlabeled": {"voxels": 0, "fraction": 0.0}}        voxels of no class, and those that the options leave out

`classes` lists the classes that are present, by label. Of a file that does not say how it lies, i, j and k are width, height and
slice.
"""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inference.volumes import VolumePrediction
from models.outputs.options import OutputOptions
from models.spec import BundleSpec

MEDIA_TYPE = "application/json"
SUFFIX = ".json"
NEEDS_CONFIDENCE = True


def encode(prediction: VolumePrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above, in UTF-8. Raises: ValueError if the prediction has no confidence."""
    if prediction.confidence is None:
        raise ValueError("The prediction has no confidence. Call segment_volume(..., confidence=True).")
    grid, voxel_ml, total = prediction.grid, prediction.voxel_ml, prediction.labels.size
    voxels, first, last, confidence = measure_labels(prediction)
    classes: list[dict[str, Any]] = []
    for label, entry in enumerate(spec.classes):
        count = int(voxels[label])
        if not count:
            continue
        mean = float(confidence[label] / count)
        classes.append(
            {
                "label": label,
                "name": entry.name,
                "rgb": entry.rgb,
                "voxels": count,
                "fraction": count / total,
                "ml": None if voxel_ml is None else round(count * voxel_ml, 6),
                "bbox": [*first[label].tolist(), *(last[label] + 1 - first[label]).tolist()],
                "mean_confidence": round(mean, 4) if math.isfinite(mean) else None,
            }
        )
    unlabeled = total - sum(entry["voxels"] for entry in classes)
    spacing = np.linalg.norm(np.array(grid.affine)[:3, :3], axis=0)
    content: dict[str, Any] = {
        "model": spec.name,
        "shape": list(grid.shape),
        "spacing": [round(step, 6) for step in spacing.tolist()] if prediction.has_spacing else None,
        "voxel_ml": voxel_ml,
        "classes": classes,
        "unlabeled": {"voxels": unlabeled, "fraction": unlabeled / total},
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def measure_labels(
    prediction: VolumePrediction,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Of each label, 0..255: its voxels, its first and last voxel along i, j, k (256 x 3), and its sum of confidence.

    Slice by slice: counting a whole volume at once takes eight times its memory.
    """
    labels, grid = prediction.labels, prediction.grid
    voxels, confidence = np.zeros(256, np.int64), np.zeros(256)
    first, last = np.full((256, 3), labels.size), np.full((256, 3), -1)  # along D, H, W
    for depth, plane in enumerate(labels):
        counts = np.bincount(plane.ravel(), minlength=256)
        voxels += counts
        if prediction.confidence is not None:
            confidence += np.bincount(plane.ravel(), prediction.confidence[depth].ravel(), 256)
        for label in np.flatnonzero(counts):
            inside = plane == label
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            first[label] = np.minimum(first[label], (depth, rows[0], columns[0]))
            last[label] = np.maximum(last[label], (depth, rows[-1], columns[-1]))
    ends = np.array(labels.shape) - 1
    flipped = np.array(grid.flipped)
    first, last = np.where(flipped, ends - last, first), np.where(flipped, ends - first, last)
    axes = [grid.order.index(axis) for axis in range(3)]
    return voxels, first[:, axes], last[:, axes], confidence
