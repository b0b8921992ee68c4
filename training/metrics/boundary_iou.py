"""Boundary IoU: how well the contours agree (Cheng et al. 2021, arXiv 2103.16562).

The inside of large objects dominates IoU; this is the IoU of the boundary regions alone. The boundary region of a mask
holds its pixels within d of its contour, d being 2% of the image's diagonal and at least one pixel. As in the authors'
code (boundary-iou-api, `mask_to_boundary`), the distance is that of a square window, and the image's border counts as a
contour. Here the masks are the classes of a label mask. Pixels that the ground truth ignores belong to no mask, neither
of the ground truth nor of the prediction: whatever is predicted there, a prediction that is right elsewhere scores 1.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX

DILATION_RATIO = 0.02  # of the image's diagonal


def boundary_width(size: tuple[int, int]) -> int:
    """How far a boundary region reaches inwards in an image of (height, width), in pixels, >= 1."""
    return max(1, round(DILATION_RATIO * float(np.hypot(*size))))


def boundary_mask(labels: Labels, width: int) -> NDArray[np.bool_]:
    """Which pixels of labels uint8 H x W are in the boundary region of their own class's mask; bool H x W.

    One pass for all classes: a pixel is inside if its window holds no other label and lies in the image.
    """
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    edge = np.not_equal(cv2.erode(labels, window), cv2.dilate(labels, window))
    edge[:width] = edge[-width:] = True
    edge[:, :width] = edge[:, -width:] = True
    return edge


def boundary_counts(target: Labels, prediction: Labels, classes: int) -> NDArray[np.int64]:
    """3 x C boundary pixels of one image by class: in both, in the ground truth, in the prediction.

    `target`, `prediction`: uint8 H x W, 255 is ignored.
    """
    known = np.where(target == IGNORE_INDEX, np.uint8(IGNORE_INDEX), prediction)
    width = boundary_width((target.shape[0], target.shape[1]))
    in_target, in_prediction = boundary_mask(target, width), boundary_mask(known, width)
    both = in_target & in_prediction & (target == known)
    # The level of a pixel (0: no boundary, 1: ground truth's, 2: both) goes into the byte above its label: selecting
    # pixels is slower.
    of_target = _count_by_label(target, in_target.view(np.uint8) + both)
    of_prediction = _count_by_label(known, in_prediction.view(np.uint8))
    return np.stack([of_target[2], of_target[1] + of_target[2], of_prediction[1]])[:, :classes]


def _count_by_label(labels: Labels, level: NDArray[np.uint8]) -> NDArray[np.int64]:
    """3 x 256 pixels: by level, 0..2, and label; both uint8 H x W."""
    keys = level.astype(np.uint16) << 8 | labels
    return np.bincount(keys.ravel(), minlength=3 << 8).reshape(3, 256).astype(np.int64)
