"""Draws annotation shapes, polygons and bitmaps, into a label mask. Used by the formats that store outlines per image."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.imaging.decode import MAX_PIXELS, Labels
from models.imaging.file_header import read_file_header
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.class_file import IGNORED_NAMES
from training.data.dataset import Pair
from training.data.formats.rasterize import polygon_runs
from training.data.mask_decoding import RawMask

BACKGROUND = "background"
BACKGROUND_NAMES = (BACKGROUND, "_background_", "__background__", "bg")
CIRCLE_CORNERS = 72  # of the polygon that is drawn for a circle; off by less than 0.1% of the radius
MAX_COORDINATE = 1e7  # pixels; farther points are broken files
MIN_CORNERS = 3


LabelType = TypeVar("LabelType", np.uint8, np.uint32)


@dataclass(frozen=True)
class Shape:
    """One annotated object: outlines, or a bitmap at an offset."""

    label: int
    outlines: Sequence[NDArray[np.float64]] = ()  # each K x 2: (x, y) in pixels
    bitmap: NDArray[np.bool_] | None = None  # h x w
    offset: tuple[int, int] = (0, 0)  # (left, top) of the bitmap in the image


@dataclass(frozen=True, eq=False)
class ShapeMaskReader:
    """Draws the masks of a format whose shapes are parsed when they are needed."""

    parse: Callable[[Pair], tuple[tuple[int, int], Iterable[Shape]]]  # (height, width) and shapes in painting order
    cache_key: str  # digest of everything but the pair's own files (`scan_cache.py`)
    background: int = 0

    def __call__(self, pair: Pair) -> RawMask:
        """Labels, uint8 H x W. Raises: DataError that names the file."""
        try:
            size, shapes = self.parse(pair)
            return RawMask(paint(size, shapes, self.background))
        except DataError as error:
            raise DataError(str(error) if str(pair.mask) in str(error) else f"{pair.mask}: {error}") from error

    def instances(self, pair: Pair) -> NDArray[np.uint32]:
        """The number of the shape at each pixel from 1, H x W; 0 for none. Raises: DataError."""
        size, shapes = self.parse(pair)
        return _paint(size, (replace(shape, label=number) for number, shape in enumerate(shapes, 1)), 0, np.uint32)


def paint(size: tuple[int, int], shapes: Iterable[Shape], background: int = 0) -> Labels:
    """A mask of `size` (height, width) with the shapes, later ones over earlier ones. Raises: DataError."""
    return _paint(size, shapes, background, np.uint8)


def _paint(
    size: tuple[int, int], shapes: Iterable[Shape], background: int, dtype: type[LabelType]
) -> NDArray[LabelType]:
    check_size(size)
    height, width = size
    columns = np.full(height * width, background, dtype)
    labels = columns.reshape(width, height).T
    for shape in shapes:
        for outline in shape.outlines:
            for start, stop in polygon_runs(outline, size).tolist():
                columns[start:stop] = shape.label
        if shape.bitmap is not None:
            left, top = shape.offset
            rows = slice(max(0, top), min(height, top + shape.bitmap.shape[0]))
            cols = slice(max(0, left), min(width, left + shape.bitmap.shape[1]))
            inside = shape.bitmap[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
            if inside.size:
                labels[rows, cols][inside] = shape.label
    return np.ascontiguousarray(labels)


def check_size(size: tuple[int, int]) -> None:
    """Raises: DataError unless the image may have this size, (height, width)."""
    height, width = size
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"the image size {width} x {height} is invalid; expected 1 to {MAX_PIXELS:,} pixels.")


def outline(points: Any, what: str = "polygon") -> NDArray[np.float64]:
    """K x 2 corners of a polygon. Raises: DataError for fewer than three, or coordinates that are no numbers or huge."""
    try:
        corners = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise DataError(f"a {what} has points that are not pairs of numbers; export it again.") from error
    if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > MAX_COORDINATE:
        raise DataError(
            f"a {what} has a coordinate that is not a number or above {MAX_COORDINATE:,.0f}; export it again."
        )
    if len(corners) < MIN_CORNERS:
        raise DataError(f"a {what} has {len(corners)} points; expected at least {MIN_CORNERS}. Delete or redraw it.")
    return corners


def rectangle(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    """The corners of a rectangle. Raises: DataError."""
    return outline([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], "rectangle")


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> NDArray[np.float64]:
    """The corners of an ellipse. Raises: DataError."""
    angles = np.linspace(0, 2 * math.pi, CIRCLE_CORNERS, endpoint=False)
    return outline(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1), "circle")


def points_of_line(points: Any) -> NDArray[np.float64]:
    """K x 2 points. Raises: DataError for coordinates that are no numbers or huge."""
    try:
        corners = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise DataError("a line has points that are not pairs of numbers; export it again.") from error
    if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > MAX_COORDINATE:
        raise DataError("a line has a coordinate that is not a number or too large; export it again.")
    return corners


def thick_line(points: Any, width: float) -> list[NDArray[np.float64]]:
    """Outlines of a polyline drawn with a width in pixels: a rectangle per segment, and a circle at each point.

    Raises: DataError.
    """
    corners = points_of_line(points)
    found = [ellipse(x, y, width / 2, width / 2) for x, y in corners.tolist()]
    for start, end in itertools.pairwise(corners):
        length = float(np.hypot(*(end - start)))
        if length > 0:
            normal = np.array([start[1] - end[1], end[0] - start[0]]) / length * width / 2
            found.append(outline([start + normal, end + normal, end - normal, start - normal]))
    return found


def decode_run_lengths(counts: Sequence[int], size: tuple[int, int], column_major: bool = False) -> NDArray[np.bool_]:
    """A bitmap of `size` (height, width) from the lengths of alternate runs, background first. Raises: DataError."""
    try:
        lengths = np.asarray(counts, np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("run lengths are not whole numbers; export it again.") from error
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise DataError(
            f"run lengths cover {lengths.sum():,} pixels, but the mask has {size[1]} x {size[0]}; export it again."
        )
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(size[::-1]).T if column_major else flat.reshape(size)


def classes_with_background(
    names: Iterable[str], source: Path | str = "The data set"
) -> tuple[list[ClassInfo], dict[str, int]]:
    """The classes, background first, and the label of each name. Raises: DataError for none or too many, naming the source.

    Names such as labelme's `__ignore__` (`IGNORED_NAMES`) are no classes: their label is 255.
    """
    found = list(dict.fromkeys(names))
    unique = [name for name in found if name.lower() not in IGNORED_NAMES]
    background = next((name for name in unique if name.lower() in BACKGROUND_NAMES), BACKGROUND)
    ordered = [background, *(name for name in unique if name != background)]
    if not 2 <= len(ordered) <= 255:
        if len(ordered) < 2:
            raise DataError(f"{source} has no object with a class; annotate some, and export it again.")
        raise DataError(f"{source} has {len(ordered)} classes with the background; expected 2 to 255.")
    classes = [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(ordered)]
    labels = {name: label for label, name in enumerate(ordered)}
    return classes, labels | {name: IGNORE_INDEX for name in found if name not in unique}


@dataclass
class SizeReader:
    """Sizes of images from their headers, upright as the decoder gives them."""

    _sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, file: Path) -> tuple[int, int]:
        """(height, width). Raises: DataError."""
        if file not in self._sizes:
            self._sizes[file] = _read_size(file)
        return self._sizes[file]


def _read_size(file: Path) -> tuple[int, int]:
    """(height, width) of an image, upright. Raises: DataError, ImageError."""
    header = read_file_header(file)
    if not header.format:
        raise DataError(f"{file}: cannot be read as an image; save it again.")
    return header.upright_size


def digest(*values: object) -> str:
    """A short hash for `cache_key`."""
    return hashlib.sha256(repr(values).encode(errors="surrogateescape")).hexdigest()[:16]
