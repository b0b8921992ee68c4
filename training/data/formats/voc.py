"""PASCAL VOC segmentation, labelme2voc, and CVAT's export "Segmentation mask 1.1". The folder, or one above it, has:

    JPEGImages/NAME.jpg    SegmentationClass/NAME.png    ImageSets/Segmentation/train.txt, val.txt: one name per line

Without a class file the classes are the 21 of VOC, and 255, the border of objects, is ignored. CVAT lists the classes in
`labelmap.txt`, in label order, `name:red,green,blue:parts:actions`; masks may have those colors. labelme2voc writes
`class_names.txt`, and older versions put the PNGs into `SegmentationClassPNG` and NPY files into `SegmentationClass`. A test list
without masks, such as that of VOC2012, gives no split. If no list is named after a split (CVAT's `default.txt`, `trainval.txt`), a
hash of the name assigns the splits, and without val a tenth of train is held out, as in `folder.py`.
"""

from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.class_file import classes_and_encoding, find_class_file, read_class_rows
from training.data.class_parsers import LABELMAP_FILE
from training.data.formats.folder import names_below
from training.data.listing import Entry, Evidence, Listing
from training.data.mask_decoding import MaskEncoding, pack_rgb
from training.data.matching import match_names
from training.data.split_lists import read_lines
from training.data.splits import SPLIT_ALIASES
from training.data.tree import CLASS_FILE, MASK_SUFFIXES, FileTree, join

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASSES = [ClassInfo(name=name, rgb=default_rgb(label)) for label, name in enumerate(CLASS_NAMES)]
BORDER_RGB = default_rgb(IGNORE_INDEX)  # the color of 255 in VOC's palette, (224, 224, 192)
IMAGE_FOLDER = "JPEGImages"
MASK_FOLDERS = ("SegmentationClassPNG", "SegmentationClass")  # the first one with images is read
OFFICIAL_PREFIX = "VOC"  # of the folders of the original data sets, whose classes are known


@dataclass(frozen=True)
class VocFolder:
    """The folders of one year, relative to the root."""

    folder: str
    masks: str
    other_years: int  # further years, which are not read

    @property
    def images(self) -> str:
        """The folder of the images."""
        return join(self.folder, IMAGE_FOLDER)


def detect(tree: FileTree) -> Evidence | None:
    """Whether there is `SegmentationClass` with images or lists, here, in `VOC2012` or in `VOCdevkit/VOC2012`."""
    voc = _find_folder(tree)
    if voc is None:
        return None
    images, masks = (names_below(tree, each, tree.files_below(each, MASK_SUFFIXES)) for each in (voc.images, voc.masks))
    pairs = len(match_names(list(images), list(masks)).mask_by_image)
    return Evidence(
        pairs, f"{pairs:,} of {len(images):,} images of {voc.images} have a mask in {voc.masks}", 0, strength=2
    )


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    voc = _find_folder(tree)
    if voc is None:
        raise DataError(f"{tree.root} is not a VOC data set; expected JPEGImages, SegmentationClass and ImageSets.")
    images = names_below(tree, voc.images, tree.images_below(voc.images))
    masks = names_below(tree, voc.masks, tree.files_below(voc.masks, MASK_SUFFIXES))
    if not images:
        missing = "has no images" if voc.images in tree.files else "is missing"
        raise DataError(f"The folder {tree.path(voc.images)} {missing}; put the images there.")
    mask_by_image = match_names(list(images), list(masks)).mask_by_image
    lists, all_lists = _lists_by_split(tree, voc, set(masks)), _lists(tree, voc)
    unsplit = [path for path in all_lists if SPLIT_ALIASES.get(Path(path).stem.lower()) is None]
    splits: dict[str, str] = {}
    # Read whole lists, so that a wrong line is reported for every split.
    for split, files in (lists or {"": unsplit}).items():
        for path in files:
            splits |= dict.fromkeys(_read_listed_names(tree, path, voc, images), split)
    if not lists and not unsplit:
        splits = dict.fromkeys(images, "")
    entries = [
        Entry(
            name, tree.path(images[name]), tree.path(masks[mask]) if (mask := mask_by_image.get(name)) else None, split
        )
        for name, split in sorted(splits.items())
    ]
    classes, encoding, class_files, notes = _read_classes(tree, voc)
    if voc.other_years:
        notes = (*notes, f"{tree.root} has {voc.other_years + 1} years; {Path(voc.folder).name} is used.")
    matched = {mask_by_image[name] for name in splits if name in mask_by_image}
    return Listing(
        tree.root,
        entries,
        classes,
        encoding,
        unmatched_masks=()
        if lists or unsplit
        else tuple(tree.path(masks[name]) for name in masks if name not in matched),
        notes=(*tree.notes, *notes),
        files=(*class_files, *map(tree.path, all_lists)),
    )


