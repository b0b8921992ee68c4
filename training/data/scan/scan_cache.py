"""Facts kept from one lint to the next: a file a data set's folder, in the user's cache folder.

An entry is good as long as image and mask have the size and the time they had. A cache that is broken, cannot be written, or
was written by two at once costs the time to read the images again, and nothing else.
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

from models.cache_dir import user_cache_dir
from training.data.dataset import Pair
from training.data.mask_decoding import MaskKind, RawMask
from training.data.scan.sample_stats import SampleStats

CACHE_VERSION = 2  # of what `reading.py` counts and of how it is written here: another one reads everything anew
MAX_CACHE_FILES = 64  # data sets whose facts are kept, the last used ones
# A file written twice within the clock's tick keeps its time (git's "racy" entries); FAT's tick is 2 s.
MIN_FILE_AGE_NS = 2_000_000_000  # nanoseconds
MASK_KINDS: tuple[MaskKind, ...] = ("grey", "palette", "colour")
CACHE_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
FileStamp = tuple[int, int, int, int]  # size in bytes and time of change in ns, of image and mask


class ScanCache:
    """The facts known of some pairs."""

    def __init__(self, pairs: list[Pair], draw: Callable[[Pair], RawMask]) -> None:
        self._now = time.time_ns()
        drawn = _reader_name(draw)
        self._keys = [
            f"{os.path.abspath(pair.image)}\n{os.path.abspath(pair.mask)}\n{pair.name}\n{drawn}" for pair in pairs
        ]
        self._stamps = _file_stamps(pairs)
        self._file = _cache_file(pairs)

    def load(self) -> list[SampleStats | None]:
        """What is known of each pair, in order."""
        there = _load_entries(self._file)
        entries = [there.get(key) for key in self._keys]
        return [
            entry[1] if entry and entry[0] == stamp else None
            for entry, stamp in zip(entries, self._stamps, strict=True)
        ]

    def save(self, found: list[SampleStats | None]) -> None:
        """Write the facts of all pairs, None where there are none yet, beside those of other images of the folder."""
        if self._file is None:
            return
        mine = set(self._keys)
        entries = {
            key: entry
            for key, entry in _load_entries(self._file).items()
            if key not in mine and os.path.exists(key.split("\n", 1)[0])
        }
        for key, stamp, facts in zip(self._keys, self._stamps, found, strict=True):
            # What could not be read may be readable next time, by other rights or more memory.
            if stamp and facts and not facts.errors and max(stamp[1], stamp[3]) < self._now - MIN_FILE_AGE_NS:
                entries[key] = (stamp, facts)
        with contextlib.suppress(*CACHE_ERRORS):
            _write_archive(self._file, _to_columns(entries))
            for old in sorted(self._file.parent.glob("*.npz"), key=os.path.getmtime, reverse=True)[MAX_CACHE_FILES:]:
                old.unlink()


CacheEntries = dict[str, tuple[FileStamp, SampleStats]]


def _reader_name(draw: Callable[[Pair], RawMask]) -> str:
    """What draws the masks, by name: the same file drawn otherwise has other values.

    One that goes by more than the pair's two files, as the other splits' categories, says so by `cache_key`.
    """
    while isinstance(draw, functools.partial):
        draw = draw.func
    draw = getattr(draw, "__func__", draw)
    name = f"{draw.__module__}.{getattr(draw, '__qualname__', type(draw).__qualname__)}"
    return f"{name} {getattr(draw, 'cache_key', '')}".strip()


def _file_stamps(pairs: list[Pair]) -> list[FileStamp | None]:
    of_masks: dict[Path, os.stat_result] = {}  # COCO's are one file
    stamps: list[FileStamp | None] = []
    for pair in pairs:
        try:
            if pair.mask not in of_masks:
                of_masks[pair.mask] = os.stat(pair.mask)
            image, mask = os.stat(pair.image), of_masks[pair.mask]
            stamps.append((image.st_size, image.st_mtime_ns, mask.st_size, mask.st_mtime_ns))
        except OSError:
            stamps.append(None)
    return stamps


def _cache_file(pairs: list[Pair]) -> Path | None:
    """Where the facts of a folder of images are kept; None where nothing can be."""
    if not pairs:
        return None
    try:
        home = user_cache_dir("facts")
        folder = os.path.commonpath({os.path.abspath(pair.image.parent) for pair in pairs})
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # a read-only container, a user without a home, two drives
        return None
    return home / f"{hashlib.sha256(folder.encode()).hexdigest()[:32]}-{CACHE_VERSION}.npz"


def _write_archive(file: Path, columns: dict[str, NDArray[Any]]) -> None:
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


def _to_columns(entries: CacheEntries) -> dict[str, NDArray[Any]]:
    """As columns: an array holds what all entries have of a kind, so that a hundred thousand load at once."""
    stamps, facts = [stamp for stamp, _ in entries.values()], [each for _, each in entries.values()]
    text = {"keys": list(entries), "formats": [[each.image_format, each.mask_format, each.digest] for each in facts]}
    numbers = [
        (
            *(each.size or (0, 0)),
            *(each.mask_size or (0, 0)),
            each.orientation,
            MASK_KINDS.index(each.kind),
            each.extra_values,
            each.lossy,
            len(each.values),
            len(each.palette_colors),
        )
        for each in facts
    ]

    def column(name: str, *shape: int) -> NDArray[np.uint32]:  # an image has fewer pixels than 2^32
        parts = [getattr(each, name).astype(np.uint32) for each in facts]
        return np.concatenate([np.zeros((0, *shape), np.uint32), *parts])

    return {
        "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        "stamps": np.array(stamps, np.int64).reshape(-1, 4),
        "numbers": np.array(numbers, np.int64).reshape(-1, 10),
        "perceptual_hash": np.array([each.perceptual_hash for each in facts], np.uint64),
        "values": column("values"),
        "palette_colors": column("palette_colors"),
        "quarters": column("quarters", 2, 2),
        "edges": column("edges"),
    }


def _load_entries(file: Path | None) -> CacheEntries:
    """Empty where there is none, or a broken one."""
    if file is None:
        return {}
    try:
        with (
            file.open("rb") as stream,
            np.load(stream, allow_pickle=False) as archive,
        ):  # numpy leaves a broken one open
            return _from_columns({name: archive[name] for name in archive.files})
    except CACHE_ERRORS:
        return {}


def _from_columns(columns: dict[str, NDArray[Any]]) -> CacheEntries:
    text = json.loads(columns["text"].tobytes())
    counted = {name: columns[name].astype(np.int64) for name in ("values", "palette_colors", "quarters", "edges")}
    entries: CacheEntries = {}
    at = of_colours = 0
    for key, (image_format, mask_format, digest), stamp, numbers, likeness in zip(
        text["keys"], text["formats"], columns["stamps"].tolist(), columns["numbers"].tolist(),
        columns["perceptual_hash"].tolist(), strict=True,
    ):  # fmt: skip
        height, width, mask_height, mask_width, orientation, kind, more, lossy, count, colours = numbers
        mine = slice(at, at + count)
        facts = SampleStats(
            (height, width), (mask_height, mask_width), orientation, image_format, mask_format, MASK_KINDS[kind],
            counted["values"][mine], counted["palette_colors"][of_colours : of_colours + colours], counted["quarters"][mine],
            counted["edges"][mine], more, digest, likeness, (), bool(lossy),
        )  # fmt: skip
        entries[key] = ((stamp[0], stamp[1], stamp[2], stamp[3]), facts)
        at, of_colours = at + count, of_colours + colours
    if at != len(counted["edges"]):
        raise ValueError("the columns do not belong together")
    return entries
