"""Parses a COCO file into packed arrays: instances and stuff (polygons, run lengths), or panoptic segments.

The format: cocodataset.org/#format-data. A region marked `iscrowd` is ignored, because it also covers the space between
objects, unless the annotation has `attributes`: CVAT marks every brush mask as a crowd (datumaro's COCO exporter:
`is_crowd = mask is not None`) and writes `attributes` with it. A box without a region is ignored too: the object is somewhere
in it. COCO defines no order of overlap; smaller regions are painted over larger ones.
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

from models.errors import DataError, quoted
from models.imaging.decode import MAX_PIXELS
from training.data.formats.rasterize import COMPRESSED_RLE, POLYGONS, UNCOMPRESSED_RLE, Regions, region_runs
from training.data.formats.shapes import MAX_COORDINATE
from training.data.json_file import read_json

JsonObject = dict[str, Any]
MAX_CATEGORY_ID = 2**31 - 1
IGNORED_CATEGORY = -1  # the category of ignored regions


@dataclass(frozen=True)
class PanopticSegments:
    """The segments of one image in a panoptic file."""

    file: str  # the PNG whose colors are segment ids: red + 256 green + 65536 blue
    categories: dict[int, int]  # segment id -> category id; -1 for ignored


@dataclass(frozen=True, eq=False)
class CocoAnnotations:
    """The annotations of the N images in a COCO file: regions or, in a panoptic file, segments."""

    names: tuple[str, ...]  # N: `file_name`, as written
    regions: Regions | None
    segments: tuple[PanopticSegments | None, ...] = ()  # N; None for an image without annotation
    notes: tuple[str, ...] = ()


def read_categories(file: Path) -> list[JsonObject]:
    """Read only `categories`, without parsing half a gigabyte of regions. Raises: DataError."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}); check the file and its permissions.") from error
    position = text.find(b'"categories"')
    while position >= 0:
        start = text.find(b"[", position)
        if start >= 0 and not text[position + 12 : start].strip(b": \t\r\n"):
            # Categories are short. If the slice ends within them, retry with twice the length.
            length = 1 << 16
            while True:
                try:
                    found, _ = json.JSONDecoder().raw_decode(text[start : start + length].decode(errors="ignore"))
                    return _check_categories(found, file)
                except json.JSONDecodeError:
                    if length >= len(text):
                        break
                    length *= 2
        position = text.find(b'"categories"', position + 1)
    return _check_categories(_load_json(file).get("categories"), file)


def _check_categories(categories: Any, file: Path) -> list[JsonObject]:
    names: dict[int, str] = {}
    for index, entry in enumerate(_require_list(categories, "categories", file)):
        id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(id, int) and 0 <= id <= MAX_CATEGORY_ID and isinstance(name, str) and name.strip()):
            raise DataError(
                f"{file}: categories[{index}] needs an `id` (0 to {MAX_CATEGORY_ID:,}) and a `name`; export it again."
            )
        if names.setdefault(id, name) != name:
            raise DataError(
                f"{file}: the category id {id} occurs twice in `categories`, as {quoted(names[id])} and {quoted(name)}; give each "
                "category its own id, also in the annotations."
            )
    return list(categories)


def read_coco(file: Path) -> CocoAnnotations:
    """Parse a COCO file; the last result is cached. Raises: DataError that names the file and the entry."""
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}); check the file and its permissions.") from error
    return _parse_coco(file, stat.st_mtime_ns, stat.st_size)


