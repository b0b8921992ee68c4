"""Polygons along the edges of pixels: filling them by the centers of pixels restores the mask exactly.

A corner (x, y) lies between pixels: (0, 0) is the top left corner of the image, x increases to the right and y down. All
classes are traced in one pass over their vertices, the corners where an outline turns. Along a row of corners, vertices
1 and 2 of a class, 3 and 4, and so on, are the ends of an edge of the outline; the same holds along a column. The
neighbors of a vertex on its ring are therefore found by sorting twice, and no outline is followed pixel by pixel.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import ImageTooLargeError
from models.imaging.decode import Labels
from models.outputs.runs import PixelIndices, connected_components, find_runs
from models.spec import IGNORE_INDEX

Corners = NDArray[np.int32]  # K x 2: (x, y)
Ring = list[list[int]]  # corners [x, y]; the last is the first again
Polygon = list[Ring]  # the outline, then the holes

# Corners of all outlines. The mask of a photograph has some ten thousand; in noise nearly every pixel has its own corners,
# and their polygons would take a minute and gigabytes.
MAX_CORNERS = 500_000
MAX_SIMPLIFIED_CORNERS = 4096  # of a part of a ring that is simplified at once: 15 ms
STRIP_PIXELS = 1 << 20  # of the label map, looked at at once

# Patterns: which of the four pixels around a corner belong to the class. Bits: above left 1, above right 2, below left 4,
# below right 8.
STRAIGHT_PATTERNS = [0, 3, 5, 10, 12, 15]  # an outline along a row or a column, or none
DIAGONAL_PATTERNS = [6, 9]  # two pixels that touch only at this corner
# With the class to its right, an outline leaves these vertices along the row, and the others along the column.
ROW_EXIT_PATTERNS = [1, 8, 9, 11, 13]


class Vertices(NamedTuple):
    """T vertices of all classes' outlines."""

    corners: Corners  # T x 2
    pixels: PixelIndices  # T: a pixel of the class at the vertex, row-major
    next_vertex: NDArray[np.int64]  # T: the next vertex of the ring, with the class to the right
    twins: dict[int, int]  # vertex -> the other vertex at the same corner, for those that have one


def trace_polygons(labels: Labels, classes: int, simplify: float = 0.0) -> dict[int, list[Polygon]]:
    """The polygons of each class that is present, one per region: coordinates of a GeoJSON MultiPolygon (RFC 7946).

    Regions are 4-connected: pixels that touch only at a corner are in two regions. No ring passes a corner twice. With y
    pointing up, outlines run counterclockwise and holes clockwise, as RFC 7946 requires; on a screen, with y pointing
    down, outlines run clockwise.

    Args:
        labels: uint8 H x W; labels >= `classes` belong to no class.
        classes: the number of classes.
        simplify: maximum distance, in pixels, by which an outline may move to have fewer corners (Douglas-Peucker, for
            each ring separately: neighbors may separate or overlap by as much). Rings that collapse are left out.

    Raises: ImageTooLargeError for more than MAX_CORNERS corners.
    """
    found = find_vertices(labels, classes)
    every = list(trace_rings(found))
    if not every:
        return {}
    runs = find_runs(labels)
    region = connected_components(runs, labels.shape[1])
    order = np.concatenate(every)
    corners = np.split(found.corners[order], np.cumsum([len(ring) for ring in every[:-1]]))
    firsts = region[runs.run_containing(found.pixels[[ring[0] for ring in every]])].tolist()

    outlines: dict[int, Ring] = {}
    holes: defaultdict[int, list[Ring]] = defaultdict(list)
    for first, ring in zip(firsts, corners, strict=True):
        is_outline = signed_area(ring) > 0
        if simplify > 0:
            ring = simplify_ring(ring, simplify)
            if signed_area(ring) == 0 or (signed_area(ring) > 0) != is_outline:
                continue
        closed = [*ring.tolist(), ring[0].tolist()]
        if is_outline:
            outlines[first] = closed
        else:
            holes[first].append(closed)
    polygons: defaultdict[int, list[Polygon]] = defaultdict(list)
    for first, outline in sorted(outlines.items()):
        polygons[int(runs.labels[first])].append([outline, *holes[first]])
    return dict(polygons)


def simplify_ring(ring: Corners, tolerance: float) -> Corners:
    """Leave out corners of a ring, K x 2, as long as the outline moves by at most `tolerance` pixels (Douglas-Peucker).

    Its time grows with the square of the length, to minutes for a ring of MAX_CORNERS: the parts of a long ring are simplified
    separately, between corners that are kept.
    """
    if len(ring) <= MAX_SIMPLIFIED_CORNERS:
        return np.asarray(cv2.approxPolyDP(ring, tolerance, closed=True), np.int32)[:, 0]
    closed = np.concatenate([ring, ring[:1]])
    starts = range(0, len(ring), MAX_SIMPLIFIED_CORNERS)
    parts = [closed[start : start + MAX_SIMPLIFIED_CORNERS + 1] for start in starts]
    kept = [np.asarray(cv2.approxPolyDP(part, tolerance, closed=False), np.int32)[:-1, 0] for part in parts]
    return np.concatenate(kept)


