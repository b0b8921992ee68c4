"""The format `npy`: the labels as a NumPy array, for programs that do not read images."""

import io

import numpy as np

from models.inference.segmenter import Prediction
from models.outputs.options import OutputOptions
from models.spec import BundleSpec

# No media type is registered for .npy; this one is in common use.
MEDIA_TYPE = "application/x-npy"
SUFFIX = ".npy"
NEEDS_CONFIDENCE = False


def encode(prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode uint8 labels H x W as `numpy.save` does; `numpy.load` needs no pickle for it."""
    buffer = io.BytesIO()
    np.save(buffer, prediction.labels, allow_pickle=False)
    return buffer.getvalue()
