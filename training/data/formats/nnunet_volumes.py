"""Volumes in the layout of nnU-Net and of the Medical Segmentation Decathlon (MSD).

    imagesTr/NAME_0000.nii.gz   one file for each channel: _0000, _0001 ...; without a number where there is one channel (MSD)
    labelsTr/NAME.nii.gz
    dataset.json                `labels`, and the names of the channels (`channel_names`, or `modality` of MSD)

`imagesTs` with `labelsTs` is test. A table `splits.csv` (record,split,patient) or the first fold of `splits_final.json` gives the
splits; without them a hash of the patient or the name does. A label named ignore is ignored.
"""

from models.errors import DataError
from models.readers import VOLUME_SUFFIXES
from models.spec import IGNORE_INDEX
from training.data.class_file import classes_and_encoding
from training.data.formats.nnunet import CHANNEL, read_channel_names, read_description, read_splits
from training.data.listing import Entry, Evidence, Listing
from training.data.mask_decoding import IDENTITY_ENCODING, MaskEncoding
from training.data.tree import FileTree, volume_name
from training.data.volume_splits import assign_cases
from training.data.volumes import VolumeMaskReader


def detect(tree: FileTree) -> Evidence | None:
    """Whether there are `imagesTr` and `labelsTr` with volumes."""
    if not all(tree.find_folder("", (name,)) for name in ("imagesTr", "labelsTr")):
        return None
    images, masks = _cases(tree, "imagesTr"), _masks(tree, "labelsTr")
    if not images or not masks:
        return None
    paired = len(images.keys() & masks.keys())
    return Evidence(paired, f"{len(masks):,} label volumes in labelsTr for {len(images):,} in imagesTr", strength=2)


def read(tree: FileTree) -> Listing:
    """Raises: DataError."""
    rows, ignored, files = read_description(tree)
    classes, encoding = classes_and_encoding(rows, files[0]) if rows else ([], IDENTITY_ENCODING)
    if ignored is not None:
        encoding = MaskEncoding((*encoding.gray_to_label, (ignored, IGNORE_INDEX)))
    splits, split_files = read_splits(tree)
    entries, unmatched = [], []
    for images, masks, default in (("imagesTr", "labelsTr", ""), ("imagesTs", "labelsTs", "test")):
        mask_by_name = _masks(tree, masks)
        cases = _cases(tree, images)
        for name, paths in cases.items():
            mask = tree.path(mask_by_name[name]) if name in mask_by_name else None
            first, *others = (tree.path(path) for path in paths)
            split = default or (splits.get(name, "train") if splits else "")
            entries.append(Entry(name, first, mask, split, further_channels=tuple(others)))
        unmatched += [tree.path(path) for name, path in mask_by_name.items() if name not in cases]
    entries, table_files = assign_cases(tree, entries)
    channels = read_channel_names(tree)
    _check_channel_count(tree, entries, channels)
    return Listing(
        tree.root, entries, classes, encoding, mask_reader=VolumeMaskReader(), unmatched_masks=tuple(unmatched),
        notes=tree.notes, files=(*files, *split_files, *table_files), axes="DHW", channels=channels,
    )  # fmt: skip


def _cases(tree: FileTree, folder: str) -> dict[str, list[str]]:
    """Name without channel -> paths in the order of their channels."""
    found: dict[str, list[str]] = {}
    paths = tree.files_below(folder, VOLUME_SUFFIXES)
    names = {path: volume_name(path, folder) for path in paths}
    numbered = all(CHANNEL.search(name) for name in names.values())
    for path, name in names.items():
        found.setdefault(CHANNEL.sub("", name) if numbered else name, []).append(path)
    return found


def _masks(tree: FileTree, folder: str) -> dict[str, str]:
    return {volume_name(path, folder): path for path in tree.files_below(folder, VOLUME_SUFFIXES)}


def _check_channel_count(tree: FileTree, entries: list[Entry], channels: tuple[str, ...]) -> None:
    """Raises: DataError for a case with fewer or more files than others, or than `dataset.json` names channels."""
    if not entries:
        return
    usual = len(channels) or max(1 + len(entry.further_channels) for entry in entries)
    for entry in entries:
        count = 1 + len(entry.further_channels)
        if count != usual and (count > 1 or usual > 1):
            named = f" ({', '.join(channels)})" if channels else ""
            raise DataError(
                f"{tree.root}: the case {entry.name} has {count} {'file' if count == 1 else 'files'} of channels; expected "
                f"{usual}{named}, such as {entry.name}_0000.nii.gz. Add what is missing, or remove the case."
            )
