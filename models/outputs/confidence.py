"""The format `confidence`: the softmax probability of each label as an 8-bit gray PNG; 255 is 1."""

import cv2
import numpy as np

from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.outputs.png import GRAY, encode_png
from models.spec import BundleSpec

MEDIA_TYPE = "image/png"
SUFFIX = ".png"
NEEDS_CONFIDENCE = True


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode the confidence, float32 H x W in 0..1, as a PNG of the same size.

    Pixels that the options leave out keep the confidence of the label that the network predicted.
    Raises: ValueError if the prediction has no confidence.
    """
    if prediction.confidence is None:
        raise ValueError("The prediction has no confidence. Call Segmenter.segment(image, confidence=True).")
    gray = np.asarray(cv2.convertScaleAbs(prediction.confidence, alpha=255), np.uint8)  # rounded
    return encode_png(gray.reshape(prediction.labels.shape), GRAY)
