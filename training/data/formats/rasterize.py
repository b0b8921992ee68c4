"""The regions that COCO speaks of, polygons and run lengths, painted into one label mask.

Both become runs of pixels counted down the columns, left to right, which is the order of COCO's run lengths
(cocodataset/cocoapi, common/maskApi.c). A pixel belongs to a polygon whose inside holds its centre, by the even-odd
rule. `maskApi.c` means the same and first rounds the outline to fifths of a pixel; `cv2.fillPoly` also paints every
pixel that the outline touches, which makes small things too large.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.imaging.decode import Labels

PixelRuns = NDArray[np.int64]  # R x 2: where each run starts, and the place after its end
POLYGONS, UNCOMPRESSED_RLE, COMPRESSED_RLE = range(
    3
)  # how a region is written: outlines, run lengths, run lengths in COCO's letters


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of N images in flat arrays: a million of them are handed to a worker at the cost of one copy."""

    sizes: NDArray[np.int64]  # N x 2: (height, width) of each image
    region_offsets: NDArray[np.int64]  # N + 1: each image's first region; R regions in all, in the order to paint them
    categories: NDArray[np.int64]  # R: category ids, -1 for void
    kinds: NDArray[np.uint8]  # R: POLYGONS, COUNTS or PACKED
    part_ranges: NDArray[np.int64]  # R x 2: first part and the one after the last; P parts in all
    byte_offsets: NDArray[np.int64]  # P + 1: where each part lies among the bytes
    data: bytes  # polygons: x, y, x, y ... as float32; counts as uint32; letters as they are

    def region_range(self, image: int) -> range:
        """The regions of one image, those to be painted last at the end."""
        return range(int(self.region_offsets[image]), int(self.region_offsets[image + 1]))

    def rasterize(self, image: int, labels: NDArray[np.uint8], ground: int) -> Labels:
        """The mask of one image: uint8 H x W. `labels`: R, by region; `ground`: where no region is.

        Raises: DataError for run lengths or points that are none.
        """
        height, width = self.sizes[image].tolist()
        columns = np.full(height * width, ground, np.uint8)
        for region in self.region_range(image):
            label = labels[region]
            for part in range(*self.part_ranges[region].tolist()):
                data = self.data[self.byte_offsets[part] : self.byte_offsets[part + 1]]
                for start, stop in region_runs(data, int(self.kinds[region]), (height, width)).tolist():
                    columns[start:stop] = label
        return np.ascontiguousarray(columns.reshape(width, height).T)


def region_runs(data: bytes, kind: int, size: tuple[int, int]) -> PixelRuns:
    """The pixels of one part of a region. Raises: DataError where it does not fit an image of that (height, width)."""
    if kind == POLYGONS:
        return polygon_runs(np.frombuffer(data, np.float32).reshape(-1, 2).astype(np.float64), size)
    counts = decode_compressed_rle(data) if kind == COMPRESSED_RLE else np.frombuffer(data, np.uint32).astype(np.int64)
    if counts.sum() != size[0] * size[1] or (counts < 0).any():
        raise DataError(f"run lengths cover {counts.sum():,} pixels, but the image has {size[1]} x {size[0]}.")
    ends = counts.cumsum()
    stops = ends[1::2]
    return np.stack([ends[0::2][: len(stops)], stops], axis=1)


def polygon_runs(points: NDArray[np.float64], size: tuple[int, int]) -> PixelRuns:
    """The pixels whose centre lies in a polygon: K x 2 corners (x, y) in pixels, a pixel's centre is at its place + 0.5.

    Corners may lie outside of the image, (height, width). Raises: DataError for a corner that is no number.
    """
    if not np.isfinite(points).all():
        raise DataError("a polygon has a corner that is no finite number.")
    height, width = size
    x, y = points[:, 0], points[:, 1]
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    # An edge crosses the centre line of the columns from `first` to before `last`; half-open, so that two edges that meet
    # on a centre line count once.
    first = np.ceil(np.minimum(x, x_next) - 0.5).clip(0, width).astype(np.int64)
    last = np.ceil(np.maximum(x, x_next) - 0.5).clip(0, width).astype(np.int64)
    crossed = last - first
    edge = np.repeat(np.arange(len(x)), crossed)
    column = np.arange(len(edge)) - np.repeat(crossed.cumsum() - crossed - first, crossed)
    rise = np.divide(y_next - y, x_next - x, out=np.zeros_like(y), where=crossed > 0)
    row = np.ceil(y[edge] + (column + 0.5 - x[edge]) * rise[edge] - 0.5).clip(0, height).astype(np.int64)
    return np.sort(column * height + row).reshape(-1, 2)


def decode_compressed_rle(letters: bytes) -> NDArray[np.int64]:
    """COCO's compressed run lengths to counts: `rleFrString` of cocodataset/cocoapi, common/maskApi.c.

    Like LEB128, but a letter carries 5 bits, the next 1 says that more follow, and 48 is added to make it printable. The
    highest bit of the last letter is the sign, and from the fourth on each count is the difference to the one two before.
    Raises: DataError for other letters, or for a text that ends within a count.
    """
    codes = np.frombuffer(letters, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise DataError("compressed run lengths hold other letters than COCO's, or end too early.")
    last = np.flatnonzero(codes & 0x20 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if place.max() > 11:
        raise DataError("compressed run lengths hold a count of more than 60 bits.")
    counts = np.add.reduceat((codes & 0x1F) << 5 * place, first)
    counts -= np.where(codes[last] & 0x10, np.int64(1) << 5 * (place[last] + 1), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts
