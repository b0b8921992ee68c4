"""Finds the images that a COCO file lists, by the end of the path that its tool wrote."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from models.errors import DataError
from models.imaging.decode import IMAGE_SUFFIXES
from training.data.splits import split_from_name

MASK_FOLDER_PREFIXES = ("panoptic_", "annotations", "stuffthingmaps")  # folders whose PNGs are no images


class ImageIndex:
    """The images below a folder, of one split where folders name splits."""

    def __init__(self, root: Path, split: str) -> None:
        """`split`: images in folders of another are passed over; "" takes all."""
        self.root = root
        self.by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if not name.startswith((".", *MASK_FOLDER_PREFIXES))]
            inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
            spoken = [word for part in inside.parts if (word := split_from_name(part))]
            if split and spoken and spoken[-1] != split:
                continue
            for name in files:
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    self.by_name[_normalize_name(name)].append(inside / name)

    def resolve(self, listed: Sequence[str], file: Path) -> dict[int, tuple[str, Path]]:
        """By place in the list: a name (the path below the folder that holds them all, less the suffix) and the file.

        Images that are not there are left out. Raises: DataError where it is not clear which file is meant.
        """
        found: dict[int, PurePosixPath] = {}
        taken: dict[PurePosixPath, str] = {}
        for place, name in enumerate(listed):
            path = self._find(name, file)
            if path is None:
                continue
            if path in taken:
                raise DataError(
                    f"{file} lists {taken[path]} and {name}, but {self.root / path} alone is there for both."
                )
            taken[path] = name
            found[place] = path
        if not found:
            return {}
        common = os.path.commonpath([path.parent for path in found.values()]) if found else ""
        shorts = {place: path.relative_to(common) for place, path in found.items()}
        count = Counter(short.with_suffix("") for short in shorts.values())
        return {
            # a.jpg and a.png are two images to COCO.
            place: (str(short if count[short.with_suffix("")] > 1 else short.with_suffix("")), self.root / found[place])
            for place, short in shorts.items()
        }

    def _find(self, name: str, file: Path) -> PurePosixPath | None:
        parts = [_normalize_name(part) for part in name.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        candidates = self.by_name.get(parts[-1]) or self.by_name.get(_normalize_name(unquote(parts[-1]))) or []
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        ranked = sorted(candidates, key=lambda path: _matching_suffix_length(path, parts), reverse=True)
        if _matching_suffix_length(ranked[0], parts) == _matching_suffix_length(ranked[1], parts):
            raise DataError(
                f"{file} lists {name}, which may be {self.root / ranked[0]} or {self.root / ranked[1]}; write its folder into "
                "`file_name`, or take one away."
            )
        return ranked[0]


def _normalize_name(name: str) -> str:
    """macOS writes an accent as a letter of its own; Windows and Linux mostly do not."""
    return unicodedata.normalize("NFC", name)


def _matching_suffix_length(path: PurePosixPath, parts: list[str]) -> int:
    """How many parts of a path, from its end, are those of another."""
    count = 0
    for mine, theirs in zip(reversed(path.parts), reversed(parts), strict=False):
        if _normalize_name(mine) != theirs:
            break
        count += 1
    return count