# One file may hold all three splits, and the lint opens one after the other.
@functools.lru_cache(maxsize=1)
def _parse_coco(file: Path, changed: int, size: int) -> CocoAnnotations:
    content = _load_json(file)
    images = _require_list(content.get("images"), "images", file)
    annotations = _require_list(content.get("annotations"), "annotations", file)
    index_by_id: dict[Any, int] = {}
    names, sizes = [], np.zeros((len(images), 2), np.int64)
    for index, entry in enumerate(images):
        try:
            name, sizes[index] = entry["file_name"], (entry["height"], entry["width"])
            if sizes[index].min() < 1 or sizes[index].max() > MAX_PIXELS or sizes[index].prod() > MAX_PIXELS:
                raise ValueError
            index_by_id[entry["id"]] = index
            names.append(name.replace("\\", "/"))  # Label Studio on Windows, HumanSignal/label-studio#7294
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{file}: images[{index}] needs `id`, `file_name`, and `height` and `width` of at most {MAX_PIXELS:,} pixels; "
                "export it again."
            ) from error
    if len(index_by_id) < len(images):
        raise DataError(f"{file}: two images have the same `id`; export it again with unique ids.")
    if any("segments_info" in entry for entry in annotations[:1] if isinstance(entry, dict)):
        return CocoAnnotations(tuple(names), None, _parse_segments(annotations, index_by_id, file))
    builder = _RegionBuilder(file, index_by_id, sizes)
    for index, entry in enumerate(annotations):
        builder.add(index, entry)
    return CocoAnnotations(tuple(names), builder.build(), notes=tuple(builder.notes()))


def _load_json(file: Path) -> JsonObject:
    content = read_json(file, object_hook=_pack_numbers)
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a COCO file; expected an object with `images`, not a {type(content).__name__}.")
    return content


def _pack_numbers(entry: JsonObject) -> JsonObject:
    """Pack numbers while parsing: the train file of COCO has 20 million of them, and a Python number takes 32 bytes."""
    polygons, counts = entry.get("segmentation"), entry.get("counts")
    try:
        if type(polygons) is list:
            entry["segmentation"] = [array("f", polygon) for polygon in polygons]
        elif type(counts) is list:
            entry["counts"] = array("I", counts)
    except (TypeError, OverflowError):
        pass  # reported with its index when the annotations are parsed
    return entry


def _require_list(value: Any, name: str, file: Path) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{file}: not a COCO file; the list `{name}` is missing. Export the data set as COCO again.")
    return value


def _parse_segments(
    annotations: list[Any], index_by_id: dict[Any, int], file: Path
) -> tuple[PanopticSegments | None, ...]:
    segments: list[PanopticSegments | None] = [None] * len(index_by_id)
    for index, entry in enumerate(annotations):
        try:
            categories = {
                int(segment["id"]): IGNORED_CATEGORY if segment.get("iscrowd") else int(segment["category_id"])
                for segment in entry["segments_info"]
            }
            segments[index_by_id[entry["image_id"]]] = PanopticSegments(str(entry["file_name"]), categories)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{file}: annotations[{index}] needs the `image_id` of an image, `file_name` and `segments_info` with `id` "
                "and `category_id`; export it again."
            ) from error
    return tuple(segments)


