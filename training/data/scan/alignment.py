"""How well the borders in a mask lie on the edges in its image, to find masks of another image (`data lint`).

Where a border of the mask lies, the image usually has an edge. So the mean gradient of the image below the borders is compared
with that below the same borders moved by SHIFTS: a mask of its own image is best where it is, one of another image is not.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import RGB
from training.data.scan.pixel_stats import MaskArray, edge_mask

SIDE = 128  # pixels of the long side at which they are compared
MIN_SIDE = 32  # pixels of the short side; smaller maps have no room for the shifts
NEAR, FAR = 5, 10  # pixels at that size
SHIFTS = np.array(
    [
        *((rows, columns) for rows in (-FAR, 0, FAR) for columns in (-FAR, 0, FAR) if (rows, columns) != (0, 0)),
        *((-NEAR, 0), (NEAR, 0), (0, -NEAR), (0, NEAR)),
    ]
)
MAX_BORDER_PIXELS = 400  # that are compared, evenly spaced: more cost time, and tell no more
MAX_IMAGES = 200  # of a split that are compared, evenly spaced: a median of more tells no more
MIN_BORDER_PIXELS = 60  # fewer say too little

Gradients = NDArray[np.float32]


def gradient_map(image: RGB) -> Gradients:
    """The square root of the gradient of a small gray copy of an RGB uint8 image H x W x 3; float32, long side SIDE."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gray = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), cv2.COLOR_RGB2GRAY)
    horizontal, vertical = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    return np.asarray(cv2.sqrt(cv2.magnitude(horizontal, vertical)), np.float32)


def mask_alignment(gradients: Gradients, mask: MaskArray) -> float:
    """Mean gradient below the borders of a mask H x W / the highest one below the moved borders.

    Above 1 the mask lies best where it is. 0 if that is unknown: too few borders, a tiny or nearly flat image.
    """
    height, width = gradients.shape
    if min(height, width) < MIN_SIDE:
        return 0.0
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
    borders = edge_mask(mask.take(rows, axis=0).take(columns, axis=1))
    found = np.flatnonzero(borders[FAR:-FAR, FAR:-FAR])
    if len(found) < MIN_BORDER_PIXELS:
        return 0.0
    found = found[:: -(-len(found) // MAX_BORDER_PIXELS)]
    row, column = np.divmod(found, width - 2 * FAR)
    places = (row + FAR) * width + column + FAR
    offsets = SHIFTS @ (width, 1)
    in_place, *moved = gradients.ravel()[np.concatenate([[0], offsets])[:, None] + places].mean(axis=1)
    highest = float(max(moved))
    return float(in_place) / highest if highest > 1e-6 else 0.0
