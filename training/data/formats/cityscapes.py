"""Cityscapes: `leftImg8bit/train/CITY/NAME_leftImg8bit.png`, `gtFine/train/CITY/NAME_gtFine_labelIds.png`; val, test.

The 19 evaluated classes, with the names, colors and ids of mcordts/cityscapesScripts, helpers/labels.py; other ids are
ignored. A class file beside `leftImg8bit` (`classes.csv` with `name,value`) replaces them. `labelTrainIds` are read if every
image has them, because a data set prepared this way has chosen its classes; otherwise `labelIds`. A split without `gtFine` uses
`gtCoarse`. The public masks of test are dummies without a class; then there is no test split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.errors import DataError, MaskserveError
from models.imaging.decode import IMAGE_SUFFIXES, read_mask
from models.spec import IGNORE_INDEX, ClassInfo
from training.data.class_file import INVALID_LABEL, find_class_file, read_dataset_classes
from training.data.dataset import SPLITS, Pair, SegmentationDataset
from training.data.listing import Evidence
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding
from training.data.splits import is_split_available, resolve_split_source
from training.data.tree import FileTree

IMAGE_FOLDER = "leftImg8bit"
MASK_FOLDERS = ("gtFine", "gtCoarse")  # the first one that a split has

CLASSES_BY_ID = {
    7: ClassInfo(name="road", rgb=(128, 64, 128)),
    8: ClassInfo(name="sidewalk", rgb=(244, 35, 232)),
    11: ClassInfo(name="building", rgb=(70, 70, 70)),
    12: ClassInfo(name="wall", rgb=(102, 102, 156)),
    13: ClassInfo(name="fence", rgb=(190, 153, 153)),
    17: ClassInfo(name="pole", rgb=(153, 153, 153)),
    19: ClassInfo(name="traffic light", rgb=(250, 170, 30)),
    20: ClassInfo(name="traffic sign", rgb=(220, 220, 0)),
    21: ClassInfo(name="vegetation", rgb=(107, 142, 35)),
    22: ClassInfo(name="terrain", rgb=(152, 251, 152)),
    23: ClassInfo(name="sky", rgb=(70, 130, 180)),
    24: ClassInfo(name="person", rgb=(220, 20, 60)),
    25: ClassInfo(name="rider", rgb=(255, 0, 0)),
    26: ClassInfo(name="car", rgb=(0, 0, 142)),
    27: ClassInfo(name="truck", rgb=(0, 0, 70)),
    28: ClassInfo(name="bus", rgb=(0, 60, 100)),
    31: ClassInfo(name="train", rgb=(0, 80, 100)),
    32: ClassInfo(name="motorcycle", rgb=(0, 0, 230)),
    33: ClassInfo(name="bicycle", rgb=(119, 11, 32)),
}
CLASSES = list(CLASSES_BY_ID.values())
MAX_ID = 33  # the id -1 of the license plate is 255 in an 8-bit PNG
CLASS_IDS_BY_MASK_KIND: dict[str, Sequence[int]] = {
    "labelTrainIds": range(len(CLASSES)),
    "labelIds": tuple(CLASSES_BY_ID),
}
LABELS_BY_ID = dict.fromkeys(range(MAX_ID + 1), IGNORE_INDEX) | {id: label for label, id in enumerate(CLASSES_BY_ID)}
MAX_CHECKED_IMAGES = 3  # whose masks show whether a split has classes


def detect(tree: FileTree) -> Evidence | None:
    """Whether there is `leftImg8bit` with `gtFine` or `gtCoarse`."""
    if not tree.find_folder("", (IMAGE_FOLDER,)) or not tree.find_folder("", MASK_FOLDERS):
        return None
    images = len(tree.images_below(IMAGE_FOLDER))
    return Evidence(images, f"{images:,} images in {IMAGE_FOLDER}, with {' or '.join(MASK_FOLDERS)}", strength=2)


@dataclass(frozen=True)
class CityscapesSource:
    """A data set in the layout of Cityscapes."""

    tree: FileTree

    def has_split(self, split: str) -> bool:
        """Whether the split has images and, for test, masks with classes."""
        splits = _available_splits(self.tree.root)
        return bool(splits) and is_split_available(splits, split)

    def load(self, split: str) -> SegmentationDataset:
        """Open one split. Raises: DataError."""
        return _load(self.tree, split)


def read(tree: FileTree) -> CityscapesSource:
    """Raises: nothing; the splits do."""
    return CityscapesSource(tree)


def _load(tree: FileTree, split: str) -> SegmentationDataset:
    root, splits = tree.root, _available_splits(tree.root)
    if not splits:
        raise DataError(
            f"{root / IMAGE_FOLDER} has no folder train; expected {IMAGE_FOLDER}/train/CITY/NAME_{IMAGE_FOLDER}.png."
        )
    source = resolve_split_source(root, splits, split)
    # One kind of mask for the whole data set: a value must mean the same in every split.
    images = [image for name in splits for image in _list_images(root, name)]
    kind = (
        "labelTrainIds" if all(_find_mask(root, name, path, "labelTrainIds") for name, path in images) else "labelIds"
    )
    masks = {name: (path, _find_mask(root, name, path, kind)) for name, path in _list_images(root, source.name)}
    selected = source.select(name for name, (_, mask) in masks.items() if mask)
    pairs = [Pair(name, path, mask) for name, (path, mask) in masks.items() if mask and name in selected]
    unmatched = [path for name, (path, mask) in masks.items() if not mask and source.contains(name)]
    if not pairs:
        folders = " or ".join(str(root / folder / source.name) for folder in MASK_FOLDERS)
        raise DataError(f"No image has a mask in {folders}; expected CITY/NAME_gtFine_{kind}.png.")
    classes, encoding, files = CLASSES, IDENTITY_ENCODING, tuple[Path, ...]()
    if find_class_file(tree):
        classes, custom, files = read_dataset_classes(tree)
        encoding = _ignore_other_ids(custom, len(classes))
    elif kind == "labelIds":
        encoding = MaskEncoding(tuple(LABELS_BY_ID.items()))
    return SegmentationDataset(
        pairs, classes, encoding, unmatched_images=tuple(unmatched), notes=tree.notes, files=files
    )


def _ignore_other_ids(custom: MaskEncoding, num_classes: int) -> MaskEncoding:
    """The encoding of a class file, where ids of Cityscapes that it does not name are ignored."""
    mapped = dict(custom.gray_to_label)
    used = {value for value, label in mapped.items() if label != INVALID_LABEL}
    used |= {label for label in range(num_classes) if label not in mapped}
    ignored = {id: IGNORE_INDEX for id in range(MAX_ID + 1) if id not in used}
    return MaskEncoding(tuple((mapped | ignored).items()), custom.color_to_label)


def _list_images(root: Path, split: str) -> list[tuple[str, Path]]:
    """(name, file) of each image; the name is `CITY/NAME`, sorted."""
    folder = root / IMAGE_FOLDER / split
    found = (path for path in folder.rglob(f"*_{IMAGE_FOLDER}.*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((path.relative_to(folder).as_posix().rsplit(f"_{IMAGE_FOLDER}", 1)[0], path) for path in found)


def _find_mask(root: Path, name: str, image: Path, kind: str) -> Path | None:
    split = image.relative_to(root / IMAGE_FOLDER).parts[0]
    folder = next((folder for folder in MASK_FOLDERS if (root / folder / split).is_dir()), MASK_FOLDERS[0])
    path = root / folder / split / f"{name}_{folder}_{kind}.png"
    return path if path.is_file() else None


def _available_splits(root: Path) -> list[str]:
    splits = [split for split in SPLITS if (root / IMAGE_FOLDER / split).is_dir()]
    return splits if "test" not in splits or _split_has_classes(root, "test") else splits[:-1]


def _split_has_classes(root: Path, split: str) -> bool:
    """Whether one of the first masks of a split has a class."""
    masks = [
        (path, kind)
        for name, image in _list_images(root, split)
        for kind in CLASS_IDS_BY_MASK_KIND
        if (path := _find_mask(root, name, image, kind))
    ]
    return any(
        _mask_has_class(path, CLASS_IDS_BY_MASK_KIND[kind])
        for path, kind in masks[: MAX_CHECKED_IMAGES * len(CLASS_IDS_BY_MASK_KIND)]
    )


def _mask_has_class(mask: Path, ids: Sequence[int]) -> bool:
    try:
        return bool(np.isin(read_mask(mask), ids).any())
    except MaskserveError:
        return True  # the lint reports it
