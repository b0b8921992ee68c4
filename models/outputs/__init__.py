"""Output formats of a prediction. The keys of OUTPUT_FORMATS are the format names of the API and the command line.

A format is a module with `MEDIA_TYPE`, `SUFFIX`, `NEEDS_CONFIDENCE` and `encode(prediction, spec, options) -> bytes`, which
encodes the prediction as it is. `encode` below filters the prediction by the options first.
"""

from types import ModuleType

from models.inference.segmenter import Prediction
from models.outputs import confidence, json, npy, overlay, png
from models.outputs.options import MASK_ENCODINGS, OutputOptions
from models.outputs.select import filter_prediction
from models.spec import BundleSpec

__all__ = ["MASK_ENCODINGS", "OUTPUT_FORMATS", "OutputOptions", "encode", "needs_confidence"]

OUTPUT_FORMATS: dict[str, ModuleType] = {
    "png": png,
    "overlay": overlay,
    "confidence": confidence,
    "npy": npy,
    "json": json,
}


def encode(format: str, prediction: Prediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Filter the prediction by the options and encode it. `format` is a key of OUTPUT_FORMATS.

    Raises: ConfigError for a class that the spec does not have, ImageTooLargeError if the format cannot hold the image,
    ValueError if `needs_confidence` is true and the prediction has no confidence.
    """
    encoded: bytes = OUTPUT_FORMATS[format].encode(filter_prediction(prediction, spec, options), spec, options)
    return encoded


def needs_confidence(format: str | None, options: OutputOptions) -> bool:
    """Whether the prediction must hold the confidence, which takes the segmenter extra time.

    `format`: a key of OUTPUT_FORMATS; None for the labels alone.
    """
    return (
        options.min_confidence > 0
        or (format is not None and OUTPUT_FORMATS[format].NEEDS_CONFIDENCE)
        or (format == "json" and options.confidence)
    )
