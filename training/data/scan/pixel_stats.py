"""What is counted on the pixels of an image and its mask, in a few quick passes."""

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from models.imaging.decode import RGB

MAX_VALUES = 256  # values kept of a mask: more than 255 classes there are none
MAX_EXACT_COUNT = 1 << 24  # pixels at a time: OpenCV counts in float32
MIN_CONTRAST = 2.0  # grey levels: an image that varies less at 32 x 32 looks like every other such one
HASH_SIDE, HASH_FREQUENCIES = 32, 8

MaskArray = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
ValueCounts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]


def count_values(mask: MaskArray) -> ValueCounts:
    """Of a mask H x W: the values that occur, K ascending, at most the 256 most frequent ones; their pixels by quarter,
    K x (top, bottom) x (left, right); their pixels at an edge, K; and how many values more there are.

    The middle row and column of an odd size belong to the bottom and the right.
    """
    places, values = _index_values(mask)
    height, width = places.shape
    rows, columns = (slice(height // 2), slice(height // 2, None)), (slice(width // 2), slice(width // 2, None))
    quarters = np.stack([np.stack([histogram(places[row, column]) for column in columns]) for row in rows])
    edges = histogram(places, edge_mask(mask))
    if len(values) > MAX_VALUES:  # the last place counts all that is not kept
        quarters, edges = quarters[..., :MAX_VALUES], edges[:MAX_VALUES]
    there = np.flatnonzero(quarters.any(axis=(0, 1)))
    return (
        values[there],
        np.moveaxis(quarters[..., there], -1, 0).copy(),
        edges[there],
        max(0, len(values) - MAX_VALUES),
    )


def _index_values(mask: MaskArray) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.int64]]:
    """Each pixel's place among the values, H x W, and the values: the kept ones ascending, then the others.

    Values are sorted by runs, not by pixels: a mask has few of them, also in 24-bit colours.
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
        place = np.full(len(values), MAX_VALUES, np.uint16)
        place[kept] = np.arange(MAX_VALUES)
        values = np.concatenate([values[kept], np.delete(values, kept)])
        return np.repeat(place[runs], lengths).reshape(mask.shape), values.astype(np.int64)
    return np.repeat(runs.astype(np.uint8), lengths).reshape(mask.shape), values.astype(np.int64)


def edge_mask(mask: MaskArray) -> NDArray[np.bool_]:
    """Whether a pixel has one of its 4 neighbours of another value; H x W."""
    edge = np.zeros(mask.shape, np.bool_)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def histogram(
    places: NDArray[np.uint8] | NDArray[np.uint16], where: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Pixels at each place, 257; of those that `where` names."""
    counts = np.zeros(MAX_VALUES + 1, np.int64)
    height, width = places.shape
    rows = max(1, MAX_EXACT_COUNT // max(1, width))
    for top in range(0, height if width else 0, rows):
        chosen = None if where is None else where[top : top + rows].view(np.uint8)
        found = cv2.calcHist([places[top : top + rows]], [0], chosen, [MAX_VALUES + 1], [0, MAX_VALUES + 1])
        counts += found.ravel().astype(np.int64)
    return counts


def pixel_digest(image: RGB) -> str:
    """A name for an image's pixels, whatever file they came from: SHA-256 of size and samples, its first 128 bits.

    Processors have it in hardware: it took half the time of BLAKE2b, and no two images share one by chance.
    """
    hashed = hashlib.sha256(repr(image.shape).encode())
    hashed.update(np.ascontiguousarray(image).data)
    return hashed.hexdigest()[:32]


def perceptual_hash(image: RGB) -> int:
    """64 bits that differ in few places for images that look alike: the signs of the 8 x 8 slowest waves of a cosine
    transform of 32 x 32 grey levels, against their median (pHash, Zauner 2010). 0 is an image too flat to tell.
    """
    some = image[:: max(1, image.shape[0] // (HASH_SIDE * 4))]  # four rows for each are enough, and much quicker
    small = cv2.resize(some, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    if cv2.meanStdDev(grey)[1].item() < MIN_CONTRAST:
        return 0
    waves = cv2.dct(grey.astype(np.float32))[:HASH_FREQUENCIES, :HASH_FREQUENCIES].ravel()
    bits = waves > np.median(waves)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
