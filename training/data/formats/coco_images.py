"""Finds the images that a COCO file lists, by the end of their path: tools write paths of their own machine."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from training.data.splits import split_from_name
from training.data.tree import FileTree, suffix_of

_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
MASK_FOLDER_PREFIXES = ("panoptic_", "annotations", "stuffthingmaps")  # folders of PNGs that are not images


class ImageIndex:
    """The images below a folder, limited to one split where folders are named after splits."""

    def __init__(self, tree: FileTree, split: str) -> None:
        """`split`: skip images in folders of other splits; "" keeps all images."""
        self.root = tree.root
        self.by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for folder, files in tree.files.items():
            relative = PurePosixPath(folder)
            if any(part.startswith(MASK_FOLDER_PREFIXES) for part in relative.parts):
                continue
            folder_splits = [found for part in relative.parts if (found := split_from_name(part))]
            if split and folder_splits and folder_splits[-1] != split:
                continue
            for name in files:
                if suffix_of(name) in IMAGE_SUFFIXES:
                    self.by_name[_normalize_name(name)].append(relative / name)

    def resolve(self, listed: Sequence[str], file: Path) -> dict[int, tuple[str, Path]]:
        """Index in `listed` -> (name, image file). The name is the path below the common folder, without the suffix.

        Missing images are left out. Raises: DataError if several files match.
        """
        found: dict[int, PurePosixPath] = {}
        listed_by_path: dict[PurePosixPath, str] = {}
        for index, name in enumerate(listed):
            path = self._find(name, file)
            if path is None:
                continue
            if path in listed_by_path:
                raise DataError(
                    f"{file} lists {listed_by_path[path]} and {name}, but there is only {self.root / path} for both."
                )
            listed_by_path[path] = name
            found[index] = path
        if not found:
            return {}
        common = os.path.commonpath([path.parent for path in found.values()])
        relative = {index: path.relative_to(common) for index, path in found.items()}
        count = Counter(path.with_suffix("") for path in relative.values())
        return {
            # For COCO, a.jpg and a.png are two images.
            index: (str(path if count[path.with_suffix("")] > 1 else path.with_suffix("")), self.root / found[index])
            for index, path in relative.items()
        }

    def _find(self, name: str, file: Path) -> PurePosixPath | None:
        parts = [_normalize_name(part) for part in _local_path(name).split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        candidates = self.by_name.get(parts[-1]) or self.by_name.get(_normalize_name(unquote(parts[-1]))) or []
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        ranked = sorted(candidates, key=lambda path: _matching_suffix_length(path, parts), reverse=True)
        if _matching_suffix_length(ranked[0], parts) == _matching_suffix_length(ranked[1], parts):
            raise DataError(
                f"{file} lists {name}, which could be {self.root / ranked[0]} or {self.root / ranked[1]}; add the folder to "
                "`file_name`, or delete one."
            )
        return ranked[0]


def local_name(name: str) -> str:
    """The file name that is looked for."""
    return _local_path(name).rsplit("/", 1)[-1]


def _local_path(name: str) -> str:
    """The path in a `file_name`: of a URL the path alone, without its query, and decoded (`...%2Fa.jpg?alt=media`)."""
    return unquote(urlsplit(name).path) if _URL.match(name) else name


def _normalize_name(name: str) -> str:
    """NFC: macOS stores an accent as a separate character, Windows and Linux usually do not."""
    return unicodedata.normalize("NFC", name)


def _matching_suffix_length(path: PurePosixPath, parts: list[str]) -> int:
    """How many parts at the end of the path equal those of `parts`."""
    count = 0
    for part, listed in zip(reversed(path.parts), reversed(parts), strict=False):
        if _normalize_name(part) != listed:
            break
        count += 1
    return count