def _find_folder(tree: FileTree) -> VocFolder | None:
    """The last year of the VOC folders."""
    below = [path for parent in ("", "VOCdevkit") for path in tree.children(parent) if _name(path).startswith("VOC")]
    tops = [""] if any(tree.find_folder("", (name,)) for name in MASK_FOLDERS) else sorted(below, key=_name)
    found = []
    for folder in tops:
        masks = [path for name in MASK_FOLDERS if (path := tree.find_folder(folder, (name,))) is not None]
        if masks and (
            any(tree.find_folder(folder, (name,)) for name in (IMAGE_FOLDER, "ImageSets"))
            or tree.find_file(folder, (LABELMAP_FILE,))
        ):
            found.append((folder, next((path for path in masks if tree.files_below(path, MASK_SUFFIXES)), masks[0])))
    return VocFolder(*found[-1], len(found) - 1) if found else None


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _lists(tree: FileTree, voc: VocFolder) -> list[str]:
    """The lists in `ImageSets/Segmentation`, or else in `ImageSets`."""
    folders = (join(voc.folder, "ImageSets/Segmentation"), join(voc.folder, "ImageSets"))
    return next((lists for folder in folders if (lists := tree.files_in(folder, (".txt",)))), [])


def _lists_by_split(tree: FileTree, voc: VocFolder, masks: set[str]) -> dict[str, list[str]]:
    """The lists named after a split, if one of their images has a mask."""
    return {
        split: [path]
        for path in _lists(tree, voc)
        if (split := SPLIT_ALIASES.get(Path(path).stem.lower())) and not masks.isdisjoint(read_lines(tree.path(path)))
    }


def _read_listed_names(tree: FileTree, path: str, voc: VocFolder, images: dict[str, str]) -> list[str]:
    """The names in a list. Raises: DataError for a name without an image."""
    lines = read_lines(tree.path(path))
    missing = [name for name in lines if name not in images]
    if missing:
        raise DataError(
            f"{tree.path(path)} lists {len(missing):,} images that are not in {tree.path(voc.images)}, such as {missing[0]}; "
            "add them, or delete them from the list."
        )
    return lines


def _read_classes(
    tree: FileTree, voc: VocFolder
) -> tuple[list[ClassInfo], MaskEncoding, tuple[Path, ...], tuple[str, ...]]:
    """The classes, the encoding, the class file and notes."""
    file = tree.find_file(voc.folder, (CLASS_FILE, LABELMAP_FILE)) or find_class_file(tree, (voc.folder, ""))
    notes: tuple[str, ...] = ()
    if file is None:
        classes, encoding = CLASSES, MaskEncoding()
        if not _name(voc.folder or tree.root.as_posix()).startswith(OFFICIAL_PREFIX):
            notes = (
                f"{tree.path(voc.folder)} names no classes, so they are the 21 of PASCAL VOC. If they are others, "
                "name them in classes.csv, one per line, in the order of their labels.",
            )
    else:
        # The order of lines is the label, also in CVAT's file; `void` there is a class like the others.
        rows = read_class_rows(tree.path(file))
        if _name(file).lower() == LABELMAP_FILE:
            if not 2 <= len(rows) <= 255:
                raise DataError(f"{tree.path(file)} has {len(rows)} classes; expected 2 to 255, one per line.")
            classes = [ClassInfo(name=row.name, rgb=row.rgb or default_rgb(label)) for label, row in enumerate(rows)]
            encoding = MaskEncoding()
        else:
            classes, encoding = classes_and_encoding(rows, tree.path(file))
    label_by_color = {pack_rgb(BORDER_RGB): IGNORE_INDEX}
    label_by_color |= {pack_rgb(entry.rgb): label for label, entry in enumerate(classes)} | dict(
        encoding.color_to_label
    )
    return (
        classes,
        MaskEncoding(encoding.gray_to_label, tuple(label_by_color.items())),
        (tree.path(file),) if file else (),
        notes,
    )
