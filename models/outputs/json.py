"""What is in the mask, as JSON: for each class how much of it there is and where, and its mask in a form of choice.

    {"height": 360, "width": 480,                        pixels
     "classes": [{"label": 3, "name": "road", "rgb": [128, 64, 128],
                  "pixels": 51200, "share": 0.296,       of all the picture's pixels
                  "box": [0, 170, 480, 190],             COCO's [x, y, width, height], so that no edge is in doubt
                  "mean_confidence": 0.93,               where the confidence is at hand
                  "rle": {"size": [360, 480], "counts": "..."},                     masks=rle: COCO's
                  "polygons": {"type": "MultiPolygon", "coordinates": [...]}}],     masks=polygons: GeoJSON's, in pixels
     "void": {"pixels": 0, "share": 0.0},                what belongs to no class, or was left out
     "png": "...",                                       masks=png: the format `png` in base64
     "confidence": "..."}                                on request: the format `confidence` in base64

`classes` holds those that are present, by label.
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
from models.outputs.options import Options
from models.outputs.polygons import polygons
from models.outputs.rle import run_lengths
from models.outputs.runs import runs
from models.spec import Spec

MEDIA_TYPE = "application/json"
SUFFIX = ".json"
CONFIDENCE = False


def encode(prediction: Prediction, spec: Spec, options: Options) -> bytes:
    """Encode as above, in UTF-8. Raises: ValueError where `options.confidence` and the prediction has none."""
    labels = prediction.labels
    height, width = labels.shape
    classes = [
        {"label": label, "name": spec.classes[label].name, "rgb": spec.classes[label].rgb, **facts}
        for label, facts in measured(labels, prediction.confidence).items()
        if label < len(spec.classes)
    ]
    if options.masks == "rle":
        counts = run_lengths(labels)
        for entry in classes:
            entry["rle"] = {"size": [height, width], "counts": counts[entry["label"]]}
    elif options.masks == "polygons":
        outlines = polygons(labels, len(spec.classes), options.simplify)
        for entry in classes:
            entry["polygons"] = {"type": "MultiPolygon", "coordinates": outlines.get(entry["label"], [])}
    void = labels.size - sum(entry["pixels"] for entry in classes)
    answer: dict[str, Any] = {
        "height": height,
        "width": width,
        "classes": classes,
        "void": {"pixels": void, "share": void / labels.size},
    }
    if options.masks == "png":
        answer["png"] = base64.b64encode(png.encode(prediction, spec, options)).decode()
    if options.confidence:
        answer["confidence"] = base64.b64encode(confidence.encode(prediction, spec, options)).decode()
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()


def measured(labels: Labels, sure: Confidence | None) -> dict[int, dict[str, Any]]:
    """By label, void too: `pixels`, `share`, `box`, and `mean_confidence` where `sure`, float32 H x W, is given."""
    width = labels.shape[1]
    found = runs(labels)
    lengths = found.stops - found.starts
    pixels = np.bincount(found.labels, lengths)
    rows, left = np.divmod(found.starts, width)
    lowest, highest = np.full((2, 256), labels.size), np.zeros((2, 256), np.int64)
    for axis, (low, high) in enumerate(((left, left + lengths), (rows, rows + 1))):
        np.minimum.at(lowest[axis], found.labels, low)
        np.maximum.at(highest[axis], found.labels, high)
    if sure is not None:
        total = np.bincount(found.labels, np.add.reduceat(np.ascontiguousarray(sure).ravel(), found.starts))
    facts = {}
    for label in np.flatnonzero(pixels).tolist():
        corner, end = lowest[:, label], highest[:, label]
        fact = {
            "pixels": int(pixels[label]),
            "share": pixels[label] / labels.size,
            "box": [*corner.tolist(), *(end - corner).tolist()],
        }
        if sure is not None:
            mean = float(total[label] / pixels[label])
            fact["mean_confidence"] = mean if math.isfinite(mean) else None
        facts[label] = fact
    return facts
