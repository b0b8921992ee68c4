"""Supervisely: `img/NAME.jpg` with `ann/NAME.jpg.json`, in one folder per data set, and `meta.json` with the classes.

Polygons with holes, bitmaps, rectangles and lines are drawn in the order of the file. A folder named after a split gives the split.
"""

import base64
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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

LINE_WIDTH = 1  # pixels
META = "meta.json"


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
    reader = ShapeMaskReader(partial(_parse, label_by_name=label_by_name), shapes.digest(sorted(label_by_name.items())))
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
    titles = [entry.get("classTitle") for file in files for entry in _load(file).get("objects", [])]
    return sorted({title for title in titles if isinstance(title, str) and title})  # the lint reports the others


def _parse(pair: Pair, label_by_name: dict[str, int]) -> tuple[tuple[int, int], list[Shape]]:
    content = _load(pair.mask)
    try:
        size = int(content["size"]["height"]), int(content["size"]["width"])
        objects = list(content["objects"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("needs `size` and `objects`; export it again.") from error
    found = []
    for index, entry in enumerate(objects):
        try:
            found.append(_shape(entry, label_by_name))
        except (DataError, ImageError) as error:
            raise DataError(f"objects[{index}]: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, OSError, zlib.error) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else "its geometry is broken"
            raise DataError(f"objects[{index}] is not as Supervisely writes it: {reason}. Export it again.") from error
    return size, found


def _shape(entry: dict[str, Any], label_by_name: dict[str, int]) -> Shape:
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
        return Shape(label, [shapes.rectangle(float(x0), float(y0), float(x1), float(y1))])
    if kind == "line":
        return Shape(label, shapes.thick_line(exterior, LINE_WIDTH))
    if kind == "polygon":
        return Shape(label, [shapes.outline_with_holes(exterior, entry["points"].get("interior") or [])])
    raise DataError(f"the geometry {quoted(kind)} has no area that is read; export it as a polygon or bitmap.")
