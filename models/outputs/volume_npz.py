"""The format `npz` of volumes: labels as NumPy arrays, on the grid of the file that was sent.

labels      uint8 i x j x k, in the order of the file's axes; D x H x W of a file that does not say how it lies; 255 is unlabeled
confidence  with `confidence`: float32, as labels: the softmax probability of each label, 0..1
affine      float64 4 x 4, from (i, j, k, 1) to mm (to the patient's right, front and head), if the file says how it lies
spacing     float64 3, mm along the axes of the labels, if the file states it
classes     names of the classes, by label, and `colors`, uint8 classes x 3, RGB
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inference.volumes import VolumePrediction
from models.outputs.npz import pack_arrays
from models.outputs.options import OutputOptions
from models.readers.orientation import to_file_grid
from models.spec import BundleSpec

MEDIA_TYPE = "application/x-npz"  # none is registered
SUFFIX = ".npz"
NEEDS_CONFIDENCE = False  # only with the option


def encode(prediction: VolumePrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above. Raises: ValueError for `options.confidence` if the prediction has no confidence."""
    grid, known = prediction.grid, prediction.is_positioned
    lengths = np.linalg.norm(np.array(grid.affine)[:3, :3], axis=0)

    def in_order(array: NDArray[Any]) -> NDArray[Any]:
        return to_file_grid(array, grid) if known else array

    arrays: dict[str, NDArray[Any]] = {"labels": in_order(prediction.labels)}
    if options.confidence:
        if prediction.confidence is None:
            raise ValueError("The prediction has no confidence. Call segment_volume(..., confidence=True).")
        arrays["confidence"] = in_order(prediction.confidence)
    if known:
        arrays["affine"] = np.array(grid.affine)
    if prediction.has_spacing:
        arrays["spacing"] = lengths if known else lengths[::-1]
    arrays["classes"] = np.array([entry.name for entry in spec.classes])
    arrays["colors"] = np.array([entry.rgb for entry in spec.classes], np.uint8)
    return pack_arrays(arrays)
