"""Volumes and label volumes of the same name: in two folders, or side by side with an ending such as `_seg`.

    images/case1.nii.gz    labels/case1.nii.gz       also `.nii`, `.nrrd`, and with the endings _image, _mask, _label, _seg ...
    images/case1/*.png     labels/case1/*.png        slices: folders of images, in the order of their names; only with
                                                     format=volume-folder, because images in folders look the same
    case1.nii.gz           case1_seg.nii.gz

`images/train` and `labels/train`, or `train/images` and `train/labels`, give the splits; so does a table `splits.csv`
(record,split,patient). Classes are named by a class file, or found in the labels.
"""

from models.errors import DataError, MaskserveError
from models.imaging.decode import IMAGE_SUFFIXES
from models.readers import VOLUME_SUFFIXES
from models.spec import IGNORE_INDEX, ClassInfo, default_rgb
from training.data.class_file import read_dataset_classes
from training.data.dataset import Pair
from training.data.listing import Entry, Evidence, Listing, check_unique
from training.data.mask_decoding import IDENTITY_ENCODING
from training.data.matching import match_names, strip_mask_ending
from training.data.splits import split_of_path
from training.data.tree import FileTree, join, volume_name
from training.data.volume_splits import assign_cases
from training.data.volumes import VolumeMaskReader

IMAGE_FOLDERS = ("images", "image", "imgs", "volumes", "scans", "raw")
MASK_FOLDERS = ("labels", "label", "masks", "mask", "segmentations", "annotations", "gt", "groundtruth")
MIN_SLICES = 2


def detect(tree: FileTree) -> Evidence | None:
    """Whether volumes have label volumes of the same name."""
    entries = _entries(tree, slices=False)
    paired = [entry for entry in entries if entry.mask]
    if not paired:
        return None
    summary = f"{len(paired):,} volumes with a label volume each, such as {paired[0].image.name}"
    return Evidence(len(paired), summary, len(entries) - len(paired), strength=1)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    entries = _entries(tree)
    check_unique(entries)
    classes, encoding, class_files = read_dataset_classes(tree)
    entries, files = assign_cases(tree, entries)
    classes = classes or infer_classes(entries)
    return Listing(
        tree.root, entries, classes, encoding or IDENTITY_ENCODING, mask_reader=VolumeMaskReader(),
        notes=tree.notes, files=(*class_files, *files), axes="DHW",
    )  # fmt: skip


def infer_classes(entries: list[Entry]) -> list[ClassInfo]:
    """`class0`, `class1` ... up to the largest value in the label volumes; files that cannot be read are the lint's business.

    Raises: DataError for more values than there can be classes: they are no labels.
    """
    highest, reader = 1, VolumeMaskReader()
    for entry in entries:
        if entry.mask:
            try:
                values = reader(Pair(entry.name, entry.image, entry.mask)).array
            except MaskserveError:
                continue
            highest = max(highest, int(values[values != IGNORE_INDEX].max(initial=0)))
    if highest >= IGNORE_INDEX:
        raise DataError(
            f"The label volumes have values up to {highest:,}; expected labels 0 to 254, or 255 for ignored voxels."
        )
    return [ClassInfo(name=f"class{label}", rgb=default_rgb(label)) for label in range(highest + 1)]


def _entries(tree: FileTree, slices: bool = True) -> list[Entry]:
    found: list[Entry] = []
    for images, masks in _folder_pairs(tree):
        image_files, mask_files = _volumes(tree, images, slices), _volumes(tree, masks, slices)
        if not image_files or not mask_files:
            continue
        try:
            match = match_names(list(image_files), list(mask_files)).mask_by_image
        except DataError as error:
            raise DataError(f"{tree.root}: {error}") from error
        for name, path in image_files.items():
            mask = tree.path(mask_files[match[name]]) if name in match else None
            found.append(Entry(name, tree.path(path), mask, split_of_path(join(images, "x")) or split_of_path(path)))
    return found or _same_folder(tree)


def _folder_pairs(tree: FileTree) -> list[tuple[str, str]]:
    """Folders of images and of labels, at the top and in the folders of splits."""
    pairs = []
    for folder in ["", *tree.children("")]:
        images, masks = tree.find_folder(folder, IMAGE_FOLDERS), tree.find_folder(folder, MASK_FOLDERS)
        if images and masks:
            pairs.append((images, masks))
    return pairs


def _volumes(tree: FileTree, folder: str, slices: bool) -> dict[str, str]:
    """The volumes below a folder by name: files, or with `slices` folders of images."""
    files = tree.files_below(folder, VOLUME_SUFFIXES)
    if files or not slices:
        return {volume_name(path, folder): path for path in files}
    folders = [child for child in tree.folders_below(folder) if child != folder]
    used = [child for child in folders if len(tree.files_in(child, IMAGE_SUFFIXES)) >= MIN_SLICES]
    # Folders of slices are for volumes only if every one of them is the name of a case, and not of a split.
    return {child[len(folder) + 1 :]: child for child in used if not split_of_path(join(child, "x"))}


def _same_folder(tree: FileTree) -> list[Entry]:
    """Volumes and labels side by side: `case1.nii.gz` with `case1_seg.nii.gz`."""
    found = []
    for folder in tree.folders_below(""):
        names = {volume_name(path, ""): path for path in tree.files_in(folder, VOLUME_SUFFIXES)}
        labels = {
            strip_mask_ending(name): path for name, path in names.items() if strip_mask_ending(name) != name.lower()
        }
        for name, path in names.items():
            if path not in labels.values():
                mask = labels.get(name.lower()) or labels.get(_without_image_ending(name))
                found.append(Entry(name, tree.path(path), tree.path(mask) if mask else None, split_of_path(path)))
    return found if any(entry.mask for entry in found) else []


def _without_image_ending(name: str) -> str:
    """`case1_image` as `case1`."""
    folded = name.lower()
    return next(
        (folded.removesuffix(end) for end in ("_image", "_img", "_volume", "_ct", "_mr") if folded.endswith(end)),
        folded,
    )
