"""PASCAL VOC segmentation, and CVAT's export "Segmentation mask 1.1". The folder, or one above it, has:

    JPEGImages/NAME.jpg    SegmentationClass/NAME.png    ImageSets/Segmentation/train.txt, val.txt: one name per line

Without `labelmap.txt` the classes are the 21 of VOC, and 255, the border of objects, is ignored. CVAT lists the classes there in
label order, one per line: `name:red,green,blue:parts:actions`; masks may have those colors. A test list without masks, such as
that of VOC2012, gives no split. If no list is named after a split (CVAT's `default.txt`, `trainval.txt`), a hash of the name
assigns the splits, and without val a tenth of train is held out, as in `folder.py`.
"""

from pathlib import Path

import numpy as np

from models.errors import DataError
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.dataset import SPLITS, Pair, SegmentationDataset, match_files
from training.data.mask_decoding import MaskEncoding, pack_rgb
from training.data.splits import SPLIT_ALIASES, is_split_available, resolve_split_source

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASSES = [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(CLASS_NAMES)]
BORDER_RGB = default_rgb(IGNORE_INDEX)  # the color of 255 in VOC's palette, (224, 224, 192)


def detect(root: Path) -> bool:
    """Whether there is `SegmentationClass` with images or lists, here, in `VOC2012` or in `VOCdevkit/VOC2012`."""
    return bool(_voc_folders(root))


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a list with masks, or the hash assigns it."""
    folders = _voc_folders(root)
    lists = _lists_by_split(folders[-1]) if folders else {}
    return bool(folders) and is_split_available(lists, split, lambda: load(root, split))


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError."""
    folders = _voc_folders(root)
    if not folders:
        raise DataError(f"{root} is not a VOC data set; expected JPEGImages, SegmentationClass and ImageSets.")
    folder, lists = folders[-1], _lists_by_split(folders[-1])
    source = resolve_split_source(root, lists, split)
    classes, encoding = _read_classes(folder)
    files = match_files(folder / "JPEGImages", folder / "SegmentationClass")
    by_name: dict[str, Pair | Path] = {pair.name: pair for pair in files.pairs}
    by_name |= {
        path.relative_to(folder / "JPEGImages").with_suffix("").as_posix(): path for path in files.unmatched_images
    }
    # Read whole lists, so that a wrong line is reported for every split.
    names = _read_listed_names(lists[source.name] if source.name else _lists_without_split(folder), by_name, folder)
    # Images without a mask do not count for the size of the data set, but are reported in the split of their hash.
    selected = source.select(name for name in names if isinstance(by_name[name], Pair))
    entries = [
        by_name[name]
        for name in names
        if name in selected or (not isinstance(by_name[name], Pair) and source.contains(name))
    ]
    pairs = [entry for entry in entries if isinstance(entry, Pair)]
    if not pairs:
        raise DataError(f"{folder}: the split {split} has no image with a mask; add images, or list them.")
    notes = [f"{root} has {len(folders)} years; {folder.name} is used."] if len(folders) > 1 else []
    return SegmentationDataset(
        pairs,
        classes,
        encoding,
        unmatched_images=tuple(path for path in entries if isinstance(path, Path)),
        notes=tuple(notes),
    )


def _voc_folders(root: Path) -> list[Path]:
    """The VOC folders, by year."""
    below = sorted(path for parent in (root, root / "VOCdevkit") for path in parent.glob("VOC*") if path.is_dir())
    return [
        path
        for path in ([root] if (root / "SegmentationClass").is_dir() else sorted(below, key=lambda path: path.name))
        if (path / "SegmentationClass").is_dir()
        and any((path / name).exists() for name in ("JPEGImages", "ImageSets", "labelmap.txt"))
    ]


def _lists_by_split(folder: Path) -> dict[str, list[Path]]:
    """The lists named after a split, if one of their images has a mask."""
    found = {
        split: [path]
        for path in sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
        if (split := SPLIT_ALIASES.get(path.stem.lower())) and _has_masks(path, folder)
    }
    return {split: found[split] for split in SPLITS if split in found}


def _lists_without_split(folder: Path) -> list[Path]:
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    return [path for path in lists if path.stem.lower() not in SPLIT_ALIASES]


def _has_masks(file: Path, folder: Path) -> bool:
    return any((folder / "SegmentationClass" / f"{name}.png").is_file() for name in _read_lines(file))


def _read_listed_names(lists: list[Path], by_name: dict[str, Pair | Path], folder: Path) -> list[str]:
    """The names in the lists, sorted; all images without a list. Raises: DataError for a name without an image."""
    if not lists:
        return sorted(by_name)
    names: set[str] = set()
    for file in lists:
        lines = _read_lines(file)
        missing = [name for name in lines if name not in by_name]
        if missing:
            raise DataError(
                f"{file} lists {len(missing):,} images that are not in {folder / 'JPEGImages'}, such as {missing[0]}; "
                "add them, or delete them from the list."
            )
        names.update(lines)
    return sorted(names)


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error}); save it as UTF-8.") from error
    # Datumaro, CVAT's exporter, quotes names with spaces.
    return [name for line in text.splitlines() if (name := line.strip().strip('"'))]


def _read_classes(folder: Path) -> tuple[list[ClassInfo], MaskEncoding]:
    file = folder / "labelmap.txt"
    classes = _parse_labelmap(file) if file.is_file() else CLASSES
    label_by_color = {pack_rgb(BORDER_RGB): IGNORE_INDEX}
    label_by_color |= {pack_rgb(entry.rgb): label for label, entry in enumerate(classes)}
    return classes, MaskEncoding(color_to_label=tuple(label_by_color.items()))


def _parse_labelmap(file: Path) -> list[ClassInfo]:
    """Raises: DataError for an invalid line, or two classes with the same name or color."""
    classes: list[ClassInfo] = []
    for line in _read_lines(file):
        name, *fields = (field.strip() for field in line.split(":"))
        if line.startswith("#"):
            continue
        try:
            color = (
                [np.uint8(int(channel)).item() for channel in fields[0].split(",")] if fields and fields[0] else None
            )
            red, green, blue = color or default_rgb(len(classes))
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{file}: invalid class {line!r}; expected `name:red,green,blue::` with 0 to 255."
            ) from error
        entry = ClassInfo(name=name, rgb=(red, green, blue))
        twin = next((other.name for other in classes if other.name == name or other.rgb == entry.rgb), None)
        if twin:
            raise DataError(f"{file}: {name!r} and {twin!r} have the same name or color; change or delete one.")
        classes.append(entry)
    if not 2 <= len(classes) <= 255:
        raise DataError(f"{file} has {len(classes)} classes; expected 2 to 255, one per line.")
    return classes
