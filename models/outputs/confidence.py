"""How sure the network is of each label, as an 8-bit grey PNG: 255 is a softmax probability of 1."""

import io

import numpy as np
from PIL import Image

from models.outputs.options import Options
from models.segmenter import Prediction
from models.spec import Spec

MEDIA_TYPE = "image/png"
SUFFIX = ".png"
CONFIDENCE = True


def encode(prediction: Prediction, spec: Spec, options: Options) -> bytes:
    """Encode the confidence, float32 H x W in 0..1, as a PNG of the same size. Raises: ValueError where it was not asked for."""
    if prediction.confidence is None:
        raise ValueError("the prediction has no confidence: Segmenter.segment(picture, confidence=True) gives one")
    grey = np.rint(prediction.confidence * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