def signed_area(ring: Corners) -> float:
    """The area of a ring, in pixels; negative for a hole."""
    return cv2.contourArea(ring, oriented=True)


def find_vertices(labels: Labels, classes: int) -> Vertices:
    """The vertices of the outlines of labels < `classes`, in labels uint8 H x W. Raises: ImageTooLargeError."""
    height, width = labels.shape
    x, y, around = _find_bends(labels)

    # Each of the four pixels may belong to another class, which has a vertex here. Pixels of the same class share a vertex,
    # that of the first one; only those that touch at this corner alone have one each.
    same = (around[:, :, None] == around[:, None, :]) * np.array([1, 2, 4, 8], np.uint8)
    pattern = same.sum(axis=2, dtype=np.uint8)
    own = (pattern & np.array([0, 1, 3, 7], np.uint8) == 0) | np.isin(pattern, DIAGONAL_PATTERNS)
    corner, pixel = np.nonzero(own & ~np.isin(pattern, STRAIGHT_PATTERNS) & (around < classes))
    label = around[corner, pixel].astype(np.int64)
    pattern, x, y = pattern[corner, pixel], x[corner], y[corner]

    # Of two vertices at one corner, that of the left pixel ends the edge from the left, that of the upper pixel the one
    # from above.
    order = np.argsort(((label * (height + 1) + y) * (width + 1) + x) * 2 + pixel % 2)
    label, pixel, pattern, x, y = label[order], pixel[order], pattern[order], x[order], y[order]
    row_end = np.arange(len(x)) ^ 1
    down = np.argsort(((label * (width + 1) + x) * (height + 1) + y) * 2 + pixel // 2)
    column_end = np.empty_like(row_end)
    column_end[down] = down[row_end]
    double = np.flatnonzero(np.isin(pattern, DIAGONAL_PATTERNS))[::2]
    twins = dict(zip(double.tolist(), (double + 1).tolist(), strict=True))
    return Vertices(
        corners=np.stack([x, y], axis=1).astype(np.int32),
        pixels=(y - 1 + pixel // 2) * width + x - 1 + pixel % 2,
        next_vertex=np.where(np.isin(pattern, ROW_EXIT_PATTERNS), row_end, column_end),
        twins=twins | {second: first for first, second in twins.items()},
    )


def _find_bends(labels: Labels) -> tuple[PixelIndices, PixelIndices, NDArray[np.uint8]]:
    """The corners where an outline of any label turns, in the order of their rows, in labels uint8 H x W.

    Works in strips of rows, because the temporary arrays take several bytes per pixel.
    Returns: x and y of each of the B corners; and the pixels around it, B x 4: above left, above right, below left, below
    right. Raises: ImageTooLargeError for more than MAX_CORNERS.
    """
    height, width = labels.shape
    strip, parts, count = max(1, STRIP_PIXELS // (width + 2)), [], 0
    for top in range(0, height + 1, strip):  # the first row of corners; there are height + 1
        bottom = min(top + strip, height + 1)
        margins = (int(top == 0), int(bottom == height + 1))
        padded = np.pad(labels[max(0, top - 1) : bottom], (margins, (1, 1)), constant_values=IGNORE_INDEX)
        beside, below = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
        bends = (beside[:-1] | beside[1:]) & (below[:, :-1] | below[:, 1:])
        count += int(np.count_nonzero(bends))
        if count > MAX_CORNERS:
            raise ImageTooLargeError(
                f"The outlines of this mask have more than {MAX_CORNERS:,} corners, the limit for polygons. Use masks=rle or "
                "masks=png, or remove small regions with min_area."
            )
        y, x = np.divmod(np.flatnonzero(bends), width + 1)
        around = np.stack([padded[y, x], padded[y, x + 1], padded[y + 1, x], padded[y + 1, x + 1]], axis=1)
        parts.append((x, y + top, around))
    x, y, around = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, y, around


def trace_rings(found: Vertices) -> Iterator[list[int]]:
    """Yield each ring as vertices. A ring that passes a corner twice is split there, because GeoJSON's rings are simple."""
    next_vertex = found.next_vertex.tolist()
    visited = bytearray(len(next_vertex))
    for first in range(len(next_vertex)):
        ring: list[int] = []
        vertex = first
        while not visited[vertex]:
            visited[vertex] = 1
            ring.append(vertex)
            vertex = next_vertex[vertex]
        if ring and not found.twins.keys().isdisjoint(ring):
            yield from split_ring(ring, found.twins)
        elif ring:
            yield ring


def split_ring(ring: list[int], twins: dict[int, int]) -> Iterator[list[int]]:
    """Split a ring wherever it returns to a corner."""
    path: list[int] = []
    positions: dict[int, int] = {}  # vertex -> index in the path
    for vertex in ring:
        start = positions.get(twins.get(vertex, -1))
        if start is not None:
            yield path[start:]
            for removed in path[start:]:
                del positions[removed]
            del path[start:]
        positions[vertex] = len(path)
        path.append(vertex)
    yield path
