"""How a prediction leaves the house: one file a format, one line here; the keys are the API's format names.

A format is a module with `MEDIA_TYPE`, `SUFFIX`, `CONFIDENCE` (whether the prediction must hold it) and
`encode(prediction, spec, options) -> bytes`.
"""

from types import ModuleType

from models.outputs import confidence, overlay, png

OUTPUTS: dict[str, ModuleType] = {
    "png": png,
    "overlay": overlay,
    "confidence": confidence,
}
