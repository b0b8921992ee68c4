"""Supervisely: `img/NAME.jpg` with `ann/NAME.jpg.json`, in one folder per data set, and `meta.json` with the classes.

Polygons with holes, bitmaps, rectangles and lines are drawn in the order of the file. A folder named after a split gives the split.

Coordinates are indices of pixels, as its downloads have them, and what the outline touches belongs to the object: shapes are
drawn as Supervisely's own export of masks draws them. Fractions, which only its labeling tool has, are rounded as a download
rounds them: https://developer.supervisely.com/app-development/advanced/coordinate-system
"""

import base64
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, ImageError, quoted
from models.imaging.call_decoder import call_decoder
from models.imaging.decode import MAX_PIXELS, decode_stored_mask
from training.data.dataset import Pair
from training.data.formats import shapes
from training.data.formats.shapes import Shape, ShapeMaskReader
from training.data.json_file import class_name, read_json
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.split_lists import apply_split_lists
from training.data.splits import split_of_path
from training.data.tree import FileTree, join, parent_of, stem_below

META = "meta.json"
MIN_COVERAGE = 0.3  # of a pixel at a side of a rectangle with fractions; with less, the pixel is outside


def detect(tree: FileTree) -> Evidence | None:
    """Whether there are folders `ann` with JSON files named after the images of `img`."""
    found = _pairs(tree)
    paired = sum(annotation is not None for _, annotation in found)
    return (
        Evidence(paired, f"{paired:,} of {len(found):,} images in img have a file in ann", strength=2)
        if paired
        else None
    )


def read(tree: FileTree) -> Listing:
    """Raises: DataError that names a file."""
    meta = tree.find_file("", (META,))
    names, colors = _read_meta(tree.path(meta)) if meta else (_collect_names(tree), {})
    classes, label_by_name = shapes.classes_with_background(names, tree.root)
    if colors and len({*colors.values(), (0, 0, 0)}) == len(colors) + 1:
        classes = [entry.model_copy(update={"rgb": colors.get(entry.name, entry.rgb)}) for entry in classes]
    entries = [
        Entry(
            stem_below(image, "").replace("img/", ""),
            tree.path(image),
            tree.path(ann) if ann else None,
            split_of_path(image),
        )
        for image, ann in _pairs(tree)
    ]
    check_unique(entries)
    listed = apply_split_lists(tree, entries)
    reader = ShapeMaskReader(
        partial(_parse, label_by_name=label_by_name), shapes.digest("whole pixels", sorted(label_by_name.items()))
    )
    return Listing(
        tree.root, listed.entries, classes, mask_reader=reader, notes=(*tree.notes, *listed.notes),
        files=(*([tree.path(meta)] if meta else []), *listed.files),
    )  # fmt: skip


def _pairs(tree: FileTree) -> list[tuple[str, str | None]]:
    """Image, and annotation file or None."""
    found: list[tuple[str, str | None]] = []
    for folder in tree.files:
        if folder.rsplit("/", 1)[-1] != "img" or tree.find_folder(parent_of(folder), ("ann",)) is None:
            continue
        annotations = join(parent_of(folder), "ann")
        names = set(tree.files.get(annotations, []))
        for path in tree.images_below(folder):
            file = f"{path.rsplit('/', 1)[-1]}.json"
            found.append((path, join(annotations, file) if file in names else None))
    return found


