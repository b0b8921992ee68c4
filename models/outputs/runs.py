"""A label map as runs of equal pixels: few, where the map has millions of pixels, and all that regions need.

A run is a piece of one row. Regions are connected by their pixels' sides (4-connectivity), of one label each.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels

PixelIndices = NDArray[np.int64]  # pixels counted along the rows, from the top left one, which is 0


class Runs(NamedTuple):
    """R runs in the order of their places."""

    starts: PixelIndices  # R: the first pixel
    stops: PixelIndices  # R: the one after the last
    labels: NDArray[np.uint8]  # R

    def run_containing(self, places: PixelIndices) -> NDArray[np.int64]:
        """The run that holds each of these pixels; rising places are found soonest."""
        return np.searchsorted(self.starts, places, side="right") - 1


def find_runs(labels: Labels, wrap_rows: bool = False) -> Runs:
    """The runs of a label map, uint8 H x W; `across`: a run goes on where the next row begins with its label."""
    flat = np.ascontiguousarray(labels).ravel()
    changes = np.empty(flat.size, np.bool_)
    changes[0] = True
    np.not_equal(flat[1:], flat[:-1], out=changes[1:])
    if not wrap_rows:
        changes[:: labels.shape[1]] = True
    starts = np.flatnonzero(changes).astype(np.int64, copy=False)
    return Runs(starts, np.append(starts[1:], flat.size), flat[starts])


def connected_components(found: Runs, width: int) -> NDArray[np.int64]:
    """The region of each run, as the number of the region's first run, for a map that is `width` pixels wide.

    `cv2.connectedComponents` knows one class at a time: at 12 megapixels this is as quick for all as that is for one.
    """
    # Where two runs of neighbouring rows touch, one of them begins at or over the other.
    pairs = []
    for step in (-width, width):
        there = found.starts + step
        run = np.flatnonzero((there >= 0) & (there < found.stops[-1]))
        other = found.run_containing(there[run])
        alike = found.labels[run] == found.labels[other]
        pairs.append((run[alike], other[alike]))
    one, two = (np.concatenate(side) for side in zip(*pairs, strict=True))
    root = np.arange(len(found.starts))
    while len(one):
        # The later of two roots goes under the earlier; where it has several such, any will do, the others come next.
        root[np.maximum(one, two)] = np.minimum(one, two)
        while not np.array_equal(above := root[root], root):
            root = above
        one, two = root[one], root[two]
        apart = one != two
        one, two = one[apart], two[apart]
    return root
