"""What a caller wants left out of a mask: it becomes void, in every format alike."""

import difflib
from dataclasses import replace

import cv2
import numpy as np

from models.errors import ConfigError
from models.imaging.decode import Labels
from models.inference.segmenter import Prediction
from models.outputs.options import Options
from models.outputs.runs import regions, runs
from models.spec import VOID, Spec

NAMED = 12  # classes that an error names


def select(prediction: Prediction, spec: Spec, options: Options) -> Prediction:
    """The prediction with what the options leave out as void; the prediction itself where they leave out nothing.

    First goes what is not sure enough, then other classes, then what is too small of the rest. The confidence stays: it
    is of the label that the network gave. Raises: ConfigError for a class that the spec has not.
    """
    labels = prediction.labels
    if options.min_confidence > 0:
        if prediction.confidence is None:
            raise ValueError("the prediction has no confidence: Segmenter.segment(picture, confidence=True) gives one")
        labels = np.where(prediction.confidence >= options.min_confidence, labels, np.uint8(VOID))
    if options.classes:
        table = np.full(256, VOID, np.uint8)
        kept = named(options.classes, spec)
        table[kept] = kept
        labels = np.asarray(cv2.LUT(labels, table), np.uint8)
    if options.min_area > 1:
        labels = without_small(labels, options.min_area)
    return prediction if labels is prediction.labels else replace(prediction, labels=labels)


def named(names: tuple[str, ...], spec: Spec) -> list[int]:
    """The labels of the classes of these names. Raises: ConfigError, naming the one that is not known."""
    known = [entry.name for entry in spec.classes]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? Known are" if close else "known are"
            rest = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
            raise ConfigError(f"The class {name[:80]!r} is not known; {hint} {', '.join(known[:NAMED])}{rest}.")
    return [label for label, name in enumerate(known) if name in names]


def without_small(labels: Labels, pixels: int) -> Labels:
    """The labels, uint8 H x W, with each connected region of fewer pixels as void.

    Connected by their sides, as the polygons are: no polygon of an answer is smaller than what was asked for.
    """
    found = runs(labels)
    region = regions(found, labels.shape[1])
    lengths = found.stops - found.starts
    area = np.bincount(region, weights=lengths)[region]
    kept = np.where(area >= pixels, found.labels, np.uint8(VOID))
    return np.repeat(kept, lengths).reshape(labels.shape)
