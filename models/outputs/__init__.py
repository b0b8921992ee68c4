"""Output formats of a prediction. The keys of OUTPUT_FORMATS are the format names of the API and the command line.

A format is a module with `MEDIA_TYPE`, `SUFFIX`, `NEEDS_CONFIDENCE` and `encode(prediction, spec, options) -> bytes`, which
encodes the prediction as it is; the pipeline filters it by the options first.
"""

from types import ModuleType

from models.outputs import confidence, json, npy, overlay, png
from models.outputs.options import MASK_ENCODINGS, OutputOptions

__all__ = ["MASK_ENCODINGS", "OUTPUT_FORMATS", "OutputOptions", "needs_confidence"]

OUTPUT_FORMATS: dict[str, ModuleType] = {
    "png": png,
    "overlay": overlay,
    "confidence": confidence,
    "npy": npy,
    "json": json,
}


def needs_confidence(format: str | None, options: OutputOptions) -> bool:
    """Whether the prediction must hold the confidence, which takes the segmenter extra time.

    `format`: a key of OUTPUT_FORMATS; None for the labels alone.
    """
    return (
        options.min_confidence > 0
        or (format is not None and OUTPUT_FORMATS[format].NEEDS_CONFIDENCE)
        or (format == "json" and options.confidence)
    )
