"""A folder that is a data set: its images are segmented, not its masks."""

import re
from collections.abc import Iterable
from pathlib import Path

from models.errors import MaskserveError

# Folders of masks that no format reads, such as VOC's instances.
MASK_FOLDERS = frozenset(
    {"masks", "mask", "labels", "label", "annotations", "segmentationclass", "segmentationobject", "gtfine", "gtcoarse"}
)


def select_images(root: Path, files: list[Path]) -> tuple[str, list[Path]]:
    """The format of a data set (`training.data.FORMATS`), and of its `files` those that are images.

    Images without a mask are kept too. For another folder the format is empty, and all files are returned.
    """
    from training.data import FORMATS
    from training.data.matching import MASK_WORDS
    from training.data.recognition import find_format
    from training.data.tree import list_tree

    try:
        recognition = find_format(list_tree(root), FORMATS)
        if recognition is None or not recognition.evidence.images:
            return "", files
        source = FORMATS[recognition.format].read(recognition.tree)
    except (MaskserveError, OSError):  # an incomplete data set
        return "", files
    entries = getattr(source, "entries", [])  # COCO's are only in its JSON, and its masks are no image files
    images = {entry.image for entry in entries}
    masks = {entry.mask for entry in entries if entry.mask} | {*getattr(source, "unmatched_masks", ())}
    if recognition.format == "same-folder" and not all(
        set(re.split(r"[_\-. ]", mask.stem.lower())) & set(MASK_WORDS) for mask in masks
    ):  # such as IMG_1.jpg and IMG_1_edit.jpg
        return "", files
    image_folders, mask_folders = _parents(root, images), _parents(root, masks)

    def is_image(file: Path) -> bool:
        if file in images or file in masks:
            return file in images
        above = _parents(root, [file])
        if above & (image_folders - mask_folders):
            return True
        is_mask_folder = any(folder.name.lower() in MASK_FOLDERS for folder in above)
        return not (is_mask_folder or above & (mask_folders - image_folders))

    selected = [file for file in files if is_image(file)]
    return (recognition.format, selected) if selected else ("", files)


def _parents(root: Path, files: Iterable[Path]) -> set[Path]:
    """The folders between the root, without it, and the files."""
    return {parent for file in files for parent in file.parents if root in parent.parents}
