"""Finds the COCO files of a data set and the split of each."""

import re
from dataclasses import dataclass
from pathlib import Path

from models.errors import DataError
from training.data.splits import split_from_name, split_of_folder
from training.data.text_file import UTF16_MARKS
from training.data.tree import FileTree

ANNOTATION_KINDS = ("panoptic", "instances", "stuff")  # in the file name; the first one that exists is used
IGNORED_KINDS = ("captions", "keypoints", "image_info")  # COCO files without regions

# Label Studio's own JSON starts with a list; Segment Anything's has an `image`, and no `image_id` in its annotations.
_COCO_HEADER = re.compile(
    rb"""(\xef\xbb\xbf)?\s*\{.*?("(images|categories)"\s*:\s*\[|"annotations"\s*:\s*\[\s*\{.{0,500}?"image_id")""",
    re.DOTALL,
)


@dataclass(frozen=True)
class CocoFiles:
    """The COCO files of a data set."""

    files: dict[str, Path]  # by split; "" for a file without a split
    kind: str  # one of ANNOTATION_KINDS; "instances" if the file name does not tell
    skipped: tuple[Path, ...]  # COCO files that are not read

    def splits(self) -> list[str]:
        """The splits that have a file."""
        return [split for split in self.files if split]


def find_coco_files(tree: FileTree) -> CocoFiles:
    """The COCO files of a data set, by split. Raises: DataError if two files claim one split."""
    root, candidates = tree.root, list_coco_files(tree)
    if not candidates:
        raise DataError(f"{root} has no COCO file; expected for example {root}/annotations/instances_train.json.")
    by_kind: dict[str, list[Path]] = {}
    for file in candidates:
        kind = next((kind for kind in ANNOTATION_KINDS if kind in file.stem.lower()), "instances")
        by_kind.setdefault(kind, []).append(file)
    # A panoptic file for val alone must not hide the instances of train.
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
            subject = f"the split {split}" if split else "the whole data set"
            raise DataError(
                f"{files[split]} and {file} are both for {subject}; delete one, or name the files after their splits."
            )
        files[split] = file
    if len(files) > 1:
        files.pop("", None)
    return CocoFiles(files, kind, tuple(file for file in candidates if file not in files.values()))


def _split_of_file(root: Path, file: Path) -> str:
    return split_from_name(file.stem) or (split_from_name(file.parent.name) if file.parent != root else None) or ""


def list_coco_files(tree: FileTree) -> list[Path]:
    """The COCO files in `annotations`, else those at the top, else those in the split folders."""
    annotations = [path for path in [tree.find_folder("", ("annotations",))] if path]
    split_folders = [path for path in tree.children("") if split_of_folder(path)]
    for folders in (annotations, [""], split_folders):
        files = [tree.path(path) for folder in folders for path in tree.shared_files(folder, (".json",))]
        found = [file for file in files if _is_coco(file)]
        if found:
            return found
    return []


def _is_coco(file: Path) -> bool:
    """Decided by the name, else by the first 16 KB: parsing half a gigabyte to find out takes too long."""
    name = file.name.lower()
    if name.startswith(".") or any(kind in name for kind in IGNORED_KINDS):
        return False
    if name.startswith(ANNOTATION_KINDS) or name.endswith(".coco.json"):
        return True
    try:
        if not file.is_file():  # a named pipe would block
            return False
        with file.open("rb") as stream:
            head = stream.read(1 << 14)
    except OSError:
        return False
    if head[:2] in UTF16_MARKS:
        head = head[2:].replace(b"\0", b"")
    return _COCO_HEADER.match(head) is not None
