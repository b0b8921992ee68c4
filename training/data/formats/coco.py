"""COCO's JSON, as COCO, CVAT, Label Studio, Roboflow and others write it. One of:

    annotations/instances_train2017.json   train2017/ or images/train2017/    and val; also stuff_*, panoptic_* with its PNGs
    annotations/instances_default.json     images/                            CVAT; instances_Train.json with images/Train/
    result.json                            images/                            Label Studio; any one COCO file at the top
    train/_annotations.coco.json           train/                             Roboflow; and valid, test

Without splits the hash of the name makes them, and without val a tenth of train is held out, as in `folder.py`. Of several
kinds panoptic is read before instances, and those before stuff. Labels follow the category ids. Where instances do not cover
a pixel it is background, class 0; where panoptic or stuff do not, it is void. Images are found by the end of their
`file_name`. Masks are drawn at the height and width that the file tells, in whatever frame its tool drew them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.imaging.decode import read_image
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.dataset import Pair, SegmentationDataset
from training.data.formats.coco_discovery import CocoFiles, find_coco_files, list_coco_files
from training.data.formats.coco_images import ImageIndex
from training.data.formats.coco_parser import CocoAnnotations, JsonObject, read_categories, read_coco
from training.data.formats.rasterize import Regions
from training.data.mask_decoding import RawMask
from training.data.splits import SplitSource, is_split_available, resolve_split_source

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class RegionMaskReader:
    """Draws the mask of an image from polygons and run lengths."""

    file: Path
    regions: Regions
    region_labels: NDArray[np.uint8]  # by region
    image_indices: dict[str, int]  # of the images, by name
    background_label: int
    cache_key: str  # digest of all but the pair's own files (`cache.py`)

    def __call__(self, pair: Pair) -> RawMask:
        """Labels, H x W. Raises: DataError."""
        try:
            return RawMask(
                self.regions.rasterize(self.image_indices[pair.name], self.region_labels, self.background_label)
            )
        except DataError as error:
            raise DataError(f"{self.file}: the mask of {pair.image.name}: {error}") from error


@dataclass(frozen=True, eq=False)
class PanopticMaskReader:
    """Draws the mask of an image from the ids that are a panoptic PNG's colours."""

    segment_labels: dict[str, dict[int, int]]  # by name: segment id -> label
    cache_key: str  # as above

    def __call__(self, pair: Pair) -> RawMask:
        """Labels, H x W; an id that the file does not tell of is void. Raises: DataError, ImageError."""
        red, green, blue = np.moveaxis(read_image(pair.mask).astype(np.uint32), 2, 0)
        ids = red | green << 8 | blue << 16
        labels = np.full(ids.shape, IGNORE_INDEX, np.uint8)
        for id, label in self.segment_labels[pair.name].items():
            labels[ids == id] = label
        return RawMask(labels)


def recognises(root: Path) -> bool:
    """Whether there is a COCO file where one of the tools puts it, and no `masks`, which would speak for themselves."""
    return not (root / "masks").is_dir() and bool(list_coco_files(root))


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a file, or is made by the hash. Raises: DataError where two files claim one split."""
    return is_split_available(find_coco_files(root).splits(), split, lambda: load(root, split))


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError that names the file and the place in it."""
    listed = find_coco_files(root)
    chosen = resolve_split_source(root, listed.splits(), split)
    file = listed.files[chosen.name]
    content = read_coco(file)
    covered = content.regions is None or listed.kind == "stuff"  # a pixel without region is one that nobody looked at
    classes, labels = _merge_categories(listed, background=not covered)
    found, notes = _find_images(root, file, chosen, content)
    if listed.skipped:
        left = ", ".join(path.relative_to(root).as_posix() for path in listed.skipped)
        notes.append(f"{root} holds COCO files of several kinds; read are those of {listed.kind}, and not {left}.")
    if content.regions is not None:
        by_region = _labels_by_region(content.regions, labels, file)
        pairs = [Pair(name, path, file) for name, path, _ in found]
        places, ground = {name: place for name, _, place in found}, IGNORE_INDEX if covered else 0
        draw = RegionMaskReader(file, content.regions, by_region, places, ground, _digest(labels, ground))
        return SegmentationDataset(pairs, classes, mask_reader=draw, notes=(*content.notes, *notes))
    return _load_panoptic(root, file, content, found, classes, labels, tuple(notes))


