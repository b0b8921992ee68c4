"""Detects cheaply whether the folder of a bundle has changed."""

import os
from pathlib import Path
from typing import NamedTuple

from models.bundle import CHECKSUM_FILE


class BundleStat(NamedTuple):
    """The state of a folder: any copy, edit or switched link changes it."""

    files: tuple[tuple[str, int, int], ...]  # name, bytes, modification time in ns; -1 for a file that is being deleted
    sums: bytes  # content of SHA256SUMS: a link may be switched to a bundle whose files have the same sizes and times


def stat_bundle(folder: Path) -> BundleStat | None:
    """The current state of a folder; None if it does not exist."""
    try:
        if not folder.is_dir():
            return None
    except OSError:
        return None
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".")
        ]  # Kubernetes keeps its versions there, behind links
        for name in names:
            path = Path(parent, name)
            try:
                stat = path.stat()
                files.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
            except OSError:
                files.append((path.relative_to(folder).as_posix(), -1, -1))
    try:
        sums = (folder / CHECKSUM_FILE).read_bytes()
    except OSError:
        sums = b""
    return BundleStat(tuple(sorted(files)), sums)
