"""Finds the pictures that a COCO file lists, by the end of the path that its tool wrote."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from models.errors import DataError
from models.imaging.decode import SUFFIXES
from training.data.splits import spoken_of

MASKS = ("panoptic_", "annotations", "stuffthingmaps")  # folders whose PNGs are no pictures


class Pictures:
    """The pictures below a folder, of one split where folders name splits."""

    def __init__(self, root: Path, split: str) -> None:
        """`split`: pictures in folders of another are passed over; "" takes all."""
        self.root = root
        self.by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if not name.startswith((".", *MASKS))]
            inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
            spoken = [word for part in inside.parts if (word := spoken_of(part))]
            if split and spoken and spoken[-1] != split:
                continue
            for name in files:
                if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                    self.by_name[_normal(name)].append(inside / name)

    def named(self, listed: Sequence[str], file: Path) -> dict[int, tuple[str, Path]]:
        """By place in the list: a name (the path below the folder that holds them all, less the suffix) and the file.

        Pictures that are not there are left out. Raises: DataError where it is not clear which file is meant.
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
            # a.jpg and a.png are two pictures to COCO.
            place: (str(short if count[short.with_suffix("")] > 1 else short.with_suffix("")), self.root / found[place])
            for place, short in shorts.items()
        }

    def _find(self, name: str, file: Path) -> PurePosixPath | None:
        parts = [_normal(part) for part in name.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        candidates = self.by_name.get(parts[-1]) or self.by_name.get(_normal(unquote(parts[-1]))) or []
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        ranked = sorted(candidates, key=lambda path: _likeness(path, parts), reverse=True)
        if _likeness(ranked[0], parts) == _likeness(ranked[1], parts):
            raise DataError(
                f"{file} lists {name}, which may be {self.root / ranked[0]} or {self.root / ranked[1]}; write its folder into "
                "`file_name`, or take one away."
            )
        return ranked[0]


def _normal(name: str) -> str:
    """macOS writes an accent as a letter of its own; Windows and Linux mostly do not."""
    return unicodedata.normalize("NFC", name)


def _likeness(path: PurePosixPath, parts: list[str]) -> int:
    """How many parts of a path, from its end, are those of another."""
    count = 0
    for mine, theirs in zip(reversed(path.parts), reversed(parts), strict=False):
        if _normal(mine) != theirs:
            break
        count += 1
    return count
