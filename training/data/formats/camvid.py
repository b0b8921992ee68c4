"""CamVid and the layouts named after it: a folder of images beside a folder of masks, by split.

    train/NAME.png      trainannot/NAME.png       the SegNet tutorial: 11 classes, and 11 is unlabeled
    default/NAME.png    defaultannot/NAME.png     CVAT's "CamVid 1.0", with label_colors.txt
    train/NAME.png      train_labels/NAME_L.png   Kaggle's CamVid, in the colors of class_dict.csv

Eleven classes, 0 to 10 (Brostow et al. 2009; Badrinarayanan et al. 2017), unless the folder has a class file.
"""

from models.errors import DataError
from models.spec import IGNORE_INDEX, ClassInfo
from training.data.class_file import find_class_file, read_dataset_classes
from training.data.formats.folder import names_below, pair_files
from training.data.listing import Entry, Evidence, Listing
from training.data.mask_decoding import MaskEncoding
from training.data.matching import match_names
from training.data.splits import split_of_folder
from training.data.tree import MASK_SUFFIXES, FileTree

UNLABELED = 11

CLASSES = [
    ClassInfo(name="sky", rgb=(128, 128, 128)),
    ClassInfo(name="building", rgb=(128, 0, 0)),
    ClassInfo(name="pole", rgb=(192, 192, 128)),
    ClassInfo(name="road", rgb=(128, 64, 128)),
    ClassInfo(name="pavement", rgb=(60, 40, 222)),
    ClassInfo(name="tree", rgb=(128, 128, 0)),
    ClassInfo(name="sign", rgb=(192, 128, 128)),
    ClassInfo(name="fence", rgb=(64, 64, 128)),
    ClassInfo(name="car", rgb=(64, 0, 128)),
    ClassInfo(name="pedestrian", rgb=(64, 64, 0)),
    ClassInfo(name="bicyclist", rgb=(0, 128, 192)),
]
SEGNET_ENDING = "annot"
MASK_ENDINGS = (
    SEGNET_ENDING,
    "_annot",
    "_labels",
    "_label",
    "_masks",
    "_mask",
    "-masks",
    "-labels",
    "_gt",
    "masks",
    "labels",
)


def detect(tree: FileTree) -> Evidence | None:
    """Whether there are folders of images and their masks, such as train and trainannot."""
    found = _folders(tree)
    if not found:
        return None
    images = pairs = 0
    for folder, masks in found.items():
        names = [list(names_below(tree, each, tree.files_below(each, MASK_SUFFIXES))) for each in (folder, masks)]
        images += len(names[0])
        pairs += len(match_names(*names).mask_by_image)
    listed = ", ".join(f"{folder} with {masks}" for folder, masks in found.items())
    segnet = {"train", "val"} <= set(found) and found["train"].endswith(SEGNET_ENDING)
    marker = segnet or tree.find_file("", ("class_dict.csv", "label_colors.txt")) is not None
    return Evidence(pairs, f"{pairs:,} of {images:,} images have a mask: {listed}", images - pairs, 2 * marker)


def read(tree: FileTree) -> Listing:
    """Raises: DataError if the folders are missing or empty."""
    found = _folders(tree)
    if not found:
        raise DataError(f"{tree.root} has no folder of images beside one of masks; expected train and trainannot.")
    entries: list[Entry] = []
    unmatched: list[str] = []
    for folder, masks in found.items():
        images = names_below(tree, folder, tree.images_below(folder))
        if not images:
            raise DataError(f"{tree.path(folder)} has no images; expected files such as NAME.png.")
        more, without_image, _ = pair_files(
            tree, images, names_below(tree, masks, tree.files_below(masks, MASK_SUFFIXES)), split_of_folder(folder)
        )
        entries += more
        unmatched += without_image
    classes, encoding, files = read_dataset_classes(tree)
    if find_class_file(tree) is None and all(masks.endswith(SEGNET_ENDING) for masks in found.values()):
        classes, encoding = CLASSES, MaskEncoding(((UNLABELED, IGNORE_INDEX),))
    return Listing(
        tree.root,
        entries,
        classes,
        encoding,
        unmatched_masks=tuple(map(tree.path, unmatched)),
        notes=tree.notes,
        files=files,
    )


def _folders(tree: FileTree) -> dict[str, str]:
    """Image folder -> mask folder."""
    found = {}
    for folder in tree.children(""):
        if not tree.image_counts.get(folder):
            continue
        masks = tree.find_folder("", [f"{folder.lower()}{ending}" for ending in MASK_ENDINGS])
        if masks is not None and masks != folder:
            found[folder] = masks
    if any(split_of_folder(folder) for folder in found):
        found = {folder: masks for folder, masks in found.items() if split_of_folder(folder)}
        # Images of a split without masks are reported.
    return found
