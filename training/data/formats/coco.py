"""COCO JSON, as written by COCO, CVAT, Label Studio, Roboflow and others. One of:

    annotations/instances_train2017.json   train2017/ or images/train2017/    and val; also stuff_*, panoptic_* with its PNGs
    annotations/instances_default.json     images/                            CVAT; instances_Train.json with images/Train/
    result.json                            images/                            Label Studio; any one COCO file at the top
    train/_annotations.coco.json           train/                             Roboflow; and valid, test

Without splits a hash of the name assigns them, and without val a tenth of train is held out, as in `folder.py`. If there are
several kinds of files, panoptic comes before instances, and instances before stuff. Labels follow the order of category ids.
A pixel without an instance is background, class 0; a pixel without panoptic or stuff segment is ignored. Images are found by
the end of their `file_name`. Masks are drawn at the height and width in the file, without applying EXIF rotation.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError, quoted
from models.imaging.decode import read_image
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.dataset import Pair, SegmentationDataset
from training.data.formats.coco_discovery import CocoFiles, find_coco_files, list_coco_files
from training.data.formats.coco_images import ImageIndex, local_name
from training.data.formats.coco_parser import IGNORED_CATEGORY, CocoAnnotations, JsonObject, read_categories, read_coco
from training.data.formats.rasterize import Regions
from training.data.listing import Evidence
from training.data.mask_decoding import RawMask
from training.data.splits import SplitSource, is_split_available, resolve_split_source
from training.data.tree import FileTree

BACKGROUND = "background"
BACKGROUND_CATEGORY = -2  # the id given to a background that the file does not list


@dataclass(frozen=True, eq=False)
class RegionMaskReader:
    """Draws the mask of an image from polygons and run lengths."""

    file: Path
    regions: Regions
    region_labels: NDArray[np.uint8]  # R, by region
    image_indices: dict[str, int]  # index of each image in the file, by name
    background_label: int
    cache_key: str  # digest of everything but the pair's own files (`scan_cache.py`)

    def __call__(self, pair: Pair) -> RawMask:
        """Labels, uint8 H x W. Raises: DataError."""
        try:
            return RawMask(
                self.regions.rasterize(self.image_indices[pair.name], self.region_labels, self.background_label)
            )
        except DataError as error:
            raise DataError(f"{self.file}: the mask of {pair.image.name}: {error}") from error

    def instances(self, pair: Pair) -> NDArray[np.uint32]:
        """The number of the region at each pixel from 1, H x W; 0 for none. Raises: DataError."""
        return self.regions.rasterize(
            self.image_indices[pair.name], np.arange(1, len(self.region_labels) + 1, dtype=np.uint32), 0
        )


@dataclass(frozen=True, eq=False)
class PanopticMaskReader:
    """Reads the mask of an image from a panoptic PNG, whose colors are segment ids."""

    segment_labels: dict[str, dict[int, int]]  # by name: segment id -> label
    cache_key: str  # as above

    def __call__(self, pair: Pair) -> RawMask:
        """Labels, uint8 H x W; ids that the file does not list are ignored. Raises: DataError, ImageError."""
        red, green, blue = np.moveaxis(read_image(pair.mask).astype(np.uint32), 2, 0)
        ids = red | green << 8 | blue << 16
        labels = np.full(ids.shape, IGNORE_INDEX, np.uint8)
        for id, label in self.segment_labels[pair.name].items():
            labels[ids == id] = label
        return RawMask(labels)


def detect(tree: FileTree) -> Evidence | None:
    """Whether there is a COCO file in one of the usual locations, and no folder `masks` with masks, which takes precedence."""
    masks = tree.find_folder("", ("masks",))
    files = [] if masks and tree.images_below(masks) else list_coco_files(tree)
    if not files:
        return None
    names = ", ".join(file.relative_to(tree.root).as_posix() for file in files)
    return Evidence(sum(tree.image_counts.values()), f"COCO annotations in {names}", strength=2)


@dataclass(frozen=True)
class CocoSource:
    """A data set with COCO files; each split reads its own."""

    tree: FileTree

    def has_split(self, split: str) -> bool:
        """Whether the split has a file, or the hash assigns it. Raises: DataError if two files claim one split."""
        return is_split_available(find_coco_files(self.tree).splits(), split, lambda: self.load(split))

    def load(self, split: str) -> SegmentationDataset:
        """Open one split. Raises: DataError that names the file and the entry in it."""
        return _load(self.tree, split)


def read(tree: FileTree) -> CocoSource:
    """Raises: nothing; the splits do."""
    return CocoSource(tree)


def _load(tree: FileTree, split: str) -> SegmentationDataset:
    root, coco_files = tree.root, find_coco_files(tree)
    source = resolve_split_source(root, coco_files.splits(), split)
    file = coco_files.files[source.name]
    content = read_coco(file)
    # Panoptic and stuff label every pixel, so a pixel without region was not labeled; for instances it is background.
    labels_every_pixel = content.regions is None or coco_files.kind == "stuff"
    classes, labels = _merge_categories(coco_files, background=not labels_every_pixel)
    images, notes = _find_images(tree, file, source, content)
    if coco_files.skipped:
        skipped = ", ".join(path.relative_to(root).as_posix() for path in coco_files.skipped)
        notes.append(f"{root} has several kinds of COCO files; {coco_files.kind} is used and {skipped} is skipped.")
    notes = [*tree.notes, *content.notes, *notes]
    if content.regions is None:
        return _load_panoptic(root, file, content, images, classes, labels, notes)
    background_label = IGNORE_INDEX if labels_every_pixel else 0
    reader = RegionMaskReader(
        file,
        content.regions,
        _labels_by_region(content.regions, labels, file),
        {name: index for name, _, index in images},
        background_label,
        _digest(labels, background_label),
    )
    pairs = [Pair(name, path, file) for name, path, _ in images]
    return SegmentationDataset(
        pairs, classes, mask_reader=reader, notes=tuple(notes), files=tuple(coco_files.files.values())
    )


def _load_panoptic(
    root: Path, file: Path, content: CocoAnnotations, images: list[tuple[str, Path, int]],
    classes: list[ClassInfo], labels: dict[int, int], notes: list[str],
) -> SegmentationDataset:  # fmt: skip
    folder = next((path for path in (file.with_suffix(""), root / file.stem) if path.is_dir()), None)
    if folder is None:
        raise DataError(f"The folder {file.with_suffix('')} is missing; unpack the PNGs that {file.name} lists there.")
    pairs, segment_labels, unmatched = [], {}, []
    for name, path, index in images:
        segments = content.segments[index]
        if segments is None or not (folder / segments.file).is_file():
            unmatched.append(path)
            continue
        unknown = sorted(set(segments.categories.values()) - labels.keys())
        if unknown:
            raise DataError(f"{file}: {segments.file} has the category {unknown[0]}, which is not in `categories`.")
        pairs.append(Pair(name, path, folder / segments.file))
        segment_labels[name] = {id: labels[category] for id, category in segments.categories.items()}
    if not pairs:
        raise DataError(f"{folder} has none of the PNGs that {file.name} lists; unpack them there.")
    return SegmentationDataset(
        pairs,
        classes,
        mask_reader=PanopticMaskReader(segment_labels, _digest(segment_labels)),
        unmatched_images=tuple(unmatched),
        notes=tuple(notes),
    )


def _find_images(
    tree: FileTree, file: Path, source: SplitSource, content: CocoAnnotations
) -> tuple[list[tuple[str, Path, int]], list[str]]:
    """The images of the split as (name, file, index in the COCO file), sorted by name; and notes."""
    root, index = tree.root, ImageIndex(tree, source.name)
    images = index.resolve(content.names, file)
    if not images:
        raise DataError(
            f"{file} lists {len(content.names):,} images, but none of them is in {root}, which has {len(index.by_name):,} "
            f"images; looked for {', '.join(map(local_name, content.names[:2]))}; put them into {root}/images."
        )
    notes = []
    missing = [name for index, name in enumerate(content.names) if index not in images]
    if missing:
        notes.append(
            f"{file} lists {len(missing):,} images that are not in {root}, such as {missing[0]}; they are skipped."
        )
    selected = source.select(name for name, _ in images.values())
    found = sorted((name, path, index) for index, (name, path) in images.items() if name in selected)
    if not found:
        raise DataError(f"{file}: the hash of the names assigns no image to this split; add images, or define splits.")
    return found, notes


def _labels_by_region(regions: Regions, labels: dict[int, int], file: Path) -> NDArray[np.uint8]:
    ids, inverse = np.unique(regions.categories, return_inverse=True)
    unknown = [id for id in ids.tolist() if id not in labels]
    if unknown:
        raise DataError(
            f"{file}: annotations use the category {unknown[0]}, which is not in `categories` or, like Roboflow's id 0, is only "
            "the group of the others; add it there, or change those annotations."
        )
    return np.array([labels[id] for id in ids.tolist()], np.uint8)[inverse]


def _merge_categories(coco_files: CocoFiles, background: bool) -> tuple[list[ClassInfo], dict[int, int]]:
    """The classes of all files, background first and then by category id; and the label of each category id."""
    entries: dict[int, JsonObject] = {}
    for file in coco_files.files.values():
        for entry in read_categories(file):
            known = entries.setdefault(entry["id"], entry)
            if known["name"] != entry["name"]:
                raise DataError(
                    f"{file}: the category {entry['id']} is {quoted(entry['name'])} here, "
                    f"but {quoted(known['name'])} in another file."
                )
    groups = {entry.get("supercategory") for entry in entries.values()}
    if entries.get(0, {}).get("supercategory") == "none" and entries[0]["name"] in groups:
        del entries[0]  # Roboflow: the group of the classes, which no region has
    ids = sorted(entries)
    if background:
        first = next((id for id in ids if entries[id]["name"].lower() == BACKGROUND), BACKGROUND_CATEGORY)
        entries.setdefault(first, {"name": BACKGROUND})
        ids = [first, *(id for id in ids if id != first)]
    file = next(iter(coco_files.files.values()))
    if not 2 <= len(ids) <= 255:
        raise DataError(f"{file} has {len(ids)} classes; expected 2 to 255 (for instances, including the background).")
    if len({entries[id]["name"] for id in ids}) < len(ids):
        raise DataError(f"{file} has two categories of the same name; give each its own name.")
    labels = {id: label for label, id in enumerate(ids)}
    classes = [
        ClassInfo(name=entries[id]["name"], rgb=_category_rgb(entries[id], label)) for id, label in labels.items()
    ]
    return classes, {**labels, IGNORED_CATEGORY: IGNORE_INDEX}


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _category_rgb(entry: JsonObject, label: int) -> tuple[int, int, int]:
    try:
        red, green, blue = (np.uint8(channel).item() for channel in entry["color"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return default_rgb(label)
    return red, green, blue
