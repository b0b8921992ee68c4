"""Chooses the format of a folder: every format says what it would read (`Evidence`), and the one that explains most wins."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from models.bundle import CHECKSUM_FILE, SPEC_FILE
from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from models.readers import VOLUME_SUFFIXES
from training.data.archive import ARCHIVE_SUFFIXES, is_archive
from training.data.listing import Evidence
from training.data.splits import split_of_folder
from training.data.tree import FileTree, count_suffixes, list_tree, suffix_of
from training.run_folder import CONFIG_FILE, METADATA_FILE

MAX_DEPTH = 3  # folders with nothing but one folder in them, as archives unpack
MAX_LISTED_FOLDERS = 8
MAX_CHILDREN = 40  # folders of one level that are looked into when no format fits
# Files that hold images or masks in other tools, and what to save them as.
UNREAD_SUFFIXES = {
    ".mat": ("MATLAB", "PNG"),
    ".h5": ("HDF5", "PNG"),
    ".hdf5": ("HDF5", "PNG"),
    ".heic": ("HEIC", "PNG"),
    ".jp2": ("JPEG 2000", "PNG"),
    ".svs": ("slides", "PNG tiles"),
    ".dcm": ("DICOM", "NIfTI volumes"),
    ".mha": ("MetaImage", "NIfTI volumes"),
    ".mhd": ("MetaImage", "NIfTI volumes"),
}
# What other tools write into JSON and CSV files, and what to do.
FOREIGN_MARKS = {
    b"region_attributes": "is of VIA (VGG Image Annotator), which is not read; export the annotations as COCO",
    b"region_shape_attributes": "is of VIA (VGG Image Annotator), which is not read; export the annotations as COCO",
    b"EncodedPixels": "has run lengths of masks, which are not read; write a mask for each image with them",
    b"predicted_iou": "has masks of Segment Anything, which are of no class; label them in a tool that names classes",
}
MAX_FOREIGN_FILES, HEADER_BYTES = 20, 1 << 16
WEAK_FRACTION = 0.5  # of the images; if fewer have a mask, the layout may be another


@dataclass(frozen=True)
class Recognition:
    """The format of a folder, and why."""

    tree: FileTree  # the folder that is read: the given one, or the only one inside
    format: str
    evidence: Evidence
    others: dict[str, Evidence]  # the formats that also fit, best first

    @property
    def notes(self) -> tuple[str, ...]:
        """What is doubtful about the choice."""
        found = []
        if self.others and _rank(next(iter(self.others.values()))) == _rank(self.evidence):
            listed = "; ".join(f"{name}: {evidence.summary}" for name, evidence in self.others.items())
            found.append(
                f"{self.tree.root} is read as {self.format} ({self.evidence.summary}), but fits as well: {listed}. "
                f"Choose with `--format` (`format=` in a config)."
            )
        total = self.evidence.images + self.evidence.left_over
        if self.evidence.left_over and self.evidence.images < WEAK_FRACTION * total:
            found.append(
                f"{self.tree.root} is read as {self.format}, but only {self.evidence.images:,} of {total:,} images have a mask "
                f"this way ({self.evidence.summary})."
            )
        return tuple(found)


def recognize(root: Path, formats: Mapping[str, ModuleType]) -> Recognition:
    """The best format for a folder or file; formats earlier in `formats` win ties. Raises: DataError if none fits."""
    if (root / CHECKSUM_FILE).is_file() and (root / SPEC_FILE).is_file():  # its probes are images with masks
        raise DataError(f"{root} is a bundle, not a data set; give the folder of images and masks.")
    tree = list_tree(root)
    if not tree.num_files:
        raise DataError(f"{root} is empty; give a folder of images and masks.")
    found = find_format(tree, formats, 0 if root.is_file() and not is_archive(root) else MAX_DEPTH)
    if found is None:
        raise DataError(describe_unrecognized(root, tree, formats))
    return found


def find_format(tree: FileTree, formats: Mapping[str, ModuleType], max_depth: int = MAX_DEPTH) -> Recognition | None:
    """As `recognize`, for a folder that was listed; None if no format fits."""
    for depth in range(max_depth + 1):
        found = {name: evidence for name, module in formats.items() if (evidence := module.detect(tree))}
        if found:
            ranked = sorted(found, key=lambda name: _rank(found[name]), reverse=True)
            others = {name: found[name] for name in ranked[1:]}
            return Recognition(tree, ranked[0], found[ranked[0]], others)
        inner = tree.children("")
        if depth == max_depth:
            break
        if len(inner) == 1:
            tree = tree.subtree(inner[0], f"{tree.path(inner[0])} is read, the only folder in {tree.root}.")
            continue
        fitting = _fitting_folders(tree, formats)
        if len(fitting) != 1 or split_of_folder(fitting[0].rsplit("/", 1)[-1]):
            break
        tree = tree.subtree(fitting[0], f"{tree.path(fitting[0])} is read, the only data set in {tree.root}.")
    return None


def _fitting_folders(tree: FileTree, formats: Mapping[str, ModuleType]) -> list[str]:
    """The folders in a folder that have a layout, without those inside of one; up to a level with too many to look at."""
    found: list[str] = []
    level = tree.children("")
    for _ in range(MAX_DEPTH):
        if not level or len(level) > MAX_CHILDREN:
            break
        fitting = [folder for folder in level if _fits(tree.subtree(folder), formats)]
        found += fitting
        level = [child for folder in level if folder not in fitting for child in tree.children(folder)]
    return found


def _fits(tree: FileTree, formats: Mapping[str, ModuleType]) -> bool:
    """Whether a format reads images of a folder, or says what is wrong there."""
    try:
        return any((evidence := module.detect(tree)) and evidence.images for module in formats.values())
    except DataError:
        return True


def describe_unrecognized(root: Path, tree: FileTree, formats: Mapping[str, ModuleType]) -> str:
    """What is in a folder that no format fits, and what to do."""
    if root.is_file() and not is_archive(root):
        return (
            f"{root} has no table with the header split,image,mask, and is no annotation file of a supported tool "
            f"({', '.join(formats)}); give the folder of the data set."
        )
    if (root / METADATA_FILE).is_file() and (root / CONFIG_FILE).is_file():
        return f"{root} is the run folder of a training, not a data set; give the folder of images and masks."
    folders = [folder for folder in tree.folders_below("") if tree.files[folder] or not tree.subfolders[folder]]
    found = "; ".join(
        f"{folder}{': ' if folder else ''}{count_suffixes(tree.files[folder]) or 'empty'}"
        for folder in folders[:MAX_LISTED_FOLDERS]
    )
    more = f"; and {len(folders) - MAX_LISTED_FOLDERS:,} more folders" if len(folders) > MAX_LISTED_FOLDERS else ""
    images, volumes = tree.files_below("", IMAGE_SUFFIXES), tree.files_below("", VOLUME_SUFFIXES)
    text = f"{root} has no supported layout ({', '.join(formats)}). It has {found}{more}. "
    if images and len(images) == tree.num_files and len(folders) == 1:
        text += "These are images without masks or annotations. "
    text += "".join(
        f"{suffix} files ({what}) are not read; save them as {other}. "
        for suffix, (what, other) in UNREAD_SUFFIXES.items()
        if tree.files_below("", (suffix,))
    )
    text += _foreign_files(tree)
    if volumes and images:
        text += f"{suffix_of(volumes[0])} files (volumes) are not read together with images; save their slices as PNG. "
    if inside := _fitting_folders(tree, formats):
        return f"{text}{tree.path(inside[0])} has one: give that folder."
    if _fits_parent(root, formats):
        return f"{text}The folder above it has one: give {root.resolve().parent}."
    if archives := tree.files_below("", ARCHIVE_SUFFIXES):
        return f"{text}{tree.path(archives[0])} is an archive: give that file."
    if volumes and not images:
        suffix = suffix_of(volumes[0])
        return (
            f"{text}Volumes need label volumes of the same names: {root}/images/NAME{suffix} with {root}/labels/NAME{suffix}, or "
            f"{root}/NAME_seg{suffix} beside {root}/NAME{suffix}."
        )
    return (
        f"{text}The simplest is {root}/images/NAME.jpg with {root}/masks/NAME.png. Or list the pairs in {root}/list.csv: "
        "a header `image,mask`, and one line per image with the paths of both."
    )


def _foreign_files(tree: FileTree) -> str:
    """What is known about files of other tools."""
    found: dict[str, str] = {}
    for path in tree.shared_files("", (".json", ".csv"))[:MAX_FOREIGN_FILES]:
        try:
            with tree.path(path).open("rb") as stream:
                start = stream.read(HEADER_BYTES)
        except OSError:
            continue
        for text in (text for mark, text in FOREIGN_MARKS.items() if mark in start):
            found.setdefault(text, f"{tree.path(path)} {text}. ")
    return "".join(found.values())


def _fits_parent(root: Path, formats: Mapping[str, ModuleType]) -> bool:
    """Whether the folder above, listed without its other data sets, has a layout that reads from `root`."""
    parent = root.resolve().parent
    if parent == root.resolve() or sum(1 for _ in parent.iterdir()) > MAX_LISTED_FOLDERS:
        return False  # a folder of many things; listing all of it takes long
    try:
        tree = list_tree(parent)
        found = [evidence for module in formats.values() if (evidence := module.detect(tree))]
    except DataError:
        return False
    return any(root.name in evidence.summary for evidence in found)


def _rank(evidence: Evidence) -> tuple[bool, int, int, int]:
    return bool(evidence.images), evidence.strength, evidence.images, -evidence.left_over
