"""How sure the network is of each label, as an 8-bit grey PNG: 255 is a softmax probability of 1."""

import cv2
import numpy as np

from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.outputs.png import GREY, encode_png
from models.spec import BundleSpec

MEDIA_TYPE = "image/png"
SUFFIX = ".png"
NEEDS_CONFIDENCE = True


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode the confidence, float32 H x W in 0..1, as a PNG of the same size. Raises: ValueError where it was not asked for.

    What was left out keeps its own: it is of the label that the network gave.
    """
    if prediction.confidence is None:
        raise ValueError("the prediction has no confidence: Segmenter.segment(image, confidence=True) gives one")
    grey = np.asarray(cv2.convertScaleAbs(prediction.confidence, alpha=255), np.uint8)  # rounded
    return encode_png(grey.reshape(prediction.labels.shape), GREY)