def _load_panoptic(
    root: Path, file: Path, content: CocoAnnotations, found: list[tuple[str, Path, int]],
    classes: list[ClassInfo], labels: dict[int, int], notes: tuple[str, ...],
) -> SegmentationDataset:  # fmt: skip
    folder = next((path for path in (file.with_suffix(""), root / file.stem) if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{file.with_suffix('')} is missing: {file.name} speaks of PNGs in it; unpack them there.")
    pairs, drawn, unpaired = [], {}, []
    for name, path, place in found:
        segments = content.segments[place]
        if segments is None or not (folder / segments.file).is_file():
            unpaired.append(path)
            continue
        unknown = sorted(set(segments.categories.values()) - labels.keys())
        if unknown:
            raise DataError(
                f"{file}: {segments.file} has the category {unknown[0]}, which `categories` does not tell of."
            )
        pairs.append(Pair(name, path, folder / segments.file))
        drawn[name] = {id: labels[category] for id, category in segments.categories.items()}
    if not pairs:
        raise DataError(f"{folder} holds none of the PNGs that {file.name} speaks of; unpack them there.")
    return SegmentationDataset(
        pairs,
        classes,
        mask_reader=PanopticMaskReader(drawn, _digest(drawn)),
        unmatched_images=tuple(unpaired),
        notes=notes,
    )


def _find_images(
    root: Path, file: Path, chosen: SplitSource, content: CocoAnnotations
) -> tuple[list[tuple[str, Path, int]], list[str]]:
    """The name, file and place in the COCO file of each image of the split, sorted by name; and what is to be told."""
    images = ImageIndex(root, chosen.name).resolve(content.names, file)
    if not images:
        raise DataError(
            f"{file} lists {len(content.names):,} images, and none is in {root}; put them into {root}/images."
        )
    notes = []
    missing = [name for place, name in enumerate(content.names) if place not in images]
    if missing:
        notes.append(f"{file} lists {len(missing):,} images that are not in {root}, such as {missing[0]}; left out.")
    mine = chosen.select(name for name, _ in images.values())
    found = sorted((name, path, place) for place, (name, path) in images.items() if name in mine)
    if not found:
        raise DataError(f"{file}: no image falls into the split by the hash of its name; add images or name splits.")
    return found, notes


def _labels_by_region(regions: Regions, labels: dict[int, int], file: Path) -> NDArray[np.uint8]:
    ids, inverse = np.unique(regions.categories, return_inverse=True)
    unknown = [id for id in ids.tolist() if id not in labels]
    if unknown:
        raise DataError(
            f"{file}: annotations have the category {unknown[0]}, which `categories` does not tell of or, as Roboflow's id 0 "
            "does, calls the group of the others; add it there, or give those annotations another."
        )
    return np.array([labels[id] for id in ids.tolist()], np.uint8)[inverse]


def _merge_categories(listed: CocoFiles, background: bool) -> tuple[list[ClassInfo], dict[int, int]]:
    """The classes of all files, in the order of their ids, after the background; and the labels by id, void by -1."""
    entries: dict[int, JsonObject] = {}
    for file in listed.files.values():
        for entry in read_categories(file):
            known = entries.setdefault(entry["id"], entry)
            if known["name"] != entry["name"]:
                raise DataError(
                    f"{file}: the category {entry['id']} is {entry['name']!r} here and {known['name']!r} before."
                )
    groups = {entry.get("supercategory") for entry in entries.values()}
    if entries.get(0, {}).get("supercategory") == "none" and entries[0]["name"] in groups:
        del entries[0]  # Roboflow's: the group that holds the classes, which no region is of
    ids = sorted(entries)
    if background:
        ground = next((id for id in ids if entries[id]["name"].lower() == BACKGROUND), -2)
        entries.setdefault(ground, {"name": BACKGROUND})
        ids = [ground, *(id for id in ids if id != ground)]
    file = next(iter(listed.files.values()))
    if not 2 <= len(ids) <= 255:
        raise DataError(
            f"{file}: {len(ids)} classes; a mask tells 2 to 255 apart (instances have the background as one)."
        )
    if len({entries[id]["name"] for id in ids}) < len(ids):
        raise DataError(f"{file} names a category twice; each needs a name of its own.")
    labels = {id: label for label, id in enumerate(ids)}
    classes = [
        ClassInfo(name=entries[id]["name"], rgb=_category_rgb(entries[id], label)) for id, label in labels.items()
    ]
    return classes, {**labels, -1: IGNORE_INDEX}


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _category_rgb(entry: JsonObject, label: int) -> tuple[int, int, int]:
    try:
        red, green, blue = (np.uint8(channel).item() for channel in entry["color"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return default_rgb(label)
    return red, green, blue
