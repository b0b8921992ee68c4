"""Label Studio's JSON and JSON-MIN: brush strokes (run lengths), bitmasks, polygons, rectangles and ellipses.

Of several annotations of a task the `ground_truth` is read, or else the newest one that is not cancelled. Coordinates are
percentages of the image. Images are found by the end of their path, also without the eight digits that an upload adds. Regions are
drawn in the order of the file.
"""

import base64
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, ImageError
from models.imaging.call_decoder import call_decoder
from models.imaging.decode import IMAGE_SUFFIXES, MAX_PIXELS, decode_stored_mask
from training.data.class_file import IGNORED_NAMES, read_dataset_classes
from training.data.dataset import Pair
from training.data.formats import shapes
from training.data.formats.coco_images import ImageIndex, local_name
from training.data.formats.shapes import Shape, ShapeMaskReader
from training.data.json_file import read_json
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.split_lists import apply_split_lists
from training.data.tree import FileTree, suffix_of

HEADER = re.compile(
    rb'(\xef\xbb\xbf)?\s*\[\s*\{.*?"(annotations|brushlabels|polygonlabels|data|completions)"\s*:', re.DOTALL
)
HEADER_BYTES = 1 << 16
LABEL_KEYS = ("brushlabels", "bitmasklabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")
GEOMETRY_KEYS = frozenset({"rle", "imageDataURL", "points", "radiusX", "width"})
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
KIND_BITS, SIZE_BITS, WORD_BITS, COUNT_BITS = 2, 4, 5, 32  # of the run length header
ALPHA = 3  # the channel of a brush stroke that holds the mask


@dataclass(frozen=True)
class Task:
    """The image of a task and its regions."""

    image: str  # as written
    regions: tuple[dict[str, Any], ...]  # each with `value`, `original_width`, `original_height`


