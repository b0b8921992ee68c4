"""What a caller wants left out of a mask: it becomes void, in every format alike."""

import difflib
from dataclasses import replace

import cv2
import numpy as np

from models.errors import ConfigError
from models.imaging.decode import Labels
from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.outputs.runs import connected_components, find_runs
from models.spec import IGNORE_INDEX, BundleSpec

MAX_LISTED_CLASSES = 12  # classes that an error names


def filter_prediction(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> Prediction:
    """The prediction with what the options leave out as void; the prediction itself where they leave out nothing.

    First goes what is not sure enough, then other classes, then what is too small of the rest. The confidence stays: it
    is of the label that the network gave. Raises: ConfigError for a class that the spec has not.
    """
    labels = prediction.labels
    if options.min_confidence > 0:
        if prediction.confidence is None:
            raise ValueError("the prediction has no confidence: Segmenter.segment(image, confidence=True) gives one")
        labels = np.where(prediction.confidence >= options.min_confidence, labels, np.uint8(IGNORE_INDEX))
    if options.classes:
        table = np.full(256, IGNORE_INDEX, np.uint8)
        kept = class_indices(options.classes, spec)
        table[kept] = kept
        labels = np.asarray(cv2.LUT(labels, table), np.uint8)
    if options.min_area > 1:
        labels = remove_small_regions(labels, options.min_area)
    return prediction if labels is prediction.labels else replace(prediction, labels=labels)


def class_indices(names: tuple[str, ...], spec: BundleSpec) -> list[int]:
    """The labels of the classes of these names. Raises: ConfigError, naming the one that is not known."""
    known = [entry.name for entry in spec.classes]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? Known are" if close else "known are"
            rest = f" and {len(known) - MAX_LISTED_CLASSES} more" if len(known) > MAX_LISTED_CLASSES else ""
            raise ConfigError(
                f"The class {name[:80]!r} is not known; {hint} {', '.join(known[:MAX_LISTED_CLASSES])}{rest}."
            )
    return [label for label, name in enumerate(known) if name in names]


def remove_small_regions(labels: Labels, pixels: int) -> Labels:
    """The labels, uint8 H x W, with each connected region of fewer pixels as void.

    Connected by their sides, as the polygons are: no polygon of an answer is smaller than what was asked for.
    """
    found = find_runs(labels)
    region = connected_components(found, labels.shape[1])
    lengths = found.stops - found.starts
    area = np.bincount(region, weights=lengths)[region]
    kept = np.where(area >= pixels, found.labels, np.uint8(IGNORE_INDEX))
    return np.repeat(kept, lengths).reshape(labels.shape)