def _load(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a file of Supervisely; export it again.")
    return content


def _read_meta(file: Path) -> tuple[list[str], dict[str, tuple[int, int, int]]]:
    """The names of the classes, and their colors."""
    colors = {}
    try:
        entries = _load(file)["classes"]
        names = [class_name(entry["title"]) for entry in entries]
        for name, entry in zip(names, entries, strict=True):
            red, green, blue = bytes.fromhex(str(entry["color"]).removeprefix("#"))
            colors[name] = (red, green, blue)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: `classes` needs `title` and `color` (#rrggbb) of each class; export it again."
        ) from error
    return names, colors


def _collect_names(tree: FileTree) -> list[str]:
    files = [tree.path(annotation) for _, annotation in _pairs(tree) if annotation]
    objects = [_load(file).get("objects") for file in files]
    titles = [
        entry.get("classTitle")
        for found in objects
        if isinstance(found, list)
        for entry in found
        if isinstance(entry, dict)
    ]
    return sorted({title for title in titles if isinstance(title, str) and title})  # the lint reports the others


def _parse(pair: Pair, label_by_name: dict[str, int]) -> tuple[tuple[int, int], Iterator[Shape]]:
    content = _load(pair.mask)
    try:
        size = int(content["size"]["height"]), int(content["size"]["width"])
        objects = list(content["objects"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError("needs `size` and `objects`; export it again.") from error
    shapes.check_size(size)
    return size, _shapes(objects, label_by_name, size)


def _shapes(objects: list[Any], label_by_name: dict[str, int], size: tuple[int, int]) -> Iterator[Shape]:
    """One at a time: a bitmap may be as large as the image. Raises: DataError that names the object."""
    for index, entry in enumerate(objects):
        try:
            yield _shape(entry, label_by_name, size)
        except (DataError, ImageError) as error:
            raise DataError(f"objects[{index}]: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, OSError, zlib.error) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else "its geometry is broken"
            raise DataError(f"objects[{index}] is not as Supervisely writes it: {reason}. Export it again.") from error


def _shape(entry: dict[str, Any], label_by_name: dict[str, int], size: tuple[int, int]) -> Shape:
    """`size`: (height, width) of the image."""
    name, kind = class_name(entry["classTitle"]), entry["geometryType"]
    if name not in label_by_name:
        raise DataError(f"the class {quoted(name)} is not in {META}; add it there.")
    label = label_by_name[name]
    if kind == "bitmap":
        # At most MAX_PIXELS bytes: a small text may unpack to gigabytes.
        data = zlib.decompressobj().decompress(base64.b64decode(entry["bitmap"]["data"]), MAX_PIXELS)
        image = call_decoder(decode_stored_mask, data)
        array = np.asarray(image.convert("RGBA"))[..., 3] > 0 if image.mode in ("RGBA", "LA") else np.asarray(image) > 0
        left, top = entry["bitmap"]["origin"]
        return Shape(label, bitmap=array, offset=(int(left), int(top)))
    exterior = entry["points"]["exterior"]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = exterior
        return Shape(label, [_include_last_pixels(shapes.rectangle(float(x0), float(y0), float(x1), float(y1)))])
    if kind == "line":
        return _draw(label, _pixels(shapes.points_of_line(exterior), size), size)
    if kind == "polygon":
        holes = [shapes.outline(hole, "hole") for hole in entry["points"].get("interior") or []]
        return _draw(label, _pixels(shapes.outline(exterior), size), size, [_pixels(hole, size) for hole in holes])
    raise DataError(f"the geometry {quoted(kind)} has no area that is read; export it as a polygon or bitmap.")


def _include_last_pixels(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same rectangle with its last column and row, which belong to it; with fractions, in whole pixels."""
    start, end = corners.min(axis=0), corners.max(axis=0)
    first, last = np.floor(start), np.floor(end)
    if (corners != np.floor(corners)).any() and (first != last).any():
        first, last = np.floor(start + MIN_COVERAGE), np.ceil(end - MIN_COVERAGE) - 1
    return shapes.rectangle(*first.tolist(), *(np.maximum(first, last) + 1).tolist())


def _pixels(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int32]:
    """The pixels that hold the points, K x 2: (x, y). A point on the right or lower border is in the last pixel."""
    border = np.array(size[::-1])
    return np.where(points == border, border - 1, np.floor(points)).astype(np.int32)


def _draw(
    label: int, corners: NDArray[np.int32], size: tuple[int, int], holes: Iterable[NDArray[np.int32]] | None = None
) -> Shape:
    """A polygon without its holes, or, if `holes` is None, a line of one pixel: the part inside the image, as a bitmap."""
    left, top = corners.min(axis=0).clip(0).tolist()
    right, bottom = np.minimum(corners.max(axis=0), (size[1] - 1, size[0] - 1)).tolist()
    bitmap = np.zeros((max(0, bottom - top + 1), max(0, right - left + 1)), np.uint8)
    if not bitmap.size:
        return Shape(label)
    origin = np.array([left, top], np.int32)
    if holes is None:
        cv2.polylines(bitmap, [corners - origin], False, 1)
    else:
        cv2.fillPoly(bitmap, [corners - origin], 1)
        for hole in holes:
            cv2.fillPoly(bitmap, [hole - origin], 0)
    return Shape(label, bitmap=bitmap.astype(bool), offset=(left, top))
