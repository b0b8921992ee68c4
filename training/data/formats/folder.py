"""A folder of images and masks, paired by name. One of:

    images/NAME.jpg          masks/NAME.png            split by a hash of the name: 80% train, 10% val, 10% test
    images/train/NAME.jpg    masks/train/NAME.png      and val, test
    train/images/NAME.jpg    train/masks/NAME.png      and val, test

The folders may have other usual names (`IMAGE_FOLDERS`, `MASK_FOLDERS`, `SPLIT_ALIASES`), in any case. If there is a `train`
but no `val`, the same hash holds out a tenth of train. A mask has one label per pixel, 0 to 254, with 255 ignored; or only 0 and
255; or the class colors. `classes.csv` names the classes (`class_file.py`).
"""

from pathlib import Path

from models.errors import DataError
from training.data.class_file import read_dataset_classes
from training.data.dataset import SPLITS, Pair, SegmentationDataset, contains_image, match_files
from training.data.splits import SPLIT_ALIASES, SplitSource, assign_splits, resolve_split_source

IMAGE_FOLDERS = ("images", "imgs", "image", "img")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "label")


def detect(root: Path) -> bool:
    """Whether there is `images` with `masks`, at the top or in the folder of train.

    Other formats (YOLO, COCO) also have `labels` and `annotations`, so these must contain an image.
    """
    folders = (root, *(path for path in _subfolders(root) if SPLIT_ALIASES.get(path.name.lower()) == "train"))
    found = ((_find_folder(folder, IMAGE_FOLDERS), _find_folder(folder, MASK_FOLDERS)) for folder in folders)
    return any(
        images and masks and (masks.name.lower() == MASK_FOLDERS[0] or contains_image(masks)) for images, masks in found
    )


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a folder, or the hash assigns it an image."""
    folders = _split_folders(root)
    if not folders:
        pairs = match_files(*_image_and_mask_folders(root)).pairs
        return split in assign_splits(pair.name for pair in pairs).values()
    return split in folders or (split == "val" and "train" in folders and len(match_files(*folders["train"]).pairs) > 1)


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError if it is empty."""
    folders = _split_folders(root)
    source = resolve_split_source(root, folders, split) if folders else SplitSource("", frozenset({split}))
    images, masks = folders[source.name] if folders else _image_and_mask_folders(root)
    files = match_files(images, masks)
    if not files.pairs and files.unmatched_images and files.unmatched_masks:
        raise DataError(
            f"{root}: none of {len(files.unmatched_images):,} images has a mask of the same name; found for example "
            f"{files.unmatched_images[0]} and {files.unmatched_masks[0]}. Give image and mask the same name."
        )
    selected = source.select(pair.name for pair in files.pairs)
    pairs = [pair for pair in files.pairs if pair.name in selected]
    check_not_empty(root, split, pairs, len(files.pairs))
    unmatched = tuple(
        path for path in files.unmatched_images if source.contains(path.relative_to(images).with_suffix("").as_posix())
    )
    return SegmentationDataset(
        pairs, *read_dataset_classes(root), unmatched_images=unmatched, unmatched_masks=files.unmatched_masks
    )


def check_not_empty(root: Path, split: str, pairs: list[Pair], total: int) -> None:
    """Check that a split has a pair, out of the `total` pairs that it was selected from. Raises: DataError."""
    if total == 1 and not pairs:
        raise DataError(f"{root} has one image with a mask; expected at least two, for training and validation.")
    if not pairs:
        raise DataError(f"{root}: the split {split} has no image with a mask; add images, or create split folders.")


def _image_and_mask_folders(folder: Path) -> tuple[Path, Path]:
    """The two folders; missing ones under their first name, so that `match_files` reports them."""
    return (
        _find_folder(folder, IMAGE_FOLDERS) or folder / IMAGE_FOLDERS[0],
        _find_folder(folder, MASK_FOLDERS) or folder / MASK_FOLDERS[0],
    )


def _split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The image folder and the mask folder of each split on disk. Raises: DataError if two claim one split."""
    images, masks = _image_and_mask_folders(root)
    found: dict[str, tuple[Path, Path]] = {}
    for folder in (*_subfolders(images), *_subfolders(root)):
        split = SPLIT_ALIASES.get(folder.name.lower())
        inside = folder.parent == images  # images/train, in contrast to train/images
        if split is None or not (inside or _find_folder(folder, IMAGE_FOLDERS)):
            continue
        if split in found and (found[split][0].parent == images) == inside:
            raise DataError(f"{found[split][0]} and {folder} are both for the split {split}; delete or rename one.")
        if split not in found:
            found[split] = (
                (folder, _find_folder(masks, (folder.name,)) or masks / folder.name)
                if inside
                else _image_and_mask_folders(folder)
            )
    return {split: found[split] for split in SPLITS if split in found}


def _find_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder with the first of these names that exists, ignoring case."""
    found = {path.name.lower(): path for path in _subfolders(folder)}
    return next((found[name.lower()] for name in names if name.lower() in found), None)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
