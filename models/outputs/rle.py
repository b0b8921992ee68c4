"""COCO's compressed run-length encoding of a class's mask, column by column, as read by pycocotools.

Equals `rleEncode` and `rleToString` of cocodataset/cocoapi, common/maskApi.c. Lossless.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import Labels
from models.outputs.runs import find_runs


def coco_rle_counts(labels: Labels) -> dict[int, str]:
    """COCO's `counts` of each label that is present, 255 included, in one pass over labels uint8 H x W."""
    found = find_runs(np.asarray(cv2.transpose(labels), np.uint8), wrap_rows=True)  # NumPy takes ten times as long
    order = np.argsort(found.labels, kind="stable")
    present, firsts = np.unique(found.labels[order], return_index=True)
    counts = {}
    for label, runs in zip(present.tolist(), np.split(order, firsts[1:]), strict=True):
        edges = np.stack([found.starts[runs], found.stops[runs]], axis=1).ravel()
        if edges[-1] < labels.size:
            edges = np.append(edges, labels.size)
        counts[label] = pack_counts(np.diff(edges, prepend=0))
    return counts


def pack_counts(counts: NDArray[np.int64]) -> str:
    """Encode run lengths, alternately off and on, as characters of 5 bits, the lowest first: +32 if more follow, and +48.

    From the fourth on, each count is stored as the difference from the one two before. As in LEB128, the highest bit of
    the last character is the sign.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    letters, more = [], np.ones(len(values), np.bool_)
    written = []
    while more.any():
        written.append(more)
        letter = values & 0x1F
        values >>= 5
        more = more & (values != np.where(letter & 0x10, -1, 0))
        letters.append(letter + 48 + np.where(more, 0x20, 0))
    return np.stack(letters, axis=1).astype(np.uint8)[np.stack(written, axis=1)].tobytes().decode("ascii")
