"""Finds the folders of images and of their masks by their names: `images` with `masks`, `train_img` with `train_lab`."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from models.errors import DataError
from training.data.splits import split_from_name, split_of_folder
from training.data.tree import MASK_SUFFIXES, FileTree, parent_of

IMAGE_FOLDERS = (
    "images", "imgs", "image", "img", "img_dir", "jpegimages", "data", "photos", "pictures", "rgb", "inputs", "original",
    "original_images", "imagesTr",
)  # fmt: skip
MASK_FOLDERS = (
    "masks", "labels", "annotations", "mask", "label", "ann_dir", "annotation", "annot", "groundtruth", "ground_truth", "gt",
    "1st_manual", "manual", "segmentations", "segmentation", "segmentationclass", "segmentationclasspng", "labels_class", "targets",
    "trimaps", "mask_images", "label_images_semantic", "labelsTr",
)  # fmt: skip
# Words in the names of other folders: `images_prepped_train`, `ISIC2018_Task1_Training_GroundTruth`.
IMAGE_WORDS = frozenset(
    {"images", "image", "imgs", "img", "photos", "pictures", "rgb", "inputs", "input", "original", "frames"}
)
MASK_WORDS = frozenset(
    {"masks", "mask", "labels", "label", "lab", "annotations", "annotation", "annot", "ann", "anno", "anns", "gt", "gts",
     "groundtruth", "segmentations", "segmentation", "semantic", "targets", "trimaps"}
)  # fmt: skip
IMAGES, MASKS = "images", "masks"  # roles of folders
NAME_PART = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass
class FolderPair:
    """An image folder and the folders that may hold its masks."""

    split: str
    images: str
    masks: list[str]
    prefix: str = ""  # of the names of its images, where a split has several folders


def find_folder_pairs(tree: FileTree) -> list[FolderPair]:
    """The pairs of folders. Raises: DataError if two claim one split."""
    found: dict[str, FolderPair] = {}
    images, masks = image_folder(tree, ""), mask_folders(tree, "")
    inside = [child for child in tree.children(images) if split_of(child)] if images is not None and masks else []
    for child in inside:
        _claim(tree, found, FolderPair(split_of(child), child, [_same_split(tree, folder, child) for folder in masks]))
    for child, split in _split_folders(tree).items():
        below = image_folder(tree, child) if split else None
        if below is not None and (split not in found or found[split].images not in inside):
            _claim(tree, found, FolderPair(split, below, mask_folders(tree, child)))
    if any(pair.masks for pair in found.values()):
        return list(found.values())
    if images is not None and masks:
        return [FolderPair("", images, masks)]
    return _pairs_by_name(tree) or _nested_pairs(tree)


def _split_folders(tree: FileTree) -> dict[str, str]:
    """The folders at the top that are named after splits, also loosely, if they are the only ones of a split: `train_val`."""
    found = {child: split for child in tree.children("") if (split := split_of(child))}
    loose = {child: split_from_name(child) or "" for child in tree.children("") if child not in found}
    counts = Counter([*found.values(), *loose.values()])
    return found | {child: split for child, split in loose.items() if split and counts[split] == 1}


def _pairs_by_name(tree: FileTree) -> list[FolderPair]:
    """Folders whose names hold split and role: `images_prepped_train` with `annotations_prepped_train`."""
    by_role: dict[tuple[str, str], list[str]] = defaultdict(list)
    for child in tree.children(""):
        by_role[_role_of(child), split_from_name(child) or ""].append(child)
    pairs = [
        FolderPair(split, folders[0], masks)
        for (role, split), folders in by_role.items()
        if role == IMAGES and len(folders) == 1 and (masks := by_role.get((MASKS, split)))
    ]
    return [pair for pair in pairs if pair.split] or pairs


def _nested_pairs(tree: FileTree) -> list[FolderPair]:
    """Folders of images beside folders of masks anywhere below folders of splits: `Train/Rural/images`."""
    pairs = []
    for folder in tree.files:
        images = image_folder(tree, folder) if folder else None
        masks = mask_folders(tree, folder) if images is not None else []
        if images is not None and masks:
            pairs.append(FolderPair(_split_in(folder), images, masks, folder))
    return pairs if pairs and all(pair.split for pair in pairs) else []


def _split_in(folder: str) -> str:
    """The split in the name of a folder or of one around it; "" for none."""
    return next((split for part in folder.split("/") if (split := split_from_name(part))), "")


def _role_of(folder: str) -> str:
    """IMAGES or MASKS by the words in the name of a folder; "" for neither."""
    name = _name(folder)
    words = {part.lower() for part in (*NAME_PART.findall(name), *re.findall("[A-Za-z]+", name))}
    if words >= {"ground", "truth"}:
        return MASKS
    return MASKS if words & MASK_WORDS else IMAGES if words & IMAGE_WORDS else ""


def _claim(tree: FileTree, found: dict[str, FolderPair], pair: FolderPair) -> None:
    other = found.setdefault(pair.split, pair)
    if other is not pair:
        one, two = (_split_folder(each.images) for each in (other, pair))
        raise DataError(
            f"{tree.path(one)} and {tree.path(two)} are both for the split {pair.split}; delete or rename one."
        )


def _split_folder(images: str) -> str:
    return images if split_of(images) else parent_of(images)


def split_of(folder: str) -> str:
    """The split that a folder is named after; "" for none."""
    return split_of_folder(_name(folder))


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def _same_split(tree: FileTree, masks: str, images: str) -> str:
    """The subfolder of `masks` for the split of `images`; `masks` itself if its masks are in no split."""
    name = images.rsplit("/", 1)[-1]
    same = [child for child in tree.children(masks) if split_of(child) == split_of(images)]
    return tree.find_folder(masks, (name,)) or (same[0] if same else masks)


def _is_of_other_split(path: str, folder: str) -> bool:
    """Whether the name of a subfolder has a split that its folder is not of; `train/train-org-img` is of train."""
    split = split_from_name(_name(path))
    return split is not None and split != split_of(folder)


def image_folder(tree: FileTree, folder: str) -> str | None:
    """The folder of images in a folder; None for none."""
    found = tree.find_folder(folder, IMAGE_FOLDERS)
    # An `images` that holds nothing gives a better message than the next candidate, so the first is taken if none has images.
    candidates = [path for name in IMAGE_FOLDERS if (path := tree.find_folder(folder, (name,)))]
    candidates += [
        path for path in tree.children(folder) if _role_of(path) == IMAGES and not _is_of_other_split(path, folder)
    ]
    best = inner = next((path for path in candidates if tree.images_below(path)), found)
    while inner and not tree.files[inner] and len(children := tree.children(inner)) == 1:
        inner = children[0]  # `images/10k/train`
        if any(map(split_of, tree.children(inner))):
            return inner
    return best


def mask_folders(tree: FileTree, folder: str) -> list[str]:
    """The folders that may hold masks, those with masks first."""
    found = [path for name in MASK_FOLDERS if (path := tree.find_folder(folder, (name,)))]
    others = [
        path for path in tree.children(folder) if _role_of(path) == MASKS and not _is_of_other_split(path, folder)
    ]
    deeper = [path for child in tree.children(folder) for path in tree.children(child) if _role_of(path) == MASKS]
    for candidates in (found, others, deeper if folder else []):  # `training/v1.2/labels`
        if with_masks := [path for path in candidates if tree.files_below(path, MASK_SUFFIXES)]:
            return with_masks
    return found[:1]
