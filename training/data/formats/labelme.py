"""labelme: `NAME.json` beside `NAME.jpg`, in one folder or in folders named after the splits.

Polygons, rectangles, circles, lines (drawn `LINE_WIDTH` wide) and masks are drawn in the order of the file; points are skipped with
a note. Labels are sorted by name, after the background; `classes.txt` or `labels.txt` gives another order. An image that is only
embedded (`imageData`) is read from its file.
"""

import base64
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.errors import DataError, ImageError, quoted
from models.imaging.call_decoder import call_decoder
from models.imaging.decode import MAX_PIXELS, decode_stored_mask
from training.data.class_file import IGNORED_NAMES, read_dataset_classes
from training.data.dataset import Pair
from training.data.formats import shapes
from training.data.formats.shapes import Shape, ShapeMaskReader
from training.data.json_file import class_name, read_json
from training.data.listing import Entry, Evidence, Listing
from training.data.split_lists import apply_split_lists
from training.data.splits import split_of_path
from training.data.tree import FileTree, stem_below
from training.data.unpacked import unpack_once

LINE_WIDTH = 10  # pixels: labelme's own default in `shape_to_mask`
MAX_DRAWN = 30_000  # pixels: corners farther out are moved here
RECTANGLE_CORNERS = 4
POINT_TYPES = ("point", "points")
EXPECTED = {  # by shape type
    "polygon": "expected `points` of three or more corners (x, y)",
    "rotation": "expected `points` of four corners (x, y)",
    "rectangle": "expected `points` of two or four corners (x, y)",
    "circle": "expected `points` of the center and a point on the edge (x, y)",
    "line": "expected `points` (x, y)",
    "linestrip": "expected `points` (x, y)",
    "mask": "expected `mask`, a PNG in base64, and `points` of two corners",
}
HEADER_BYTES = 1 << 12
SAMPLED_FILES = 3


