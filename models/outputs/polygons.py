"""Outlines along the pixels' edges: filling them by the pixels' centres gives the mask back, pixel by pixel.

A corner (x, y) is a place between pixels: (0, 0) is the top left one of the image, x grows to the right and y down. All
classes are traced in one pass, by their turns: the corners where an outline does not go straight on. Along a row of
corners each odd turn of a class begins a piece of outline that the next one ends; along a column it is the same. So a
turn's neighbours on its ring are the next ones of two sorted lists, and no pixel is ever walked.
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
Polygon = list[Ring]  # its outline, then its holes

# Corners of all outlines. A mask of a photograph has some ten thousand; in noise nearly every pixel has its own, and their
# polygons would take a minute and gigabytes.
MAX_CORNERS = 500_000

# Of the four pixels around a corner, above left 1, above right 2, below left 4, below right 8: which are of the class.
STRAIGHT_PATTERNS = [0, 3, 5, 10, 12, 15]  # an outline along a row or a column, or none
DIAGONAL_PATTERNS = [6, 9]  # two pixels that touch by this corner alone
# With the class on the right hand, an outline leaves these turns along the row, and the others along the column.
ROW_EXIT_PATTERNS = [1, 8, 9, 11, 13]


class Vertices(NamedTuple):
    """T turns of all classes' outlines."""

    corners: Corners  # T x 2
    pixels: PixelIndices  # T: a pixel of the class that lies at it, counted along the rows
    next_vertex: NDArray[np.int64]  # T: the next turn of its ring, with the class on the right hand
    twins: dict[int, int]  # the other turn at the same corner, of those that have one


def trace_polygons(labels: Labels, classes: int, simplify: float = 0.0) -> dict[int, list[Polygon]]:
    """The polygons of each class that is there, one a region: GeoJSON's coordinates of a MultiPolygon (RFC 7946).

    Regions are connected by their pixels' sides; what touches by a corner is two. No ring meets a corner twice. With x
    and y as the axes of a plane, outlines turn to the left and holes to the right, as the RFC has it; on a screen, where y
    goes down, outlines go with the clock.

    Args:
        labels: uint8 H x W; those from `classes` on belong to no class.
        classes: how many there are.
        simplify: how far, in pixels, an outline may move for having fewer corners (Douglas-Peucker, each ring for
            itself: neighbours may part or overlap by as much). Rings that collapse are left out.

    Raises: ImageTooLarge for outlines of more than half a million corners.
    """
    found = find_vertices(labels, classes)
    every = list(trace_rings(found))
    if not every:
        return {}
    ground = find_runs(labels)
    region = connected_components(ground, labels.shape[1])
    order = np.concatenate(every)
    corners = np.split(found.corners[order], np.cumsum([len(ring) for ring in every[:-1]]))
    firsts = region[ground.run_containing(found.pixels[[ring[0] for ring in every]])].tolist()

    outlines: dict[int, Ring] = {}
    holes: defaultdict[int, list[Ring]] = defaultdict(list)
    for first, ring in zip(firsts, corners, strict=True):
        outer = signed_area(ring) > 0
        if simplify > 0:
            ring = np.asarray(cv2.approxPolyDP(ring, simplify, closed=True), np.int32)[:, 0]
            if signed_area(ring) == 0 or (signed_area(ring) > 0) != outer:
                continue
        closed = [*ring.tolist(), ring[0].tolist()]
        if outer:
            outlines[first] = closed
        else:
            holes[first].append(closed)
    answer: defaultdict[int, list[Polygon]] = defaultdict(list)
    for first, outline in sorted(outlines.items()):
        answer[int(ground.labels[first])].append([outline, *holes[first]])
    return dict(answer)


def signed_area(ring: Corners) -> float:
    """What a ring encloses, in pixels; below 0 for one that turns to the right in the plane (a hole)."""
    return cv2.contourArea(ring, oriented=True)


def find_vertices(labels: Labels, classes: int) -> Vertices:
    """The turns of the outlines of the labels below `classes`, in a map uint8 H x W. Raises: ImageTooLarge."""
    height, width = labels.shape
    padded = np.pad(labels, 1, constant_values=IGNORE_INDEX)
    beside, below = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    bends = (beside[:-1] | beside[1:]) & (below[:, :-1] | below[:, 1:])
    bends = np.flatnonzero(bends)
    if len(bends) > MAX_CORNERS:
        raise ImageTooLargeError(
            f"The outlines of this mask have {len(bends):,} corners; polygons go to {MAX_CORNERS:,}. Ask for rle or png, or leave "
            "small regions out by min_area."
        )
    y, x = np.divmod(bends, width + 1)
    around = np.stack([padded[y, x], padded[y, x + 1], padded[y + 1, x], padded[y + 1, x + 1]], axis=1)

    # Each of the four pixels may be of another class, with a turn of its own here. Pixels of one class share the turn,
    # which is the first one's; only those that touch by the corner alone have one each.
    same = (around[:, :, None] == around[:, None, :]) * np.array([1, 2, 4, 8], np.uint8)
    pattern = same.sum(axis=2, dtype=np.uint8)
    own = (pattern & np.array([0, 1, 3, 7], np.uint8) == 0) | np.isin(pattern, DIAGONAL_PATTERNS)
    corner, pixel = np.nonzero(own & ~np.isin(pattern, STRAIGHT_PATTERNS) & (around < classes))
    label = around[corner, pixel].astype(np.int64)
    pattern, x, y = pattern[corner, pixel], x[corner], y[corner]

    # Of two turns at one corner, the left pixel's ends the piece of row from the left, the upper one's the one from above.
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


def trace_rings(found: Vertices) -> Iterator[list[int]]:
    """Each ring as its turns. One that would meet a corner twice is cut there in two, for GeoJSON's rings are simple."""
    after = found.next_vertex.tolist()
    passed = bytearray(len(after))
    for first in range(len(after)):
        ring: list[int] = []
        turn = first
        while not passed[turn]:
            passed[turn] = 1
            ring.append(turn)
            turn = after[turn]
        if ring and not found.twins.keys().isdisjoint(ring):
            yield from split_ring(ring, found.twins)
        elif ring:
            yield ring


def split_ring(ring: list[int], twins: dict[int, int]) -> Iterator[list[int]]:
    """Cut a ring wherever it comes back to a corner."""
    path: list[int] = []
    places: dict[int, int] = {}
    for turn in ring:
        start = places.get(twins.get(turn, -1))
        if start is not None:
            yield path[start:]
            for cut in path[start:]:
                del places[cut]
            del path[start:]
        places[turn] = len(path)
        path.append(turn)
    yield path
