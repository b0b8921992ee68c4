"""Any folder of images and masks, paired by name. One of:

    images/NAME.jpg          masks/NAME.png            split by a hash of the name: 80% train, 10% val, 10% test
    images/train/NAME.jpg    masks/train/NAME.png      and val, test
    train/images/NAME.jpg    train/masks/NAME.png      and val, test

The folders may have another of their usual names (`IMAGES`, `MASKS`, `WORDS`), in small or capital letters. Where there
is a `train` and no `val`, a tenth of train is held out for it, by the same hash. A mask holds one label a pixel, 0..254, and 255
is void; or 0 and 255 alone; or the classes' colours. `classes.csv` names the classes (`classes.py`).
"""

from pathlib import Path

from models.errors import DataError
from training.data.class_file import read_dataset_classes
from training.data.dataset import SPLITS, MatchedFiles, Pair, SegmentationDataset, holds_image, match_files
from training.data.splits import SPLIT_ALIASES, SplitSource, assign_splits, resolve_split_source

IMAGE_FOLDERS = ("images", "imgs", "image", "img")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "label")


def recognises(root: Path) -> bool:
    """Whether there is an `images` beside a `masks`, at the top or in the folder of train.

    `labels` and `annotations` are also others' (YOLO, COCO), and must hold an image.
    """
    folders = (root, *(path for path in _subfolders(root) if SPLIT_ALIASES.get(path.name.lower()) == "train"))
    there = ((_find_folder(folder, IMAGE_FOLDERS), _find_folder(folder, MASK_FOLDERS)) for folder in folders)
    return any(
        images and masks and (masks.name.lower() == MASK_FOLDERS[0] or holds_image(masks)) for images, masks in there
    )


def has_split(root: Path, split: str) -> bool:
    """Whether the split has a folder, or gets an image by the hash."""
    there = _split_folders(root)
    if not there:
        return split in assign_splits(pair.name for pair in _match_unsplit(root).pairs).values()
    return split in there or (split == "val" and "train" in there and len(match_files(*there["train"]).pairs) > 1)


def load(root: Path, split: str) -> SegmentationDataset:
    """Open one split. Raises: DataError where it holds nothing."""
    there = _split_folders(root)
    if there:
        chosen = resolve_split_source(root, there, split)
        images, found = there[chosen.name][0], match_files(*there[chosen.name])
    else:
        chosen = SplitSource("", frozenset({split}))
        images, found = _image_and_mask_folders(root)[0], _match_unsplit(root)
    if not found.pairs and found.unmatched_images and found.unmatched_masks:
        raise DataError(
            f"{root}: none of {len(found.unmatched_images):,} images has a mask of its name; there are "
            f"{found.unmatched_images[0]} and {found.unmatched_masks[0]}, for example. Give image and mask one name."
        )
    kept = chosen.select(pair.name for pair in found.pairs)
    pairs = [pair for pair in found.pairs if pair.name in kept]
    check_not_empty(root, split, pairs, len(found.pairs))
    unpaired = tuple(path for path in found.unmatched_images if chosen.contains(relative_name(images, path)))
    return SegmentationDataset(
        pairs, *read_dataset_classes(root), unmatched_images=unpaired, unmatched_masks=found.unmatched_masks
    )


def check_not_empty(root: Path, split: str, pairs: list[Pair], all_: int) -> None:
    """Raises: DataError where a split holds no pair; `all_`: the pairs that it was cut from."""
    if all_ == 1 and not pairs:
        raise DataError(f"{root} holds one image with a mask; wanted are two or more, to train on and to validate on.")
    if not pairs:
        raise DataError(f"{root}: the split {split} holds no image with a mask; add images or make split folders.")


def relative_name(folder: Path, path: Path) -> str:
    """The name that an image goes by in a folder."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _match_unsplit(root: Path) -> MatchedFiles:
    return match_files(*_image_and_mask_folders(root))


def _image_and_mask_folders(folder: Path) -> tuple[Path, Path]:
    """The two folders; by their first names where they are not there, for `match` to miss them."""
    return _find_folder(folder, IMAGE_FOLDERS) or folder / IMAGE_FOLDERS[0], _find_folder(
        folder, MASK_FOLDERS
    ) or folder / MASK_FOLDERS[0]


def _split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Of each split that has a folder, the images' and the masks'. Raises: DataError where two claim one split."""
    images, masks = _image_and_mask_folders(root)
    found: dict[str, tuple[Path, Path]] = {}
    for folder in (*_subfolders(images), *_subfolders(root)):
        split = SPLIT_ALIASES.get(folder.name.lower())
        inside = folder.parent == images
        if split is None or not (inside or _find_folder(folder, IMAGE_FOLDERS)):
            continue
        if split in found and (found[split][0].parent == images) == inside:
            raise DataError(f"{found[split][0]} and {folder} both claim to be {split}; leave one.")
        if split not in found:
            found[split] = (
                (folder, _find_folder(masks, (folder.name,)) or masks / folder.name)
                if inside
                else _image_and_mask_folders(folder)
            )
    return {split: found[split] for split in SPLITS if split in found}


def _find_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in a folder that goes by the first of some names."""
    there = {path.name.lower(): path for path in _subfolders(folder)}
    return next((there[name.lower()] for name in names if name.lower() in there), None)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
