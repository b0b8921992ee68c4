"""Boundary IoU: how well contours are met (Cheng et al. 2021, arXiv 2103.16562).

IoU is ruled by the inside of large objects; this is IoU between the boundary regions alone. The boundary region of a
mask holds its pixels that are within d of its contour, d being 2% of the image's diagonal and at least one pixel. As in
the authors' code (boundary-iou-api, `mask_to_boundary`) distance is that of a square window, and the image's border
counts as a contour. Here the masks are those of a label map's classes, and pixels whose truth is void belong to
no mask, neither of the truth nor of the answer: whatever is answered there, an answer that is right elsewhere scores 1.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.spec import IGNORE_INDEX

DILATION_RATIO = 0.02  # of the image's diagonal


def boundary_width(size: tuple[int, int]) -> int:
    """How far inwards a boundary reaches in an image of (height, width), in pixels, >= 1."""
    return max(1, round(DILATION_RATIO * float(np.hypot(*size))))


def boundary_mask(labels: Labels, depth: int) -> NDArray[np.bool_]:
    """Which pixels of labels uint8 H x W are in the boundary region of their own class's mask; bool H x W.

    One pass for all classes: a pixel is inside where its window holds no other label and lies in the image.
    """
    window = np.ones((2 * depth + 1, 2 * depth + 1), np.uint8)
    edge = np.not_equal(cv2.erode(labels, window), cv2.dilate(labels, window))
    edge[:depth] = edge[-depth:] = True
    edge[:, :depth] = edge[:, -depth:] = True
    return edge


def boundary_counts(truth: Labels, answer: Labels, classes: int) -> NDArray[np.int64]:
    """3 x C pixels of one image: boundary pixels that both share, of the truth, and of the answer, by class.

    `truth`, `answer`: uint8 H x W, 255 is void.
    """
    known = np.where(truth == IGNORE_INDEX, np.uint8(IGNORE_INDEX), answer)
    depth = boundary_width((truth.shape[0], truth.shape[1]))
    in_truth, in_answer = boundary_mask(truth, depth), boundary_mask(known, depth)
    both = in_truth & in_answer & (truth == known)
    # How far a pixel comes (0: no boundary, 1: the truth's, 2: both) stands above its label: picking pixels out is slower.
    of_truth, of_answer = (
        _count_by_label(truth, in_truth.view(np.uint8) + both),
        _count_by_label(known, in_answer.view(np.uint8)),
    )
    return np.stack([of_truth[2], of_truth[1] + of_truth[2], of_answer[1]])[:, :classes]


def _count_by_label(labels: Labels, level: NDArray[np.uint8]) -> NDArray[np.int64]:
    """3 x 256 pixels: by level, 0..2, and label; both uint8 H x W."""
    return (
        np.bincount((level.astype(np.uint16) << 8 | labels).ravel(), minlength=3 << 8).reshape(3, 256).astype(np.int64)
    )
