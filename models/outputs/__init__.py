"""Output formats of a prediction, by the axes of the model. The names are those of the API and the command line.

A format is a module with `MEDIA_TYPE`, `SUFFIX`, `NEEDS_CONFIDENCE` and `encode(prediction, spec, options) -> bytes`, which
encodes the prediction as it is; the pipeline filters it by the options first. The prediction of an image is a `Prediction`, that
of a signal a `RecordPrediction`, that of a volume a `VolumePrediction`. The first format of each kind of model is its default.
"""

from types import ModuleType

from models.errors import ConfigError, quoted
from models.outputs import (
    confidence,
    csv,
    events,
    json,
    nifti,
    npy,
    npz,
    overlay,
    png,
    volume_json,
    volume_npz,
    volume_tiff,
    wfdb,
)
from models.outputs.options import MASK_ENCODINGS, OutputOptions
from models.spec import AXES

__all__ = [
    "ALL_FORMATS",
    "MASK_ENCODINGS",
    "OUTPUT_FORMATS",
    "OutputOptions",
    "find_format",
    "needs_confidence",
]

OUTPUT_FORMATS: dict[str, dict[str, ModuleType]] = {
    "HW": {"png": png, "overlay": overlay, "confidence": confidence, "npy": npy, "json": json},
    "T": {"events": events, "npy": npy, "npz": npz, "csv": csv, "wfdb": wfdb},
    "DHW": {"nifti": nifti, "npz": volume_npz, "tiff": volume_tiff, "json": volume_json},
}
ALL_FORMATS = tuple(dict.fromkeys(name for formats in OUTPUT_FORMATS.values() for name in formats))


def find_format(name: str | None, axes: str) -> str:
    """The name of a format that models of these axes have; None is their default. Raises: ConfigError that names all."""
    formats = OUTPUT_FORMATS[axes]
    if name is not None and name not in formats:
        others = " and ".join(AXES[other] for other, known in OUTPUT_FORMATS.items() if name in known)
        raise ConfigError(
            f"This model takes {AXES[axes]} and has no output format {quoted(name)}"
            f"{f', which is for {others}: choose another model, or' if others else '; choose'} one of {', '.join(formats)}."
        )
    return name or next(iter(formats))


def needs_confidence(format: str | None, options: OutputOptions, axes: str = "HW") -> bool:
    """Whether the prediction of an image or volume must hold the confidence, which takes the segmenter extra time.

    `format`: a key of OUTPUT_FORMATS[axes]; None for the labels alone.
    """
    return (
        options.min_confidence > 0
        or (format is not None and bool(OUTPUT_FORMATS[axes][format].NEEDS_CONFIDENCE))
        or (format in ("json", "npz") and options.confidence)
    )
