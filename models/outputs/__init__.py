"""How a prediction leaves the house: one file a format, one line here; the keys are the API's format names.

A format is a module with `MEDIA_TYPE`, `SUFFIX`, `CONFIDENCE` (whether the prediction must hold it) and
`encode(prediction, spec, options) -> bytes`, which takes the prediction as it is. `encode` below first leaves out what
the options say.
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
    """Leave out what the options leave out, then encode: `format` is a key of OUTPUTS.

    Raises: ConfigError for a class that the spec has not, ImageTooLarge for what the format cannot hold, ValueError
    where `needs_confidence` and the prediction has none.
    """
    encoded: bytes = OUTPUT_FORMATS[format].encode(filter_prediction(prediction, spec, options), spec, options)
    return encoded


def needs_confidence(format: str, options: OutputOptions) -> bool:
    """Whether the prediction must hold the confidence, which costs the segmenter time."""
    needed: bool = OUTPUT_FORMATS[format].CONFIDENCE
    return needed or options.min_confidence > 0 or (format == "json" and options.confidence)