@dataclass
class _RegionBuilder:
    """Collects regions in file order; sorts and packs them at the end."""

    file: Path
    index_by_id: dict[Any, int]  # image index by image id
    sizes: NDArray[np.int64]  # N x 2
    # (image, sort key, category, kind, first part, part after the last) of each region
    rows: list[tuple[int, float, int, int, int, int]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    crowds: int = 0
    boxes: int = 0
    flat_polygons: int = 0  # of fewer than three corners

    def add(self, index: int, entry: Any) -> None:
        """Add one annotation. Raises: DataError that names its index."""
        try:
            image, category = self.index_by_id[entry["image_id"]], int(entry["category_id"])
            if not 0 <= category <= MAX_CATEGORY_ID:
                raise DataError(f"invalid `category_id` {category}; expected 0 to {MAX_CATEGORY_ID:,}.")
            kind, parts = _parse_segmentation(entry.get("segmentation"), self.sizes[image].tolist())
            if kind == POLYGONS:
                self.flat_polygons += _count_flat_polygons(entry.get("segmentation"))
            if not parts and not entry.get("segmentation") and entry.get("bbox"):
                kind, parts, category = POLYGONS, [_box_polygon(entry["bbox"])], IGNORED_CATEGORY
                self.boxes += 1
            elif entry.get("iscrowd") and "attributes" not in entry:
                category = IGNORED_CATEGORY
                self.crowds += 1
            area = float(entry.get("area") or 0) or self._area(kind, parts, image)
        except DataError as error:
            raise DataError(f"{self.file}: annotations[{index}]: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{self.file}: annotations[{index}] needs the `image_id` of an image, a `category_id`, and a `segmentation` of "
                f"polygons (x, y, x, y ...) or run lengths ({type(error).__name__}: {error})."
            ) from error
        first = len(self.parts)
        self.parts += parts
        self.rows.append(
            (image, -np.inf if category == IGNORED_CATEGORY else -area, category, kind, first, len(self.parts))
        )

    def _area(self, kind: int, parts: list[bytes], image: int) -> float:
        """In pixels, for a region without `area`."""
        height, width = self.sizes[image].tolist()
        return float(sum(np.diff(region_runs(part, kind, (height, width))).sum() for part in parts))

    def build(self) -> Regions:
        """The regions by image; within an image first the ignored ones, then by decreasing area, in painting order."""
        table = np.array(self.rows, np.float64).reshape(-1, 6)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        columns = table[:, [0, 2, 3, 4, 5]].astype(np.int64)  # image, category, kind, part range
        lengths = np.array([0, *map(len, self.parts)], np.int64)
        return Regions(
            sizes=self.sizes,
            region_offsets=np.searchsorted(columns[:, 0], np.arange(len(self.sizes) + 1)).astype(np.int64),
            categories=columns[:, 1],
            kinds=columns[:, 2].astype(np.uint8),
            part_ranges=columns[:, 3:],
            byte_offsets=lengths.cumsum(),
            data=b"".join(self.parts),
        )

    def notes(self) -> Iterator[str]:
        """Assumptions to report. Raises: DataError if there are only boxes."""
        if self.boxes and self.boxes == len(self.rows):
            raise DataError(f"{self.file} has only bounding boxes; export polygons or masks.")
        if self.crowds:
            yield f"{self.file}: {self.crowds:,} regions marked `iscrowd` are ignored."
        if self.boxes:
            yield f"{self.file}: {self.boxes:,} boxes without an outline are ignored."
        if self.flat_polygons:
            yield f"{self.file}: {self.flat_polygons:,} polygons of fewer than three points have no area; they are left out."
        unannotated = len(self.sizes) - len({row[0] for row in self.rows})
        if unannotated:
            yield f"{self.file}: {unannotated:,} of {len(self.sizes):,} images have no annotation; they are all background."


def _parse_segmentation(segmentation: Any, size: list[int]) -> tuple[int, list[bytes]]:
    """The kind of a region and its parts; `size` is [height, width]. Raises: DataError, and TypeError and the like."""
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", size)) != size:
            raise DataError(
                f"the run lengths are for [height, width] {segmentation['size']}, but the image has {size}; export it again."
            )
        counts = segmentation["counts"]
        if isinstance(counts, str):
            return COMPRESSED_RLE, [counts.encode("ascii")]
        return UNCOMPRESSED_RLE, [array("I", counts).tobytes()]
    polygons = _list_polygons(segmentation)
    if any(len(polygon) % 2 for polygon in polygons):
        raise DataError("a polygon has an odd number of coordinates; expected x, y, x, y ...")
    if any(max(polygon) > MAX_COORDINATE or min(polygon) < -MAX_COORDINATE for polygon in polygons if polygon):
        raise DataError(f"a polygon has a coordinate above {MAX_COORDINATE:,.0f}; export it again.")
    return POLYGONS, [array("f", polygon).tobytes() for polygon in polygons if len(polygon) >= 6]


def _list_polygons(segmentation: Any) -> list[Any]:
    """The outlines of a region. Raises: DataError for text."""
    if isinstance(segmentation, str):
        raise DataError("the `segmentation` is text; expected polygons (x, y, x, y ...) or run lengths.")
    if segmentation and isinstance(segmentation[0], (int, float)):  # one outline, not in a list
        return [segmentation]
    return segmentation or []


def _count_flat_polygons(segmentation: Any) -> int:
    return sum(0 < len(polygon) < 6 for polygon in _list_polygons(segmentation))


def _box_polygon(box: Any) -> bytes:
    x, y, width, height = box
    return array("f", (x, y, x + width, y, x + width, y + height, x, y + height)).tobytes()
