"""Pixel counts of a mask, and digest and perceptual hash of an image, in a few fast passes."""

import hashlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import RGB

MAX_VALUES = 256  # values kept per mask; there are at most 255 classes
MAX_EXACT_COUNT = 1 << 24  # pixels per call: OpenCV counts in float32
MIN_CONTRAST = 2.0  # gray levels, standard deviation; flatter images all have similar hashes
HASH_SIDE, HASH_FREQUENCIES = 32, 8
MAX_HASH_ASPECT = 16  # of the long to the short side

MaskArray = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
ValueCounts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]


def count_values(mask: MaskArray) -> ValueCounts:
    """Count the pixels of each value in a mask H x W.

    Returns: the values, K ascending, at most the 256 most frequent ones; their pixels by quarter,
    K x (top, bottom) x (left, right); their pixels at an edge, K; and the number of values that were dropped.
    The middle row and column of an odd size belong to the bottom and the right.
    """
    indices, values = _index_values(mask)
    height, width = indices.shape
    rows, columns = (slice(height // 2), slice(height // 2, None)), (slice(width // 2), slice(width // 2, None))
    quarters = np.stack([np.stack([histogram(indices[row, column]) for column in columns]) for row in rows])
    edges = histogram(indices, edge_mask(mask))
    if len(values) > MAX_VALUES:  # the last bin counts all dropped values
        quarters, edges = quarters[..., :MAX_VALUES], edges[:MAX_VALUES]
    present = np.flatnonzero(quarters.any(axis=(0, 1)))
    return (
        values[present],
        np.moveaxis(quarters[..., present], -1, 0).copy(),
        edges[present],
        max(0, len(values) - MAX_VALUES),
    )


def _index_values(mask: MaskArray) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.int64]]:
    """Each pixel's index into the values, H x W, and the values: the kept ones ascending, then the dropped ones.

    Sorts runs of equal values instead of pixels: a mask has few runs, even with 24-bit colors.
    """
    if mask.dtype == np.uint8:
        return mask.view(np.uint8), np.arange(256, dtype=np.int64)
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(starts, append=flat.size)
    values, runs = np.unique(flat[starts], return_inverse=True)
    if len(values) > MAX_VALUES:
        pixels = np.bincount(runs, weights=lengths)
        kept = np.sort(np.argsort(-pixels, kind="stable")[:MAX_VALUES])
        index = np.full(len(values), MAX_VALUES, np.uint16)
        index[kept] = np.arange(MAX_VALUES)
        values = np.concatenate([values[kept], np.delete(values, kept)])
        return np.repeat(index[runs], lengths).reshape(mask.shape), values.astype(np.int64)
    return np.repeat(runs.astype(np.uint8), lengths).reshape(mask.shape), values.astype(np.int64)


def count_border_runs(mask: MaskArray, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of the values, K ascending, begins on a walk around the outermost pixels of a mask H x W; K.

    An object that the image cuts is one run; two that touch each other there count as one.
    """
    frame = mask.ravel()
    if min(mask.shape) > 1:
        frame = np.concatenate([mask[0], mask[1:, -1], mask[-1, -2::-1], mask[-2:0:-1, 0]])
    changes = np.flatnonzero(frame[1:] != frame[:-1]) + 1
    starts = frame[changes if frame[0] == frame[-1] and len(changes) else np.append(changes, 0)].astype(np.int64)
    found, counts = np.unique(starts, return_counts=True)
    kept = np.isin(found, values)  # of more than MAX_VALUES values, some are dropped
    runs = np.zeros(len(values), np.int64)
    runs[np.searchsorted(values, found[kept])] = counts[kept]
    return runs


def edge_mask(mask: MaskArray) -> NDArray[np.bool_]:
    """Whether one of the 4 neighbors of a pixel has another value; bool H x W."""
    edge = np.zeros(mask.shape, np.bool_)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def histogram(
    indices: NDArray[np.uint8] | NDArray[np.uint16], where: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Pixel counts of the indices 0 to 256, limited to the pixels in `where`; 257."""
    counts = np.zeros(MAX_VALUES + 1, np.int64)
    height, width = indices.shape
    rows = max(1, MAX_EXACT_COUNT // max(1, width))
    for top in range(0, height if width else 0, rows):
        selected = None if where is None else where[top : top + rows].view(np.uint8)
        found = cv2.calcHist([indices[top : top + rows]], [0], selected, [MAX_VALUES + 1], [0, MAX_VALUES + 1])
        counts += found.ravel().astype(np.int64)
    return counts


def pixel_digest(pixels: NDArray[Any]) -> str:
    """Digest of the values of an image or mask, independent of its file: the first 128 bits of SHA-256 over size and samples.

    Processors have SHA-256 in hardware: it took half the time of BLAKE2b.
    """
    hashed = hashlib.sha256(repr(pixels.shape).encode())
    hashed.update(np.ascontiguousarray(pixels).view(np.uint8).data)
    return hashed.hexdigest()[:32]


def perceptual_hash(image: RGB) -> int:
    """64-bit hash that differs in few bits for similar images; 0 for an image with too little contrast, or too narrow.

    pHash (Zauner 2010): whether each of the 8 x 8 lowest frequencies of the cosine transform of 32 x 32 gray levels is above
    their median.
    """
    if min(image.shape[:2]) < HASH_FREQUENCIES or max(image.shape[:2]) > MAX_HASH_ASPECT * min(image.shape[:2]):
        return 0  # signals drawn as one row: averaged over a hundred columns, all are alike
    rows = image[:: max(1, image.shape[0] // (HASH_SIDE * 4))]  # four rows per output row are enough, and much faster
    small = cv2.resize(rows, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    if cv2.meanStdDev(gray)[1].item() < MIN_CONTRAST:
        return 0
    frequencies = cv2.dct(gray.astype(np.float32))[:HASH_FREQUENCIES, :HASH_FREQUENCIES].ravel()
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
