"""Run-length encoding of a label map, and its connected components. A map of millions of pixels has few runs.

A run is a sequence of equal pixels in one row. Regions have one label each and are 4-connected.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import ImageTooLargeError
from models.imaging.decode import Labels

# Runs of one map. Masks of photographs have some ten thousand; regions and COCO's counts take up to 150 bytes a run.
MAX_RUNS = 2_000_000

PixelIndices = NDArray[np.int64]  # row-major indices of pixels, from 0 at the top left


class Runs(NamedTuple):
    """R runs in the order of their pixels."""

    starts: PixelIndices  # R: the first pixel
    stops: PixelIndices  # R: the pixel after the last
    labels: NDArray[np.uint8]  # R

    def run_containing(self, pixels: PixelIndices) -> NDArray[np.int64]:
        """The index of the run that contains each of these pixels; fastest if they ascend."""
        return np.searchsorted(self.starts, pixels, side="right") - 1


def find_runs(labels: Labels, wrap_rows: bool = False) -> Runs:
    """The runs of a label map, uint8 H x W. With `wrap_rows`, a run continues if the next row begins with its label.

    Raises: ImageTooLargeError for more than MAX_RUNS, before it creates them.
    """
    flat = np.ascontiguousarray(labels).ravel()
    changes = np.empty(flat.size, np.bool_)
    changes[0] = True
    np.not_equal(flat[1:], flat[:-1], out=changes[1:])
    if not wrap_rows:
        changes[:: labels.shape[1]] = True
    count = np.count_nonzero(changes)
    if count > MAX_RUNS:
        raise ImageTooLargeError(
            f"This mask has {count:,} runs of equal pixels in a row; the limit for regions, polygons and run-length encoding "
            f"is {MAX_RUNS:,}. Use the format png, or a smaller image."
        )
    starts = np.flatnonzero(changes).astype(np.int64, copy=False)
    return Runs(starts, np.append(starts[1:], flat.size), flat[starts])


def connected_components(found: Runs, width: int) -> NDArray[np.int64]:
    """The region of each run, as the index of the region's first run, for a map that is `width` pixels wide.

    `cv2.connectedComponents` handles one class at a time: at 12 megapixels, this takes as long for all classes as that
    does for one.
    """
    # If two runs of neighboring rows touch, the first pixel of one is directly above or below a pixel of the other.
    pairs = []
    for step in (-width, width):
        neighbor = found.starts + step
        run = np.flatnonzero((neighbor >= 0) & (neighbor < found.stops[-1]))
        other = found.run_containing(neighbor[run])
        same_label = found.labels[run] == found.labels[other]
        pairs.append((run[same_label], other[same_label]))
    one, two = (np.concatenate(side) for side in zip(*pairs, strict=True))
    root = np.arange(len(found.starts))
    while len(one):
        # Union: the later of two roots gets the earlier as its parent. If there are several, any of them is set, and the
        # next round merges the others.
        root[np.maximum(one, two)] = np.minimum(one, two)
        while not np.array_equal(parent := root[root], root):
            root = parent
        one, two = root[one], root[two]
        separate = one != two
        one, two = one[separate], two[separate]
    return root
