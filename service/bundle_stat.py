"""Whether a bundle's folder has changed, from outside and cheaply."""

import os
from pathlib import Path
from typing import NamedTuple

from models.bundle import CHECKSUM_FILE


class BundleStat(NamedTuple):
    """What a folder looks like from outside: any copy, edit or switched link changes it."""

    files: tuple[tuple[str, int, int], ...]  # name, bytes, time of change in ns; -1 for what is just going
    sums: bytes  # SHA256SUMS: links may lead to another bundle whose files have the same sizes and times


def stat_bundle(folder: Path) -> BundleStat | None:
    """What a folder looks like now; None where there is none."""
    try:
        if not folder.is_dir():
            return None
    except OSError:
        return None
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what Kubernetes keeps behind its links
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
