"""Filters a prediction by the output options: pixels that are left out become IGNORE_INDEX, in every format alike."""

from dataclasses import replace

import cv2
import numpy as np

from models.errors import ConfigError, closest_names, quoted
from models.imaging.decode import Labels
from models.inference.postprocess import Confidence
from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.outputs.runs import connected_components, find_runs
from models.spec import IGNORE_INDEX, BundleSpec

MAX_LISTED_CLASSES = 12  # classes that an error names


def filter_prediction(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> Prediction:
    """Set the pixels that the options leave out to IGNORE_INDEX; the prediction itself if they leave out nothing.

    In this order: pixels below the minimum confidence, other classes, small regions of the rest. The confidence is not
    changed: it belongs to the label that the network predicted.
    Raises: ConfigError for a class that the spec does not have, ValueError for a minimum confidence without confidence.
    """
    labels = filter_labels(prediction.labels, prediction.confidence, spec, options)
    if options.min_area > 1:
        labels = remove_small_regions(labels, options.min_area)
    return prediction if labels is prediction.labels else replace(prediction, labels=labels)


def filter_labels(labels: Labels, confidence: Confidence | None, spec: BundleSpec, options: OutputOptions) -> Labels:
    """Set labels uint8 [*axes] below the minimum confidence, and those of other classes, to IGNORE_INDEX. Raises: as above."""
    if options.min_confidence > 0:
        if confidence is None:
            raise ValueError("The prediction has no confidence. Call Segmenter.segment(image, confidence=True).")
        labels = np.where(confidence >= options.min_confidence, labels, np.uint8(IGNORE_INDEX))
    if options.classes:
        table = np.full(256, IGNORE_INDEX, np.uint8)
        kept = class_indices(options.classes, spec)
        table[kept] = kept
        rows = labels.reshape(len(labels), -1)  # OpenCV would take the last of three axes for channels
        labels = np.asarray(cv2.LUT(rows, table), np.uint8).reshape(labels.shape)
    return labels


def class_indices(names: tuple[str, ...], spec: BundleSpec) -> list[int]:
    """The labels of the classes with these names. Raises: ConfigError for an unknown name."""
    known = [entry.name for entry in spec.classes]
    for name in names:
        if name not in known:
            close = closest_names(name, known)
            hint = f"did you mean {close}? The" if close else "the"
            rest = f" and {len(known) - MAX_LISTED_CLASSES} more" if len(known) > MAX_LISTED_CLASSES else ""
            raise ConfigError(
                f"The class {quoted(name[:80])} is not known; {hint} bundle has {', '.join(known[:MAX_LISTED_CLASSES])}{rest}."
            )
    return [label for label, name in enumerate(known) if name in names]


def remove_small_regions(labels: Labels, pixels: int) -> Labels:
    """Set each connected region of fewer than `pixels` pixels to IGNORE_INDEX; labels are uint8 H x W.

    Pixels are connected by their sides, as in the polygons, so that no polygon is smaller than requested.
    """
    found = find_runs(labels)
    region = connected_components(found, labels.shape[1])
    lengths = found.stops - found.starts
    area = np.bincount(region, weights=lengths)[region]
    kept = np.where(area >= pixels, found.labels, np.uint8(IGNORE_INDEX))
    return np.repeat(kept, lengths).reshape(labels.shape)