def detect(tree: FileTree) -> Evidence | None:
    """Whether a JSON file at the top is a list of tasks."""
    files = _task_files(tree)
    if not files:
        return None
    return Evidence(sum(tree.image_counts.values()), f"Label Studio tasks in {', '.join(files)}", strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError that names the file and the task."""
    files = [tree.path(path) for path in _task_files(tree)]
    if len(files) != 1:
        raise DataError(
            f"{tree.root} has {len(files)} Label Studio files; expected one. Give the file itself, or delete the others."
        )
    file = files[0]
    tasks, notes = _read_tasks(file)
    found = _find_images(tree, tasks, file)
    missing = [task.image for index, task in enumerate(tasks) if index not in found]
    if not found:
        raise DataError(
            f"{file} lists {len(tasks):,} images, but none of them is in {tree.root}; looked for {local_name(tasks[0].image)}. "
            f"Put the images into {tree.root}/images."
            if tasks
            else f"{file} has no annotated tasks with an image; label some, and export again."
        )
    if missing:
        notes.append(
            f"{file} lists {len(missing):,} images that are not in {tree.root}, such as {missing[0]}; they are skipped."
        )
    names = sorted({name for task in tasks for region in task.regions for name in _labels_of(region)})
    named, _, class_files = read_dataset_classes(tree)
    ignored = {name for name in names if name.lower() in IGNORED_NAMES}
    if not set(names) - ignored <= {entry.name for entry in named}:
        named, class_files = [], ()
    listed_names = [*(entry.name for entry in named), *ignored] if named else names
    classes, label_by_name = shapes.classes_with_background(listed_names, file)
    regions = {name: tasks[index].regions for index, (name, _) in found.items()}
    entries = [Entry(name, path, file) for name, path in found.values()]
    check_unique(entries)
    listed = apply_split_lists(tree, entries)
    reader = ShapeMaskReader(
        partial(_parse, regions=regions, label_by_name=label_by_name), shapes.digest(label_by_name)
    )
    return Listing(
        tree.root, listed.entries, classes, mask_reader=reader, notes=(*tree.notes, *notes, *listed.notes),
        files=(file, *class_files, *listed.files),
    )  # fmt: skip


def _task_files(tree: FileTree) -> list[str]:
    found = []
    for path in tree.shared_files("", (".json",)):
        try:
            with tree.path(path).open("rb") as stream:
                if HEADER.match(stream.read(HEADER_BYTES)):
                    found.append(path)
        except OSError:
            continue
    return found


def _read_tasks(file: Path) -> tuple[list[Task], list[str]]:
    """The tasks that were annotated, and notes. Raises: DataError."""
    content = read_json(file)
    tasks, skipped, several, unlabeled, points = [], 0, 0, 0, 0
    for index, entry in enumerate(content):
        try:
            image = _image_of(entry)
            annotations = entry.get("annotations", entry.get("completions"))
            if annotations is None:  # JSON-MIN: the regions are values of the task
                regions = [region for value in entry.values() if isinstance(value, list) for region in value]
                regions = [{"value": region, **region} for region in regions if isinstance(region, dict)]
            else:
                valid = [each for each in annotations if not each.get("was_cancelled")]
                several += len(valid) > 1
                if not valid:
                    skipped += 1
                    continue
                regions = _best_annotation(valid)["result"]
            tasks.append(Task(image, tuple(region for region in regions if _labels_of(region))))
            # With a separate <Labels> tag a region is there twice, with and without its label, under one id.
            labeled = {region.get("id") for region in tasks[-1].regions}
            points += sum("keypointlabels" in (region.get("value") or ()) for region in regions)
            unlabeled += sum(
                not _labels_of(region)
                and "keypointlabels" not in (region.get("value") or ())
                and not GEOMETRY_KEYS.isdisjoint(region.get("value") or ())
                and (region.get("id") is None or region.get("id") not in labeled)
                for region in regions
            )
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else "a value is of another type"
            raise DataError(
                f"{file}: task {index} is not as Label Studio writes it: {reason}. Export it again."
            ) from error
    notes = []
    if skipped:
        notes.append(f"{file}: {skipped:,} tasks without annotation, or cancelled; they are left out.")
    if points:
        notes.append(f"{file}: {points:,} key points have no area; they are left out.")
    if unlabeled:
        notes.append(f"{file}: {unlabeled:,} regions have no class; they are left out.")
    if several:
        notes.append(
            f"{file}: {several:,} tasks have several annotations; the ground truth is read, or else the newest."
        )
    return tasks, notes


def _best_annotation(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    def rank(annotation: dict[str, Any]) -> tuple[bool, str, int]:
        number = str(annotation.get("id") or 0)
        newest = str(annotation.get("updated_at") or annotation.get("created_at") or "")
        return bool(annotation.get("ground_truth")), newest, int(number) if number.isdecimal() else 0

    return max(annotations, key=rank)


def _image_of(entry: dict[str, Any]) -> str:
    """The path of the image: the first value that ends like an image."""
    values = [value for value in entry.get("data", entry).values() if isinstance(value, str)]
    return next(
        (value for value in values if suffix_of(local_name(value)) in IMAGE_SUFFIXES), values[0] if values else ""
    )


def _labels_of(region: dict[str, Any]) -> list[str]:
    value = region.get("value", region)
    return next(([name for name in value[key] if isinstance(name, str)] for key in LABEL_KEYS if value.get(key)), [])


def _find_images(tree: FileTree, tasks: list[Task], file: Path) -> dict[int, tuple[str, Path]]:
    """Index of the task -> (name, image file)."""
    index = ImageIndex(tree, "")
    written = [task.image.replace("\\", "/").split("?d=")[-1] for task in tasks]
    found = index.resolve(written, file)
    if not found:
        shorter = [
            f"{name.rpartition('/')[0]}/{UPLOAD_PREFIX.sub('', name.rpartition('/')[2])}".lstrip("/")
            for name in written
        ]
        found = index.resolve(shorter, file)
    return found


def _parse(
    pair: Pair, regions: dict[str, tuple[dict[str, Any], ...]], label_by_name: dict[str, int]
) -> tuple[tuple[int, int], list[Shape]]:
    size: tuple[int, int] | None = None
    found = []
    for region in regions[pair.name]:
        try:
            width, height = int(region["original_width"]), int(region["original_height"])
            if size not in (None, (height, width)) or not 0 < width * height <= MAX_PIXELS:
                raise DataError(
                    f"the image {pair.image.name} has regions of different or invalid sizes; export it again."
                )
            size = (height, width)
            found.append(_shape(region["value"], label_by_name[_labels_of(region)[0]], size))
        except (DataError, ImageError) as error:
            raise DataError(f"{pair.image.name}: {error}") from error
        except (KeyError, TypeError, ValueError, OverflowError, IndexError, OSError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else "its geometry or size is broken"
            raise DataError(
                f"{pair.image.name}: a region is not as Label Studio writes it: {reason}. Export it again."
            ) from error
    return size or shapes.SizeReader()(pair.image), found


def _shape(value: dict[str, Any], label: int, size: tuple[int, int]) -> Shape:
    height, width = size
    scale = np.array([width, height]) / 100
    if "rle" in value:
        return Shape(label, bitmap=decode_brush(value["rle"], size))
    if "imageDataURL" in value:
        data = base64.b64decode(str(value["imageDataURL"]).partition(",")[2])
        image = call_decoder(decode_stored_mask, data)
        bitmap = np.asarray(image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA") else "L"))
        mask = bitmap[..., ALPHA] > 0 if bitmap.ndim == 3 else bitmap > 0
        if mask.shape != size:
            raise DataError(
                f"a bitmask has {mask.shape[1]} x {mask.shape[0]} pixels, but the image has {width} x {height}."
            )
        return Shape(label, bitmap=mask)
    if "points" in value:
        return Shape(label, [shapes.outline(np.asarray(value["points"], np.float64) * scale)])
    x, y = np.array([value["x"], value["y"]], np.float64) * scale
    if "radiusX" in value:
        corners = shapes.ellipse(0, 0, value["radiusX"] * scale[0], value["radiusY"] * scale[1])
    else:
        corners = shapes.rectangle(0, 0, value["width"] * scale[0], value["height"] * scale[1])
    angle = np.deg2rad(float(value.get("rotation") or 0))  # clockwise, around the anchor
    turned = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return Shape(label, [shapes.outline(turned + np.array([x, y]))])


def decode_brush(content: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A brush stroke, H x W. Raises: DataError.

    The format of thi.ng/rle-pack, as label-studio-converter's `brush.decode_rle` reads it: a header of 32 bits (number of words),
    5 (bits of a word, minus 1) and 4 x 4 (bits of the four sizes of counts, minus 1); then blocks of 1 bit (whether one word
    repeats), 2 bits (which size), the count minus 1, and one word or `count` words. The words are RGBA; alpha is the mask.
    """
    try:
        bits = np.unpackbits(np.asarray(content, np.uint8))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("brush run lengths are not bytes; export it again.") from error
    position = 0

    def take(count: int) -> NDArray[np.uint8]:
        nonlocal position
        if position + count > len(bits):
            raise DataError("brush run lengths end too early; export it again.")
        position += count
        return bits[position - count : position]

    def number(count: int) -> int:
        return int("".join(map(str, take(count).tolist())), 2)

    total, word = number(COUNT_BITS), number(WORD_BITS) + 1
    sizes = [number(SIZE_BITS) + 1 for _ in range(1 << KIND_BITS)]
    if total != size[0] * size[1] * 4:
        raise DataError(
            f"brush run lengths cover {total // 4:,} pixels, but the image has {size[1]} x {size[0]}; export it again."
        )
    words = np.zeros(total, np.uint8)
    place = 0
    weights = (1 << np.arange(word - 1, -1, -1)).astype(np.int64)
    while place < total:
        repeats = number(1)
        count = number(sizes[number(KIND_BITS)]) + 1
        if place + count > total:
            raise DataError("brush run lengths cover more pixels than the image has; export it again.")
        if repeats:
            words[place : place + count] = min(255, number(word))
        else:
            words[place : place + count] = np.minimum(255, take(count * word).reshape(count, word) @ weights)
        place += count
    return words.reshape(*size, 4)[..., ALPHA] > 0
