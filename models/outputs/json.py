"""The format `json`: area, bounding box and mask of each class.

    {"height": 360, "width": 480,                        pixels
     "classes": [{"label": 3, "name": "road", "rgb": [128, 64, 128],
                  "pixels": 51200, "fraction": 0.296,       of all the image's pixels
                  "bbox": [0, 170, 480, 190],             COCO's [x, y, width, height]
                  "mean_confidence": 0.93,                if the prediction has a confidence
                  "rle": {"size": [360, 480], "counts": "..."},                     masks=rle: COCO's
                  "polygons": {"type": "MultiPolygon", "coordinates": [...]}}],     masks=polygons: GeoJSON's, in pixels
     "unlabeled": {"pixels": 0, "fraction": 0.0},         pixels of no class, and those that the options leave out
     "png": "...",                                       masks=png: the format `png` in base64
     "confidence": "..."}                                on request: the format `confidence` in base64

`classes` lists the classes that are present, by label.
"""

import base64
import json
import math
from typing import Any

import numpy as np

from models.imaging.decode import Labels
from models.inference.postprocess import Confidence
from models.inference.segmenter import Prediction
from models.outputs import confidence, png
from models.outputs.options import OutputOptions
from models.outputs.polygons import trace_polygons
from models.outputs.rle import coco_rle_counts
from models.outputs.runs import find_runs
from models.spec import BundleSpec

MEDIA_TYPE = "application/json"
SUFFIX = ".json"
NEEDS_CONFIDENCE = False

STRIP_PIXELS = 1 << 20  # at most MAX_RUNS, since a run has at least a pixel


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above, in UTF-8. Raises: ValueError for `options.confidence` if the prediction has no confidence."""
    labels = prediction.labels
    height, width = labels.shape
    classes = [
        {"label": label, "name": spec.classes[label].name, "rgb": spec.classes[label].rgb, **facts}
        for label, facts in class_statistics(labels, prediction.confidence).items()
        if label < len(spec.classes)
    ]
    if options.masks == "rle":
        counts = coco_rle_counts(labels)
        for entry in classes:
            entry["rle"] = {"size": [height, width], "counts": counts[entry["label"]]}
    elif options.masks == "polygons":
        outlines = trace_polygons(labels, len(spec.classes), options.simplify)
        for entry in classes:
            entry["polygons"] = {"type": "MultiPolygon", "coordinates": outlines.get(entry["label"], [])}
    unlabeled = labels.size - sum(entry["pixels"] for entry in classes)
    content: dict[str, Any] = {
        "height": height,
        "width": width,
        "classes": classes,
        "unlabeled": {"pixels": unlabeled, "fraction": unlabeled / labels.size},
    }
    if options.masks == "png":
        content["png"] = base64.b64encode(png.encode(prediction, spec, options)).decode()
    if options.confidence:
        content["confidence"] = base64.b64encode(confidence.encode(prediction, spec, options)).decode()
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def class_statistics(labels: Labels, probabilities: Confidence | None) -> dict[int, dict[str, Any]]:
    """Statistics by label, 255 included: `pixels`, `fraction`, `bbox`, and `mean_confidence` if probabilities are given.

    labels: uint8 H x W; probabilities: float32 H x W.
    """
    height, width = labels.shape
    pixels, total = np.zeros(256, np.int64), np.zeros(256)
    lowest, highest = np.full((2, 256), labels.size), np.zeros((2, 256), np.int64)  # x and y of the corners
    strip = max(1, STRIP_PIXELS // width)  # in strips of rows, because a mask may have as many runs as pixels
    for top in range(0, height, strip):
        found = find_runs(labels[top : top + strip])
        lengths = found.stops - found.starts
        pixels += np.bincount(found.labels, lengths, 256).astype(np.int64)
        rows, left = np.divmod(found.starts, width)
        order = np.argsort(found.labels, kind="stable")
        present, firsts = np.unique(found.labels[order], return_index=True)
        for axis, (low, high) in enumerate(((left, left + lengths), (top + rows, top + rows + 1))):
            lowest[axis, present] = np.minimum(lowest[axis, present], np.minimum.reduceat(low[order], firsts))
            highest[axis, present] = np.maximum(highest[axis, present], np.maximum.reduceat(high[order], firsts))
        if probabilities is not None:
            flat = np.ascontiguousarray(probabilities[top : top + strip]).ravel()
            total += np.bincount(found.labels, np.add.reduceat(flat, found.starts), 256)
    facts = {}
    for label in np.flatnonzero(pixels).tolist():
        corner, end = lowest[:, label], highest[:, label]
        fact = {
            "pixels": int(pixels[label]),
            "fraction": pixels[label] / labels.size,
            "bbox": [*corner.tolist(), *(end - corner).tolist()],
        }
        if probabilities is not None:
            mean = float(total[label] / pixels[label])
            fact["mean_confidence"] = mean if math.isfinite(mean) else None
        facts[label] = fact
    return facts
