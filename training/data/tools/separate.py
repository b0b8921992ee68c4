"""`data remap --separate`: a line of background between touching objects of one class, so that they stay two regions.

Each pixel of an object that touches another object of its class, also at a corner, becomes background: a line two pixels wide, as
in the training masks of U-Net (Ronneberger et al. 2015) and of nuclei.
"""

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.imaging.decode import Labels
from training.data.dataset import SegmentationDataset

BACKGROUND = 0
NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # the other four of a pixel's eight are these, seen from there


def read_instances(dataset: SegmentationDataset, index: int) -> NDArray[np.uint32]:
    """The number of the object at each pixel, H x W; 0 where there is none.

    Raises: DataError for a format whose masks do not tell objects apart.
    """
    read = getattr(dataset.mask_reader, "instances", None)
    if read is None:
        raise DataError(
            f"{dataset.pairs[index].mask} does not tell the objects of a class apart; --separate needs a mask or an outline for "
            "each object, as in COCO, YOLO, labelme, CVAT, Supervisely, or ID/masks/*.png."
        )
    numbers: NDArray[np.uint32] = read(dataset.pairs[index])
    return numbers


def separate_touching(labels: Labels, instances: NDArray[np.uint32]) -> Labels:
    """The labels, uint8 H x W, with background between touching objects of one class. `instances`: as `read_instances`."""
    touching = np.zeros(labels.shape, bool)
    height, width = labels.shape
    for down, right in NEIGHBORS:
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        differ = (instances[here] != instances[there]) & (labels[here] == labels[there]) & (labels[here] != BACKGROUND)
        differ &= (instances[here] > 0) & (instances[there] > 0)
        touching[here] |= differ
        touching[there] |= differ
    return np.where(touching, np.uint8(BACKGROUND), labels)
