"""PASCAL VOC's segmentation, and what CVAT exports as "Segmentation mask 1.1". The folder, or one above it, holds:

    JPEGImages/NAME.jpg    SegmentationClass/NAME.png    ImageSets/Segmentation/train.txt, val.txt: a name a line

Without `labelmap.txt` there are VOC's 21 classes, and 255, the border of things, is void. CVAT writes the classes there, a
line each, in the order of their labels: `name:red,green,blue:parts:actions`; masks may be in those colours. A test list
whose masks are kept back, as VOC2012's are, makes no split. Where no list names a split (CVAT's `default.txt`, `trainval.txt`)
the hash of the name does, and without val a tenth of train is held out, as in `folder.py`.
"""

from pathlib import Path

import numpy as np

from models.errors import DataError
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.dataset import SPLITS, Pair, SegmentationDataset, match_images
from training.data.mask_decoding import MaskEncoding
from training.data.splits import SPLIT_ALIASES, is_split_available, resolve_split_source

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASSES = [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(CLASS_NAMES)]
BORDER_RGB = default_rgb(IGNORE_INDEX)  # what 255 looks like in VOC's palette, (224, 224, 192)


def recognises(root: Path) -> bool:
    """Whether `SegmentationClass` lies beside images or lists, here, in `VOC2012` or in `VOCdevkit/VOC2012`."""
    return bool(_voc_folders(root))


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a list, and masks; or is made by the hash."""
    bases = _voc_folders(root)
    lists = _lists_by_split(bases[-1]) if bases else {}
    return bool(bases) and is_split_available(lists, split, lambda: load(root, split))


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError."""
    bases = _voc_folders(root)
    if not bases:
        raise DataError(f"{root} holds no VOC: wanted are the folders JPEGImages, SegmentationClass and ImageSets.")
    base, lists = bases[-1], _lists_by_split(bases[-1])
    chosen = resolve_split_source(root, lists, split)
    classes, meaning = _read_classes(base)
    pairs, unpaired = match_images(base / "JPEGImages", base / "SegmentationClass")
    by_name: dict[str, Pair | Path] = {pair.name: pair for pair in pairs}
    by_name |= {path.relative_to(base / "JPEGImages").with_suffix("").as_posix(): path for path in unpaired}
    # A list is asked whole, so that a wrong line is told whichever split is opened.
    named = _read_listed_names(lists[chosen.name] if chosen.name else _lists_without_split(base), by_name, base)
    # Images without mask have no say in how few there are, but are told with the split of their hash.
    mine = chosen.select(name for name in named if isinstance(by_name[name], Pair))
    entries = [
        by_name[name]
        for name in named
        if name in mine or (not isinstance(by_name[name], Pair) and chosen.contains(name))
    ]
    kept = [entry for entry in entries if isinstance(entry, Pair)]
    if not kept:
        raise DataError(f"{base}: the split {split} holds no image with a mask; add images or name them in a list.")
    notes = [f"{root} holds {len(bases)} years; {base.name} was taken."] if len(bases) > 1 else []
    return SegmentationDataset(
        kept,
        classes,
        meaning,
        unmatched_images=tuple(path for path in entries if isinstance(path, Path)),
        notes=tuple(notes),
    )


def _voc_folders(root: Path) -> list[Path]:
    """The folders that hold a VOC, by year."""
    below = sorted(path for folder in (root, root / "VOCdevkit") for path in folder.glob("VOC*") if path.is_dir())
    return [
        path
        for path in ([root] if (root / "SegmentationClass").is_dir() else sorted(below, key=lambda path: path.name))
        if (path / "SegmentationClass").is_dir()
        and any((path / name).exists() for name in ("JPEGImages", "ImageSets", "labelmap.txt"))
    ]


def _lists_by_split(base: Path) -> dict[str, list[Path]]:
    """The lists that name a split, and have a mask at all."""
    found = {
        split: [path]
        for path in sorted((base / "ImageSets" / "Segmentation").glob("*.txt"))
        if (split := SPLIT_ALIASES.get(path.stem.lower())) and _has_masks(path, base)
    }
    return {split: found[split] for split in SPLITS if split in found}


def _lists_without_split(base: Path) -> list[Path]:
    """The lists that name no split."""
    folder = base / "ImageSets" / "Segmentation"
    return [path for path in sorted(folder.glob("*.txt")) if path.stem.lower() not in SPLIT_ALIASES]


def _has_masks(file: Path, base: Path) -> bool:
    return any((base / "SegmentationClass" / f"{name}.png").is_file() for name in _read_lines(file))


def _read_listed_names(lists: list[Path], there: dict[str, Pair | Path], base: Path) -> list[str]:
    """The names of the lists, sorted, or of all images where there is no list. Raises: DataError for one without image."""
    if not lists:
        return sorted(there)
    names: set[str] = set()
    for file in lists:
        lines = _read_lines(file)
        missing = [name for name in lines if name not in there]
        if missing:
            raise DataError(
                f"{file} names {len(missing):,} images that are not in {base / 'JPEGImages'}, such as {missing[0]}; "
                "add them, or take them from the list."
            )
        names.update(lines)
    return sorted(names)


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no list of names in UTF-8 ({error}); wanted is a name a line.") from error
    # Datumaro, CVAT's exporter, puts names with a blank into quotes.
    return [name for line in text.splitlines() if (name := line.strip().strip('"'))]


def _read_classes(base: Path) -> tuple[list[ClassInfo], MaskEncoding]:
    file = base / "labelmap.txt"
    classes = _parse_labelmap(file) if file.is_file() else CLASSES
    colours = {
        _pack_rgb(BORDER_RGB): IGNORE_INDEX,
        **{_pack_rgb(entry.rgb): label for label, entry in enumerate(classes)},
    }
    return classes, MaskEncoding(color_to_label=tuple(colours.items()))


def _parse_labelmap(file: Path) -> list[ClassInfo]:
    """Raises: DataError for a line that is no class, and for two that cannot be told apart."""
    classes: list[ClassInfo] = []
    for line in _read_lines(file):
        name, *fields = (field.strip() for field in line.split(":"))
        if line.startswith("#"):
            continue
        try:
            colour = (
                [np.uint8(int(channel)).item() for channel in fields[0].split(",")] if fields and fields[0] else None
            )
            red, green, blue = colour or default_rgb(len(classes))
        except (ValueError, OverflowError) as error:
            raise DataError(f"{file}: {line!r} is no class; wanted is `name:red,green,blue::` with 0..255.") from error
        entry = ClassInfo(name=name, rgb=(red, green, blue))
        twin = next((other.name for other in classes if other.name == name or other.rgb == entry.rgb), None)
        if twin:
            raise DataError(
                f"{file}: {name!r} and {twin!r} have one name or colour; give each its own, or take one away."
            )
        classes.append(entry)
    if not 2 <= len(classes) <= 255:
        raise DataError(f"{file} names {len(classes)} classes; wanted are 2 to 255, a line each.")
    return classes


def _pack_rgb(rgb: tuple[int, int, int]) -> int:
    red, green, blue = rgb
    return red << 16 | green << 8 | blue
