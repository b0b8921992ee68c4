"""The format `tiff`: the labels as a stack of slices, one page each, 8-bit gray; 255 is unlabeled.

The pages run along the last axis of the file that was sent, the rows along its second, the columns along its first: a TIFF stack
gets back its own slices, and ITK and ImageJ show a NIfTI like that. Spacing is written as ImageJ reads it.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from models.inference.volumes import VolumePrediction
from models.outputs.options import OutputOptions
from models.spec import BundleSpec

MEDIA_TYPE = "image/tiff"
SUFFIX = ".tif"
NEEDS_CONFIDENCE = False

DESCRIPTION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 270, 282, 283, 296  # tags


def encode(prediction: VolumePrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above, deflated."""
    pages = [Image.fromarray(np.ascontiguousarray(page)) for page in prediction.file_labels.T]
    lines, tags = ["ImageJ=1.54", f"images={len(pages)}", f"slices={len(pages)}"], dict[int, Any]()
    if prediction.has_spacing:
        i, j, k = np.linalg.norm(np.array(prediction.grid.affine)[:3, :3], axis=0).tolist()
        lines += ["unit=mm", f"spacing={k:.9g}"]
        tags = {X_RESOLUTION: 1 / i, Y_RESOLUTION: 1 / j, RESOLUTION_UNIT: 1}
    tags[DESCRIPTION] = "\n".join([*lines, ""])
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate", tiffinfo=tags
    )
    return buffer.getvalue()