def detect(tree: FileTree) -> Evidence | None:
    """Whether JSON files with `shapes` have an image of the same name."""
    files = _json_files(tree)
    sample = files[:: max(1, len(files) // SAMPLED_FILES)][:SAMPLED_FILES]
    if not any(_is_labelme(tree.path(path)) for path in sample):
        return None
    images = {stem_below(path, "") for path in tree.images_below("")}
    names = {_image_name(path) for path in images}
    beside = sum(stem_below(path, "") in images for path in files)
    paired = beside + sum(
        stem not in images and _image_name(stem) in names for stem in (stem_below(path, "") for path in files)
    )
    where = "beside their images" if beside == paired else "with an image of the same name"
    embedded = f", {len(files) - paired:,} without" if paired < len(files) else ""
    summary = f"{paired:,} labelme files {where}{embedded}"
    return Evidence(len(files), summary, max(0, len(images) - paired), strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError that names a file."""
    images = {stem_below(path, ""): path for path in tree.images_below("")}
    by_name: dict[str, list[str]] = {}
    for path in images.values():
        by_name.setdefault(_image_name(path), []).append(path)
    entries, names, notes, used = [], set[str](), list[str](), set[Path]()
    broken: list[DataError] = []
    points = embedded = missing = 0
    for path in _json_files(tree):
        file = tree.path(path)
        try:
            content = read_content(file)
        except DataError as error:
            broken.append(error)
            if stem_below(path, "") in images:  # the lint reports it when the mask is read
                image = tree.path(images[stem_below(path, "")])
                used.add(image)
                entries.append(Entry(stem_below(path, ""), image, file, split_of_path(path)))
            continue
        named = str(content.get("imagePath") or "").replace("\\", "/").rsplit("/", 1)[-1]
        beside = images.get(stem_below(path, "")) or _nearest(path, by_name.get(named, []))
        found = tree.path(beside) if beside else _unpack_image(file, content)
        embedded += beside is None and found is not None
        if found is None:
            missing += 1
            continue
        for shape in content["shapes"]:
            points += shape.get("shape_type") in POINT_TYPES
            if shape.get("shape_type") not in POINT_TYPES:
                with suppress(DataError):  # the lint reports it when the mask is drawn
                    names.add(class_name(shape["label"]))
        used.add(found)
        entries.append(Entry(stem_below(path, ""), found, file, split_of_path(path)))
    entries += [
        Entry(name, tree.path(path), None, split_of_path(path))
        for name, path in images.items()
        if tree.path(path) not in used
    ]
    if embedded:
        notes.append(
            f"{tree.root}: {embedded:,} images are only in their labelme files (`imageData`); they are read from there."
        )
    if missing:
        notes.append(f"{tree.root}: {missing:,} labelme files have no image beside them; they are left out.")
    if points:
        notes.append(f"{tree.root}: {points:,} points of labelme have no area; they are left out.")
    classes, _, class_files = read_dataset_classes(tree)
    ignored = {name for name in names if name.lower() in IGNORED_NAMES}
    if not names - ignored <= {entry.name for entry in classes}:
        classes, class_files = [], ()
    if broken and not names:
        raise broken[0]
    infos, label_by_name = shapes.classes_with_background(
        [*(entry.name for entry in classes), *ignored] if classes else sorted(names), tree.root
    )
    if classes:
        infos = [entry.model_copy(update={"rgb": info.rgb}) for entry, info in zip(infos, infos, strict=True)]
    listed = apply_split_lists(tree, entries)
    reader = ShapeMaskReader(partial(_parse, label_by_name=label_by_name), shapes.digest(sorted(label_by_name.items())))
    return Listing(
        tree.root, listed.entries, infos, mask_reader=reader, notes=(*tree.notes, *notes, *listed.notes),
        files=(*class_files, *listed.files),
    )  # fmt: skip


def _unpack_image(file: Path, content: dict[str, Any]) -> Path | None:
    """The image that a labelme file embeds, written into the user's cache folder once; None for none. Raises: DataError."""
    try:
        data = base64.b64decode(content.get("imageData") or "", validate=False)
    except (TypeError, ValueError):
        return None
    if not data:
        return None
    name = file.with_suffix(".png" if data.startswith(b"\x89PNG") else ".jpg").name

    def fill(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return unpack_once(file, "labelme", fill, "save its image beside it") / name


def read_content(file: Path) -> dict[str, Any]:
    """The content of a labelme file. Raises: DataError that names it."""
    content = read_json(file)
    try:
        if not isinstance(content, dict) or not isinstance(content["shapes"], list):
            raise KeyError("shapes")
        for shape in content["shapes"]:
            shape["label"], shape["points"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a labelme file; expected `shapes` with `label` and `points`.") from error
    return content


def _parse(pair: Pair, label_by_name: dict[str, int]) -> tuple[tuple[int, int], list[Shape]]:
    content = read_content(pair.mask)
    try:
        size = int(content["imageHeight"]), int(content["imageWidth"])
    except (KeyError, TypeError, ValueError):
        size = shapes.SizeReader()(pair.image)
    found = []
    for index, entry in enumerate(content["shapes"]):
        if entry.get("shape_type") in POINT_TYPES:
            continue
        name = ""
        try:
            name = class_name(entry["label"])
            found.append(_shape(entry, label_by_name[name]))
        except KeyError as error:
            raise DataError(f"shapes[{index}] has the label {quoted(name)}, which is in no class list.") from error
        except DataError as error:
            raise DataError(f"shapes[{index}]{f' ({name})' if name else ''}: {error}") from error
    return size, found


def _shape(entry: dict[str, Any], label: int) -> Shape:
    """Raises: DataError."""
    kind, points = entry.get("shape_type") or "polygon", entry["points"]
    try:
        if kind in ("polygon", "rotation") or (kind == "rectangle" and len(points) == RECTANGLE_CORNERS):
            return _polygon(label, shapes.outline(points))  # AnyLabeling writes four corners, and rotated rectangles
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            return Shape(label, [shapes.rectangle(float(x0), float(y0), float(x1), float(y1))])
        if kind == "circle":
            (x, y), (edge_x, edge_y) = points
            radius = float(np.hypot(edge_x - x, edge_y - y))
            return Shape(label, [shapes.ellipse(x, y, radius, radius)])
        if kind in ("line", "linestrip"):
            return Shape(label, shapes.thick_line(points, LINE_WIDTH))
        if kind == "mask":
            bitmap = np.asarray(call_decoder(decode_stored_mask, base64.b64decode(entry["mask"]))) > 0
            return Shape(label, bitmap=bitmap, offset=(round(points[0][0]), round(points[0][1])))
    except ImageError as error:
        raise DataError(f"the bitmap of a mask: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, OSError) as error:
        raise DataError(f"a {kind} is not as labelme writes it: {EXPECTED[kind]}. Redraw it.") from error
    raise DataError(f"the shape type {quoted(kind)} is unknown; export it as a polygon.")


def _polygon(label: int, corners: NDArray[np.float64]) -> Shape:
    """A polygon with the pixels of its outline, as labelme's `shape_to_mask` draws it."""
    corners = corners.clip(-MAX_DRAWN, MAX_DRAWN)
    left, top = (int(value) for value in np.floor(corners.min(axis=0)))
    width, height = (int(value) + 2 for value in np.ceil(corners.max(axis=0)) - (left, top))
    if width * height > MAX_PIXELS:
        return Shape(label, [corners])
    canvas = Image.new("1", (width, height))
    points = [(x - left, y - top) for x, y in corners.tolist()]
    ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    return Shape(label, bitmap=np.asarray(canvas), offset=(left, top))


def _json_files(tree: FileTree) -> list[str]:
    return tree.files_below("", (".json",))


def _is_labelme(file: Path) -> bool:
    """Decided by the first and last bytes: `imageData` may embed megabytes between them."""
    try:
        with file.open("rb") as stream:
            start = stream.read(HEADER_BYTES)
            stream.seek(max(0, file.stat().st_size - HEADER_BYTES))
            text = start + stream.read()
    except OSError:
        return False
    return b'"shapes"' in text and (b'"imagePath"' in text or b'"points"' in text or b'"version"' in text)


def _nearest(path: str, images: list[str]) -> str | None:
    """The image whose folders are most alike to those of the file: several splits may have one name. None if two are."""
    parts = path.split("/")
    shared = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, image.split("/"), strict=False)))
        for image in images
    ]
    return images[shared.index(max(shared))] if images and shared.count(max(shared)) == 1 else None


def _image_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
