"""Nearest-neighbor resizing of one axis, for masks, images and volumes."""

import numpy as np
from numpy.typing import NDArray


def nearest_indices(length: int, new_length: int) -> NDArray[np.intp]:
    """The pixel, of `length`, that is nearest to the center of each of `new_length` pixels over the same extent.

    Where two are equally near, as at every pixel when a length is halved, every second takes the lower one: one side for all
    would shift a mask by a quarter of a pixel.
    """
    doubled_centers = (2 * np.arange(new_length) + 1) * length  # in units of 1 / (2 * new_length) pixels
    nearest, remainder = np.divmod(doubled_centers, 2 * new_length)
    ties = np.flatnonzero(remainder == 0)
    nearest[ties[::2]] -= 1
    return nearest
