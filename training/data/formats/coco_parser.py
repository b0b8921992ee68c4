"""What a COCO file lists, parsed once and packed: instances and stuff (polygons, run lengths), or panoptic segments.

The form: cocodataset.org/#format-data. A region marked `iscrowd` is void, as it holds what lies between its things too,
unless the annotation has `attributes`: CVAT marks every mask painted by brush a crowd (datumaro's COCO exporter:
`is_crowd = mask is not None`) and writes those beside. A box without a region is void as well: the thing is somewhere in it.
COCO has no order of overlap; smaller regions are painted over larger ones.
"""

import functools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.imaging.decode import MAX_PIXELS
from training.data.formats.rasterize import COMPRESSED_RLE, POLYGONS, UNCOMPRESSED_RLE, Regions, region_runs

JsonObject = dict[str, Any]
MAX_CATEGORY_ID = 2**31 - 1  # of a category


@dataclass(frozen=True)
class PanopticSegments:
    """One image of a panoptic file."""

    file: str  # the PNG whose colours are ids: red + 256 green + 65536 blue
    categories: dict[int, int]  # segment id -> category id; -1 for void


@dataclass(frozen=True, eq=False)
class CocoAnnotations:
    """What a COCO file lists of N images: their regions, or, where it is panoptic, their segments."""

    names: tuple[str, ...]  # N: `file_name`, as written
    regions: Regions | None
    segments: tuple[PanopticSegments | None, ...] = ()  # N; None for an image without annotation
    notes: tuple[str, ...] = ()


def read_categories(file: Path) -> list[JsonObject]:
    """The `categories` alone: half a gigabyte of regions is not parsed for the names of a few classes. Raises: DataError."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}).") from error
    place = text.find(b'"categories"')
    while place >= 0:
        start = text.find(b"[", place)
        if start >= 0 and not text[place + 12 : start].strip(b": \t\r\n"):
            # Categories are short; a piece that ends within them is cut again, twice as long.
            length = 1 << 16
            while True:
                try:
                    found, _ = json.JSONDecoder().raw_decode(text[start : start + length].decode(errors="ignore"))
                    return _check_categories(found, file)
                except json.JSONDecodeError:
                    if length >= len(text):
                        break
                    length *= 2
        place = text.find(b'"categories"', place + 1)
    return _check_categories(_load_json(file).get("categories"), file)


def _check_categories(categories: Any, file: Path) -> list[JsonObject]:
    for place, entry in enumerate(_require_list(categories, "categories", file)):
        id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(id, int) and 0 <= id <= MAX_CATEGORY_ID and isinstance(name, str) and name.strip()):
            raise DataError(
                f"{file}: categories[{place}] needs an `id` (0 to {MAX_CATEGORY_ID:,}) and a `name`; export it again."
            )
    return list(categories)


def read_coco(file: Path) -> CocoAnnotations:
    """Parse a COCO file, or hand over what was parsed of it last. Raises: DataError that names the file and the place."""
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}).") from error
    return _parse_coco(file, stat.st_mtime_ns, stat.st_size)


# One file may hold all three splits, and the lint opens each in turn.
@functools.lru_cache(maxsize=1)
def _parse_coco(file: Path, changed: int, size: int) -> CocoAnnotations:
    content = _load_json(file)
    images = _require_list(content.get("images"), "images", file)
    annotations = _require_list(content.get("annotations"), "annotations", file)
    places: dict[Any, int] = {}
    names, sizes = [], np.zeros((len(images), 2), np.int64)
    for place, entry in enumerate(images):
        try:
            name, sizes[place] = entry["file_name"], (entry["height"], entry["width"])
            if sizes[place].min() < 1 or sizes[place].max() > MAX_PIXELS or sizes[place].prod() > MAX_PIXELS:
                raise ValueError
            places[entry["id"]] = place
            names.append(name.replace("\\", "/"))  # Label Studio on Windows, HumanSignal/label-studio#7294
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            wanted = f"`id`, `file_name`, and `height` and `width` of at most {MAX_PIXELS:,} pixels"
            raise DataError(f"{file}: images[{place}] needs {wanted}; export it again.") from error
    if len(places) < len(images):
        raise DataError(f"{file}: two of the images have one `id`; each needs one of its own.")
    if any("segments_info" in entry for entry in annotations[:1] if isinstance(entry, dict)):
        return CocoAnnotations(tuple(names), None, _parse_segments(annotations, places, file))
    packing = _RegionBuilder(file, places, sizes)
    for place, entry in enumerate(annotations):
        packing.add(place, entry)
    return CocoAnnotations(tuple(names), packing.build(), notes=tuple(packing.notes()))


def _load_json(file: Path) -> JsonObject:
    try:
        content = json.loads(file.read_bytes(), object_hook=_pack_numbers)
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: is no JSON at line {error.lineno}, column {error.colno} ({error.msg}); it may be cut off: "
            "export or copy it again."
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON ({type(error).__name__}); export or copy it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: is no COCO file: a {type(content).__name__} came, wanted is an object with `images`.")
    return content


def _pack_numbers(entry: JsonObject) -> JsonObject:
    """Packs numbers as soon as they are parsed: a train file of COCO holds 20 million, and as Python's own 32 bytes each."""
    polygons, counts = entry.get("segmentation"), entry.get("counts")
    try:
        if type(polygons) is list:
            entry["segmentation"] = [array("f", polygon) for polygon in polygons]
        elif type(counts) is list:
            entry["counts"] = array("I", counts)
    except (TypeError, OverflowError):
        pass  # told with its place when the annotations are read
    return entry


