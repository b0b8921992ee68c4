"""Finds the COCO files of a data set, and which split each is of."""

import re
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from training.data.splits import SPLIT_ALIASES, split_from_name

ANNOTATION_KINDS = ("panoptic", "instances", "stuff")  # of a file's name, the first that is there
IGNORED_KINDS = ("captions", "keypoints", "image_info")  # COCO's that hold no region

# Label Studio's own JSON begins with a list, and Segment Anything's has an `image` and no `image_id` in its annotations.
_COCO_HEADER = re.compile(
    rb"""(\xef\xbb\xbf)?\s*\{.*?("(images|categories)"\s*:\s*\[|"annotations"\s*:\s*\[\s*\{.{0,500}?"image_id")""",
    re.DOTALL,
)


@dataclass(frozen=True)
class CocoFiles:
    """The COCO files of a data set."""

    files: dict[str, Path]  # by split; "" for one that names none
    kind: str  # one of KINDS; "instances" where the name says nothing
    skipped: tuple[Path, ...]  # COCO files that are not read

    def splits(self) -> list[str]:
        """Those that have a file."""
        return [split for split in self.files if split]


def find_coco_files(root: Path) -> CocoFiles:
    """The COCO files of a data set, by split. Raises: DataError where two claim one split."""
    group = list_coco_files(root)
    if not group:
        raise DataError(f"{root} holds no COCO file; wanted is, for one, {root}/annotations/instances_train.json.")
    by_kind: dict[str, list[Path]] = {}
    for file in group:
        by_kind.setdefault(
            next((kind for kind in ANNOTATION_KINDS if kind in file.stem.lower()), "instances"), []
        ).append(file)
    # The panoptic file of val alone must not hide the instances of train.
    kind = max(
        by_kind,
        key=lambda kind: (
            any(_split_of_file(root, file) != "val" for file in by_kind[kind]),
            -ANNOTATION_KINDS.index(kind),
        ),
    )
    files: dict[str, Path] = {}
    for file in by_kind[kind]:
        split = _split_of_file(root, file)
        if split in files:
            meant = f"the split {split}" if split else "the whole data set"
            raise DataError(
                f"{files[split]} and {file} both claim to be {meant}; leave one, or name them by their splits."
            )
        files[split] = file
    if len(files) > 1:
        files.pop("", None)
    return CocoFiles(files, kind, tuple(file for file in group if file not in files.values()))


def _split_of_file(root: Path, file: Path) -> str:
    return split_from_name(file.stem) or (split_from_name(file.parent.name) if file.parent != root else None) or ""


def list_coco_files(root: Path) -> list[Path]:
    """The COCO files in `annotations`, or else at the top, or else in the folders of splits."""
    split_folders = sorted(path for path in root.iterdir() if path.name.lower() in SPLIT_ALIASES and path.is_dir())
    for folders in ([root / "annotations"], [root], split_folders):
        group = [
            file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json")) if _is_coco(file)
        ]
        if group:
            return group
    return []


def _is_coco(file: Path) -> bool:
    """By its name, or else by how it begins: half a gigabyte is not parsed to know."""
    name = file.name.lower()
    if name.startswith(".") or any(other in name for other in IGNORED_KINDS):
        return False
    if name.startswith(ANNOTATION_KINDS) or name.endswith(".coco.json"):
        return True
    try:
        with file.open("rb") as stream:
            return _COCO_HEADER.match(stream.read(1 << 14)) is not None
    except OSError:
        return False
