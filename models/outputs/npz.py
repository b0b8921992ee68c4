"""The format `npz`: labels and confidence of every time step as NumPy arrays, and with `trace` the recording itself.

labels      uint8 T, or T x leads where several leads were segmented on their own; 255 is unlabeled
confidence  float32, as labels: the softmax probability of each label, 0..1
rate        float64, Hz
leads       names of the leads that were segmented, and `units` of their values, empty where the file states none
classes     names of the classes, by label, and `colors`, uint8 classes x 3, RGB
start       when the recording began, ISO 8601; empty if the file does not say it
values      with `trace`: float32 T x leads, as the file has them; NaN where data is missing
"""

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inference.leads import RecordPrediction
from models.outputs.options import OutputOptions
from models.spec import BundleSpec

MEDIA_TYPE = "application/x-npz"  # no media type is registered for .npz
SUFFIX = ".npz"
NEEDS_CONFIDENCE = True


def encode(prediction: RecordPrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above. Raises: ValueError if a track has no confidence."""
    confidences = [track.confidence for track in prediction.tracks if track.confidence is not None]
    if len(confidences) < len(prediction.tracks):
        raise ValueError("The prediction has no confidence. Call segment_record(..., keep_confidence=True).")
    sample = prediction.sample
    arrays: dict[str, NDArray[Any]] = {
        "labels": prediction.labels,
        "confidence": confidences[0] if len(confidences) == 1 else np.stack(confidences, axis=1),
        "rate": np.array(sample.rate or 0.0),
        "leads": np.array(sample.channels),
        "units": np.array(sample.units or [""] * len(sample.channels)),
        "classes": np.array([entry.name for entry in spec.classes]),
        "colors": np.array([entry.rgb for entry in spec.classes], np.uint8),
        "start": np.array(sample.frame.start if sample.frame else ""),
    }
    if options.trace:
        arrays["values"] = np.asarray(sample.values, np.float32)
    return pack_arrays(arrays)


def pack_arrays(arrays: dict[str, NDArray[Any]]) -> bytes:
    """An npz of these arrays, stored and not deflated: the page reads it without a decoder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