def _require_list(value: Any, name: str, file: Path) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{file}: is no COCO file: the list `{name}` is missing; export the data set as COCO with it.")
    return value


def _parse_segments(annotations: list[Any], places: dict[Any, int], file: Path) -> tuple[PanopticSegments | None, ...]:
    segments: list[PanopticSegments | None] = [None] * len(places)
    for place, entry in enumerate(annotations):
        try:
            categories = {
                int(segment["id"]): -1 if segment.get("iscrowd") else int(segment["category_id"])
                for segment in entry["segments_info"]
            }
            segments[places[entry["image_id"]]] = PanopticSegments(str(entry["file_name"]), categories)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{file}: annotations[{place}] needs the `image_id` of an image, `file_name` and `segments_info` with `id` "
                "and `category_id`; export it again."
            ) from error
    return tuple(segments)


@dataclass
class _RegionBuilder:
    """The regions as they come, to be sorted and packed at the end."""

    file: Path
    image_indices: dict[Any, int]  # by image id
    sizes: NDArray[np.int64]  # N x 2
    rows: list[tuple[int, float, int, int, int, int]] = field(default_factory=list)  # see `packed`
    parts: list[bytes] = field(default_factory=list)
    crowds: int = 0
    boxes: int = 0

    def add(self, place: int, entry: Any) -> None:
        """Take in one annotation. Raises: DataError that names its place."""
        try:
            image, category = self.image_indices[entry["image_id"]], int(entry["category_id"])
            if not 0 <= category <= MAX_CATEGORY_ID:
                raise DataError(f"the `category_id` {category} is none; wanted is 0 to {MAX_CATEGORY_ID:,}.")
            kind, parts = _parse_segmentation(entry.get("segmentation"), self.sizes[image].tolist())
            if not parts and not entry.get("segmentation") and entry.get("bbox"):
                kind, parts, category = POLYGONS, [_box_polygon(entry["bbox"])], -1
                self.boxes += 1
            elif entry.get("iscrowd") and "attributes" not in entry:
                category = -1
                self.crowds += 1
            area = float(entry.get("area") or 0) or self._area(kind, parts, image)
        except DataError as error:
            raise DataError(f"{self.file}: annotations[{place}]: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{self.file}: annotations[{place}] needs the `image_id` of an image, a `category_id`, and a `segmentation` of "
                f"polygons (x, y, x, y ...) or run lengths ({type(error).__name__}: {error})."
            ) from error
        first = len(self.parts)
        self.parts += parts
        self.rows.append((image, -np.inf if category < 0 else -area, category, kind, first, len(self.parts)))

    def _area(self, kind: int, parts: list[bytes], image: int) -> float:
        """In pixels, of a region that does not say."""
        height, width = self.sizes[image].tolist()
        return float(sum(np.diff(region_runs(part, kind, (height, width))).sum() for part in parts))

    def build(self) -> Regions:
        """By image; in each void first, then by falling area, so that the smaller are painted over the larger."""
        table = np.array(self.rows, np.float64).reshape(-1, 6)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        whole = table[:, [0, 2, 3, 4, 5]].astype(np.int64)
        lengths = np.array([0, *map(len, self.parts)], np.int64)
        firsts = np.searchsorted(whole[:, 0], np.arange(len(self.sizes) + 1))
        return Regions(
            self.sizes,
            firsts.astype(np.int64),
            whole[:, 1],
            whole[:, 2].astype(np.uint8),
            whole[:, 3:],
            lengths.cumsum(),
            b"".join(self.parts),
        )

    def notes(self) -> Iterator[str]:
        """What was understood, and may have been meant otherwise."""
        if self.boxes and self.boxes == len(self.rows):
            raise DataError(f"{self.file} holds boxes alone; to tell pixels apart, polygons or masks are wanted.")
        if self.crowds:
            yield f"{self.file}: {self.crowds:,} regions marked `iscrowd` are void."
        if self.boxes:
            yield f"{self.file}: {self.boxes:,} boxes have no outline; each is void throughout."
        bare = len(self.sizes) - len({row[0] for row in self.rows})
        if bare:
            yield f"{self.file}: {bare:,} of {len(self.sizes):,} images have no annotation; they hold no class but the ground."


def _parse_segmentation(segmentation: Any, size: list[int]) -> tuple[int, list[bytes]]:
    """The kind of a region and its parts, in an image of [height, width]. Raises: DataError, and what wrong types raise."""
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", size)) != size:
            raise DataError(
                f"its run lengths are of an image of [height, width] {segmentation['size']}, but the image is {size}."
            )
        counts = segmentation["counts"]
        if isinstance(counts, str):
            return COMPRESSED_RLE, [counts.encode("ascii")]
        return UNCOMPRESSED_RLE, [array("I", counts).tobytes()]
    polygons = segmentation or []
    if polygons and isinstance(polygons[0], (int, float)):  # one outline, written without the list around it
        polygons = [polygons]
    if any(len(polygon) % 2 for polygon in polygons):
        raise DataError("a polygon has an odd count of numbers; wanted is x, y, x, y ...")
    return POLYGONS, [array("f", polygon).tobytes() for polygon in polygons if len(polygon) >= 6]


def _box_polygon(box: Any) -> bytes:
    x, y, width, height = box
    return array("f", (x, y, x + width, y, x + width, y + height, x, y + height)).tobytes()
