"""Facts kept from one lint to the next: a file a data set's folder, in the user's cache folder.

An entry is good as long as picture and mask have the size and the time they had. A cache that is broken, cannot be written, or
was written by two at once costs the time to read the pictures again, and nothing else.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cache_dir import cache_home
from training.data.dataset import Pair
from training.data.mask_decoding import Kind, Values
from training.data.scan.sample_stats import Facts

VERSION = 2  # of what `reading.py` counts and of how it is written here: another one reads everything anew
FILES = 64  # data sets whose facts are kept, the last used ones
# A file written twice within the clock's tick keeps its time (git's "racy" entries); FAT's tick is 2 s.
SETTLED = 2_000_000_000  # nanoseconds
KINDS: tuple[Kind, ...] = ("grey", "palette", "colour")
BROKEN = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
Stamp = tuple[int, int, int, int]  # size in bytes and time of change in ns, of picture and mask


class Cache:
    """The facts known of some pairs."""

    def __init__(self, pairs: list[Pair], draw: Callable[[Pair], Values]) -> None:
        self._now = time.time_ns()
        drawn = _named(draw)
        self._keys = [
            f"{os.path.abspath(pair.image)}\n{os.path.abspath(pair.mask)}\n{pair.name}\n{drawn}" for pair in pairs
        ]
        self._stamps = _stamps(pairs)
        self._file = _file_of(pairs)

    def known(self) -> list[Facts | None]:
        """What is known of each pair, in order."""
        there = _load(self._file)
        entries = [there.get(key) for key in self._keys]
        return [
            entry[1] if entry and entry[0] == stamp else None
            for entry, stamp in zip(entries, self._stamps, strict=True)
        ]

    def keep(self, found: list[Facts | None]) -> None:
        """Write the facts of all pairs, None where there are none yet, beside those of other pictures of the folder."""
        if self._file is None:
            return
        mine = set(self._keys)
        entries = {
            key: entry
            for key, entry in _load(self._file).items()
            if key not in mine and os.path.exists(key.split("\n", 1)[0])
        }
        for key, stamp, facts in zip(self._keys, self._stamps, found, strict=True):
            # What could not be read may be readable next time, by other rights or more memory.
            if stamp and facts and not facts.errors and max(stamp[1], stamp[3]) < self._now - SETTLED:
                entries[key] = (stamp, facts)
        with contextlib.suppress(*BROKEN):
            _write(self._file, _packed(entries))
            for old in sorted(self._file.parent.glob("*.npz"), key=os.path.getmtime, reverse=True)[FILES:]:
                old.unlink()


Entries = dict[str, tuple[Stamp, Facts]]


def _named(draw: Callable[[Pair], Values]) -> str:
    """What draws the masks, by name: the same file drawn otherwise has other values.

    One that goes by more than the pair's two files, as the other splits' categories, says so by `depends_on`.
    """
    while isinstance(draw, functools.partial):
        draw = draw.func
    draw = getattr(draw, "__func__", draw)
    name = f"{draw.__module__}.{getattr(draw, '__qualname__', type(draw).__qualname__)}"
    return f"{name} {getattr(draw, 'depends_on', '')}".strip()


def _stamps(pairs: list[Pair]) -> list[Stamp | None]:
    of_masks: dict[Path, os.stat_result] = {}  # COCO's are one file
    stamps: list[Stamp | None] = []
    for pair in pairs:
        try:
            if pair.mask not in of_masks:
                of_masks[pair.mask] = os.stat(pair.mask)
            image, mask = os.stat(pair.image), of_masks[pair.mask]
            stamps.append((image.st_size, image.st_mtime_ns, mask.st_size, mask.st_mtime_ns))
        except OSError:
            stamps.append(None)
    return stamps


def _file_of(pairs: list[Pair]) -> Path | None:
    """Where the facts of a folder of pictures are kept; None where nothing can be."""
    if not pairs:
        return None
    try:
        home = cache_home("facts")
        folder = os.path.commonpath({os.path.abspath(pair.image.parent) for pair in pairs})
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # a read-only container, a user without a home, two drives
        return None
    return home / f"{hashlib.sha256(folder.encode()).hexdigest()[:32]}-{VERSION}.npz"


def _write(file: Path, columns: dict[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(buffer.getbuffer())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _packed(entries: Entries) -> dict[str, NDArray[Any]]:
    """As columns: an array holds what all entries have of a kind, so that a hundred thousand load at once."""
    stamps, facts = [stamp for stamp, _ in entries.values()], [each for _, each in entries.values()]
    text = {"keys": list(entries), "formats": [[each.image_format, each.mask_format, each.digest] for each in facts]}
    numbers = [
        (*(each.size or (0, 0)), *(each.mask_size or (0, 0)), each.orientation, KINDS.index(each.kind), each.more, each.lossy,
         len(each.values), len(each.colours))
        for each in facts
    ]  # fmt: skip

    def column(name: str, *shape: int) -> NDArray[np.uint32]:  # a picture has fewer pixels than 2^32
        parts = [getattr(each, name).astype(np.uint32) for each in facts]
        return np.concatenate([np.zeros((0, *shape), np.uint32), *parts])

    return {
        "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        "stamps": np.array(stamps, np.int64).reshape(-1, 4),
        "numbers": np.array(numbers, np.int64).reshape(-1, 10),
        "likeness": np.array([each.likeness for each in facts], np.uint64),
        "values": column("values"),
        "colours": column("colours"),
        "quarters": column("quarters", 2, 2),
        "edges": column("edges"),
    }


def _load(file: Path | None) -> Entries:
    """Empty where there is none, or a broken one."""
    if file is None:
        return {}
    try:
        with (
            file.open("rb") as stream,
            np.load(stream, allow_pickle=False) as archive,
        ):  # numpy leaves a broken one open
            return _unpacked({name: archive[name] for name in archive.files})
    except BROKEN:
        return {}


def _unpacked(columns: dict[str, NDArray[Any]]) -> Entries:
    text = json.loads(columns["text"].tobytes())
    counted = {name: columns[name].astype(np.int64) for name in ("values", "colours", "quarters", "edges")}
    entries: Entries = {}
    at = of_colours = 0
    for key, (image_format, mask_format, digest), stamp, numbers, likeness in zip(
        text["keys"], text["formats"], columns["stamps"].tolist(), columns["numbers"].tolist(),
        columns["likeness"].tolist(), strict=True,
    ):  # fmt: skip
        height, width, mask_height, mask_width, orientation, kind, more, lossy, count, colours = numbers
        mine = slice(at, at + count)
        facts = Facts(
            (height, width), (mask_height, mask_width), orientation, image_format, mask_format, KINDS[kind],
            counted["values"][mine], counted["colours"][of_colours : of_colours + colours], counted["quarters"][mine],
            counted["edges"][mine], more, digest, likeness, (), bool(lossy),
        )  # fmt: skip
        entries[key] = ((stamp[0], stamp[1], stamp[2], stamp[3]), facts)
        at, of_colours = at + count, of_colours + colours
    if at != len(counted["edges"]):
        raise ValueError("the columns do not belong together")
    return entries
