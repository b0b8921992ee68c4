"""CVAT's export "CVAT for images 1.1": `annotations.xml` with the images in `images` or beside it.

Polygons, masks (run lengths), boxes, ellipses and lines are drawn by `z_order`. The classes are the labels of the file after the
background, with their colors; a label named background is label 0. `subset` of an image gives the splits.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from models.errors import DataError, quoted
from training.data.dataset import Pair
from training.data.formats import shapes
from training.data.formats.coco_images import ImageIndex, local_name
from training.data.formats.shapes import Shape, ShapeMaskReader
from training.data.json_file import class_name
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.splits import SPLIT_ALIASES
from training.data.tree import FileTree

HEADER_BYTES = 1 << 16
LINE_WIDTH = 1  # pixels, of polylines
MAX_SHOWN = 60  # letters of a value in an error message
IGNORED_SHAPES = ("points", "tag", "skeleton", "cuboid")


def detect(tree: FileTree) -> Evidence | None:
    """Whether there is an XML file with the root `annotations` of CVAT."""
    files = _xml_files(tree)
    if not files:
        return None
    return Evidence(sum(tree.image_counts.values()), f"CVAT annotations in {', '.join(files)}", strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError that names the file."""
    paths = _xml_files(tree)
    if len(paths) != 1:
        raise DataError(f"{tree.root} has {len(paths)} CVAT files; expected one. Give the file itself.")
    file = tree.path(paths[0])
    root = parse_xml(file)
    colors = {
        name: element.findtext("color")
        for element in root.iter("label")
        if (name := (element.findtext("name") or "").strip())
    }
    images = list(root.iter("image"))
    used = Counter(
        name
        for image in images
        for shape in image
        if shape.tag not in IGNORED_SHAPES and (name := (shape.get("label") or "").strip())
    )
    classes, label_by_name = shapes.classes_with_background([*colors, *used], file)
    classes = [
        entry.model_copy(update={"rgb": rgb}) if (rgb := _parse_color(colors.get(entry.name))) else entry
        for entry in classes
    ]
    if len({entry.rgb for entry in classes}) < len(classes):
        classes, _ = shapes.classes_with_background([*colors, *used], file)
    if root.find("track") is not None:
        raise DataError(f'{file} has the tracks of a video; export it as "CVAT for images 1.1", with images.')
    index = ImageIndex(tree, "").resolve([str(image.get("name")).replace("\\", "/") for image in images], file)
    if not index:
        first = local_name(str(images[0].get("name"))) if images else "an image"
        raise DataError(
            f"{file} lists {len(images):,} images, but none of them is in {tree.root}; looked for {first}. Put the images into "
            f"{tree.root}/images, or export with images."
        )
    notes = []
    unlisted = {name: count for name, count in used.items() if name not in colors}
    if colors and unlisted:
        listed = ", ".join(f"{quoted(name)} ({count:,} shapes)" for name, count in unlisted.items())
        notes.append(f"{file}: {listed} is not among the labels in <meta>; it is read as a class after them.")
    if len(index) < len(images):
        missing = next(str(image.get("name")) for number, image in enumerate(images) if number not in index)
        notes.append(
            f"{file} lists {len(images) - len(index):,} images that are not in {tree.root}, such as {missing}; they are skipped."
        )
    ignored = sum(1 for image in images for shape in image if shape.tag in IGNORED_SHAPES)
    if ignored:
        notes.append(f"{file}: {ignored:,} points, tags and skeletons have no area; they are left out.")
    boxes = sum(1 for image in images for shape in image if shape.tag == "box")
    if boxes:
        notes.append(f"{file}: {boxes:,} boxes are drawn as filled rectangles.")
    elements = {name: images[number] for number, (name, _) in index.items()}
    entries = [
        Entry(name, path, file, SPLIT_ALIASES.get((images[number].get("subset") or "").lower(), ""))
        for number, (name, path) in index.items()
    ]
    check_unique(entries)
    reader = ShapeMaskReader(
        partial(_parse, elements=elements, label_by_name=label_by_name), shapes.digest(sorted(label_by_name.items()))
    )
    return Listing(tree.root, entries, classes, mask_reader=reader, notes=(*tree.notes, *notes), files=(file,))


def parse_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file. Raises: DataError, also for a document type, whose entities may expand without end."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}); check its permissions.") from error
    text = data.replace(b"\0", b"")  # UTF-16
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise DataError(f"{file}: has a document type, whose entities are not read; export it again without.")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file}: invalid XML ({error}); the file may be truncated. Export it again.") from error


def _xml_files(tree: FileTree) -> list[str]:
    found = []
    for path in tree.shared_files("", (".xml",)):
        try:
            with tree.path(path).open("rb") as stream:
                start = stream.read(HEADER_BYTES).replace(b"\0", b"")
        except OSError:
            continue
        if b"<annotations" in start:
            found.append(path)
    return found


def _parse_color(text: str | None) -> tuple[int, int, int] | None:
    try:
        red, green, blue = bytes.fromhex((text or "").removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def _parse(
    pair: Pair, elements: dict[str, ElementTree.Element], label_by_name: dict[str, int]
) -> tuple[tuple[int, int], list[Shape]]:
    image = elements[pair.name]
    try:
        size = int(image.get("height", "")), int(image.get("width", ""))
    except ValueError:
        size = shapes.SizeReader()(pair.image)
    found: list[Shape] = []
    drawn = [element for element in image if element.tag not in IGNORED_SHAPES]
    for element in sorted(drawn, key=lambda element: _number(element.get("z_order", "0"))):
        try:
            found.append(_shape(element, label_by_name[class_name(element.get("label"))]))
        except DataError as error:
            raise DataError(
                f"the image {image.get('name')}: a {element.tag} ({element.get('label')}): {error}"
            ) from error
    return size, found


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() else 0


def _shape(element: ElementTree.Element, label: int) -> Shape:
    """Raises: DataError that names the attribute."""

    def value(name: str) -> float:
        return _numbers(element, name)[0]

    if element.tag == "mask":
        size = int(value("height")), int(value("width"))
        bitmap = shapes.decode_run_lengths([int(count) for count in _numbers(element, "rle", ",")], size)
        return Shape(label, bitmap=bitmap, offset=(int(value("left")), int(value("top"))))
    if element.tag == "box":
        return Shape(label, [shapes.rectangle(value("xtl"), value("ytl"), value("xbr"), value("ybr"))])
    if element.tag == "ellipse":
        return Shape(label, [shapes.ellipse(value("cx"), value("cy"), value("rx"), value("ry"))])
    if element.tag not in ("polygon", "polyline"):
        raise DataError(f"the shape {element.tag} is unknown; export it as a polygon.")
    coordinates = _numbers(element, "points", "[,;]")
    if len(coordinates) % 2:
        raise DataError(f"`points` has {len(coordinates)} numbers; expected pairs `x,y;x,y;...`. Export it again.")
    points = np.array(coordinates).reshape(-1, 2)
    return Shape(label, [shapes.outline(points)] if element.tag == "polygon" else shapes.thick_line(points, LINE_WIDTH))


def _numbers(element: ElementTree.Element, name: str, separator: str = "") -> list[float]:
    """The numbers of an attribute. Raises: DataError."""
    text = element.get(name) or ""
    parts = re.split(separator, text) if separator else [text]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        shown = quoted(text[:MAX_SHOWN] + "..." * (len(text) > MAX_SHOWN)) if text else "missing or empty"
        raise DataError(f"`{name}` is {shown}; expected {'numbers' if separator else 'a number'}. Export it again.")
    return numbers
