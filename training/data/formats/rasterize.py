"""Paints COCO regions, polygons and run lengths, into one label mask.

Both become runs of pixels in column-major order, the order of COCO's run lengths (cocodataset/cocoapi, common/maskApi.c).
A pixel belongs to a polygon if its center is inside, by the even-odd rule. `maskApi.c` does the same after rounding the
outline to fifths of a pixel; `cv2.fillPoly` also paints every pixel that the outline touches, which enlarges small objects.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError

LabelType = TypeVar("LabelType", np.uint8, np.uint32)
PixelRuns = NDArray[np.int64]  # R x 2: start and end (exclusive) of each run, column-major pixel indices
# How a region is stored: outlines, run lengths, run lengths compressed to letters.
POLYGONS, UNCOMPRESSED_RLE, COMPRESSED_RLE = range(3)


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of N images in flat arrays, so that passing a million of them to a worker costs one copy."""

    sizes: NDArray[np.int64]  # N x 2: (height, width) of each image
    region_offsets: NDArray[np.int64]  # N + 1: first region of each image; R regions in all, in painting order
    categories: NDArray[np.int64]  # R: category ids, -1 for ignored
    kinds: NDArray[np.uint8]  # R: POLYGONS, UNCOMPRESSED_RLE or COMPRESSED_RLE
    part_ranges: NDArray[np.int64]  # R x 2: first part and end (exclusive); P parts in all
    byte_offsets: NDArray[np.int64]  # P + 1: offset of each part in `data`
    data: bytes  # polygons: x, y, x, y ... as float32; run lengths as uint32; compressed ones as ASCII

    def region_range(self, image: int) -> range:
        """The regions of one image, in painting order."""
        return range(int(self.region_offsets[image]), int(self.region_offsets[image + 1]))

    def rasterize(self, image: int, labels: NDArray[LabelType], background: int) -> NDArray[LabelType]:
        """The mask of one image, H x W, of the type of the labels.

        `labels`: R, by region; `background`: the label outside all regions.

        Raises: DataError for invalid run lengths or points.
        """
        height, width = self.sizes[image].tolist()
        columns = np.full(height * width, background, labels.dtype)
        for region in self.region_range(image):
            label = labels[region]
            for part in range(*self.part_ranges[region].tolist()):
                data = self.data[self.byte_offsets[part] : self.byte_offsets[part + 1]]
                for start, stop in region_runs(data, int(self.kinds[region]), (height, width)).tolist():
                    columns[start:stop] = label
        return np.ascontiguousarray(columns.reshape(width, height).T)


def region_runs(data: bytes, kind: int, size: tuple[int, int]) -> PixelRuns:
    """The pixels of one part of a region. Raises: DataError if it does not fit an image of `size` (height, width)."""
    if kind == POLYGONS:
        return polygon_runs(np.frombuffer(data, np.float32).reshape(-1, 2).astype(np.float64), size)
    counts = decode_compressed_rle(data) if kind == COMPRESSED_RLE else np.frombuffer(data, np.uint32).astype(np.int64)
    if counts.sum() != size[0] * size[1] or (counts < 0).any():
        raise DataError(
            f"run lengths cover {counts.sum():,} pixels, but the image has {size[1]} x {size[0]}; export it again."
        )
    ends = counts.cumsum()
    stops = ends[1::2]
    return np.stack([ends[0::2][: len(stops)], stops], axis=1)


def polygon_runs(points: NDArray[np.float64], size: tuple[int, int]) -> PixelRuns:
    """The pixels whose center is inside a polygon.

    `points`: K x 2 corners (x, y) in pixels, where the center of a pixel is at its index + 0.5; they may be outside the image.
    `size`: (height, width). Raises: DataError for a corner that is not finite.
    """
    if not np.isfinite(points).all():
        raise DataError("a polygon has a corner that is not a finite number.")
    height, width = size
    x, y = points[:, 0], points[:, 1]
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    # An edge crosses the center lines of the columns `first` to `last` (exclusive); half-open, so that two edges that share
    # a corner on a center line count once.
    first = np.ceil(np.minimum(x, x_next) - 0.5).clip(0, width).astype(np.int64)
    last = np.ceil(np.maximum(x, x_next) - 0.5).clip(0, width).astype(np.int64)
    crossed = last - first
    edge = np.repeat(np.arange(len(x)), crossed)
    column = np.arange(len(edge)) - np.repeat(crossed.cumsum() - crossed - first, crossed)
    slope = np.divide(y_next - y, x_next - x, out=np.zeros_like(y), where=crossed > 0)
    row = np.ceil(y[edge] + (column + 0.5 - x[edge]) * slope[edge] - 0.5).clip(0, height).astype(np.int64)
    return np.sort(column * height + row).reshape(-1, 2)


def decode_compressed_rle(letters: bytes) -> NDArray[np.int64]:
    """Decode COCO's compressed run lengths: `rleFrString` of cocodataset/cocoapi, common/maskApi.c.

    Like LEB128, but a letter carries 5 bits, the sixth bit marks continuation, and 48 is added to make it printable. The
    highest bit of the last letter is the sign, and from the fourth on a count is stored as the difference to the one two before.
    Raises: DataError for invalid letters, or if the text ends within a count.
    """
    codes = np.frombuffer(letters, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise DataError("compressed run lengths have invalid letters or are truncated; export it again.")
    last = np.flatnonzero(codes & 0x20 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    position = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if position.max() > 11:
        raise DataError("compressed run lengths have a count of more than 60 bits; export it again.")
    counts = np.add.reduceat((codes & 0x1F) << 5 * position, first)
    counts -= np.where(codes[last] & 0x10, np.int64(1) << 5 * (position[last] + 1), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts
