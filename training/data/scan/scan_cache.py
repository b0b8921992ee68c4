"""Caches scan results between runs: one file per data set folder, in the user's cache folder.

An entry is valid while image and mask keep their size and modification time. If the cache is broken, cannot be written, or is
written by two processes at once, images are read again; nothing else is lost.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cache_dir import user_cache_dir
from training.data.dataset import Pair
from training.data.mask_decoding import MaskKind, RawMask
from training.data.scan.sample_format import EIGHT_BITS, SampleFormat
from training.data.scan.sample_stats import SampleStats

CACHE_VERSION = 8  # of `SampleStats` and of the file layout; files of other versions are not read
MAX_CACHE_FILES = 64  # data sets; the least recently used are deleted
# A file written twice within one tick of the clock keeps its time (git's "racy" entries); FAT's tick is 2 s.
MIN_FILE_AGE_NS = 2_000_000_000  # nanoseconds
MASK_KINDS: tuple[MaskKind, ...] = ("gray", "palette", "color")
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
ARRAYS = ("values", "palette_colors", "quarters", "edges", "border_runs")
FileStamp = tuple[int, int, int, int]  # size in bytes and modification time in ns, of image and mask
CacheEntries = dict[str, tuple[FileStamp, SampleStats]]


class ScanCache:
    """The cached statistics of some pairs."""

    def __init__(self, pairs: list[Pair], mask_reader: Callable[[Pair], RawMask]) -> None:
        self._now = time.time_ns()
        reader = _reader_name(mask_reader)
        self._keys = [
            f"{os.path.abspath(pair.image)}\n{os.path.abspath(pair.mask)}\n{pair.name}\n{reader}" for pair in pairs
        ]
        self._stamps = _file_stamps(pairs)
        self._file = _cache_file(pairs)

    def load(self) -> list[SampleStats | None]:
        """The statistics of each pair, in order; None if they are not cached."""
        cached = _load_entries(self._file)
        entries = [cached.get(key) for key in self._keys]
        return [
            entry[1] if entry and entry[0] == stamp else None
            for entry, stamp in zip(entries, self._stamps, strict=True)
        ]

    def save(self, found: list[SampleStats | None]) -> None:
        """Write the statistics of all pairs, None for missing ones; keep the entries of other images in the folder."""
        if self._file is None:
            return
        own_keys = set(self._keys)
        entries = {
            key: entry
            for key, entry in _load_entries(self._file).items()
            if key not in own_keys and os.path.exists(key.split("\n", 1)[0])
        }
        for key, stamp, stats in zip(self._keys, self._stamps, found, strict=True):
            # An unreadable file may be readable next time, with other permissions or more memory.
            if stamp and stats and not stats.errors and max(stamp[1], stamp[3]) < self._now - MIN_FILE_AGE_NS:
                entries[key] = (stamp, stats)
        with contextlib.suppress(*CACHE_ERRORS):
            _write_archive(self._file, _to_columns(entries))
            for old in sorted(self._file.parent.glob("*.npz"), key=os.path.getmtime, reverse=True)[MAX_CACHE_FILES:]:
                old.unlink()


def _reader_name(mask_reader: Callable[[Pair], RawMask]) -> str:
    """Name of the function that reads the masks: another reader gives other values for the same file.

    A reader that depends on more than the pair's two files, such as the categories of other splits, has a `cache_key`.
    """
    while isinstance(mask_reader, functools.partial):
        mask_reader = mask_reader.func
    mask_reader = getattr(mask_reader, "__func__", mask_reader)
    name = f"{mask_reader.__module__}.{getattr(mask_reader, '__qualname__', type(mask_reader).__qualname__)}"
    return f"{name} {getattr(mask_reader, 'cache_key', '')}".strip()


def _file_stamps(pairs: list[Pair]) -> list[FileStamp | None]:
    mask_stats: dict[Path, os.stat_result] = {}  # all masks of a COCO data set are in one file
    stamps: list[FileStamp | None] = []
    for pair in pairs:
        try:
            if pair.mask not in mask_stats:
                mask_stats[pair.mask] = os.stat(pair.mask)
            image, mask = os.stat(pair.image), mask_stats[pair.mask]
            stamps.append((image.st_size, image.st_mtime_ns, mask.st_size, mask.st_mtime_ns))
        except OSError:
            stamps.append(None)
    return stamps


def _cache_file(pairs: list[Pair]) -> Path | None:
    """The cache file for the common folder of the images; None if there cannot be one."""
    if not pairs:
        return None
    try:
        cache = user_cache_dir("scan")
        folder = os.path.commonpath({os.path.abspath(pair.image.parent) for pair in pairs})
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # a read-only container, a user without a home, two drives
        return None
    return cache / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}-{CACHE_VERSION}.npz"


def _write_archive(file: Path, columns: dict[str, NDArray[Any]]) -> None:
    # Two scans may write at once. `write_atomically` has one temporary name per file, so it does not fit here.
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=file.stem)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **columns)
        os.replace(draft, file)
    except BaseException:
        os.unlink(draft)
        raise


def _to_columns(entries: CacheEntries) -> dict[str, NDArray[Any]]:
    """One array per field over all entries, so that a hundred thousand entries load fast."""
    stamps, all_stats = [stamp for stamp, _ in entries.values()], [stats for _, stats in entries.values()]
    text = {
        "keys": list(entries),
        "formats": [[stats.image_format, stats.mask_format, stats.digest, stats.mask_digest] for stats in all_stats],
        # Most images have 8 bits, so that only the others are listed.
        "samples": {
            str(index): astuple(stats.sample_format)
            for index, stats in enumerate(all_stats)
            if stats.sample_format != EIGHT_BITS
        },
    }
    numbers = [
        (
            *(stats.size or (0, 0)),
            *(stats.mask_size or (0, 0)),
            stats.orientation,
            MASK_KINDS.index(stats.kind),
            stats.extra_values,
            stats.lossy,
            len(stats.values),
            len(stats.palette_colors),
        )
        for stats in all_stats
    ]

    def column(name: str, *shape: int) -> NDArray[np.uint32]:  # an image has fewer pixels than 2^32
        parts = [getattr(stats, name).astype(np.uint32) for stats in all_stats]
        return np.concatenate([np.zeros((0, *shape), np.uint32), *parts])

    return {
        "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        "stamps": np.array(stamps, np.int64).reshape(-1, 4),
        "numbers": np.array(numbers, np.int64).reshape(-1, 10),
        "perceptual_hash": np.array([stats.perceptual_hash for stats in all_stats], np.uint64),
        "values": column("values"),
        "palette_colors": column("palette_colors"),
        "quarters": column("quarters", 2, 2),
        "edges": column("edges"),
        "border_runs": column("border_runs"),
        "alignment": np.array([stats.alignment for stats in all_stats], np.float64),
    }


def _load_entries(file: Path | None) -> CacheEntries:
    """Empty if the file is missing or broken."""
    if file is None:
        return {}
    try:
        # np.load(path) would leave a broken file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return _from_columns({name: archive[name] for name in archive.files})
    except CACHE_ERRORS:
        return {}


def _to_sample_format(fields: list[Any]) -> SampleFormat:
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in fields]
    return SampleFormat(*values)


def _from_columns(columns: dict[str, NDArray[Any]]) -> CacheEntries:
    text = json.loads(columns["text"].tobytes())
    arrays = {name: columns[name].astype(np.int64) for name in ARRAYS}
    entries: CacheEntries = {}
    start = color_start = 0
    samples = {int(index): _to_sample_format(fields) for index, fields in text["samples"].items()}
    for place, key, (image_format, mask_format, digest, mask_digest), stamp, numbers, image_hash, alignment in zip(
        range(len(text["keys"])), text["keys"], text["formats"], columns["stamps"].tolist(), columns["numbers"].tolist(),
        columns["perceptual_hash"].tolist(), columns["alignment"].tolist(), strict=True,
    ):  # fmt: skip
        height, width, mask_height, mask_width, orientation, kind, extra_values, lossy, count, color_count = numbers
        rows = slice(start, start + count)
        stats = SampleStats(
            size=(height, width),
            mask_size=(mask_height, mask_width),
            orientation=orientation,
            image_format=image_format,
            mask_format=mask_format,
            kind=MASK_KINDS[kind],
            values=arrays["values"][rows],
            palette_colors=arrays["palette_colors"][color_start : color_start + color_count],
            quarters=arrays["quarters"][rows],
            edges=arrays["edges"][rows],
            border_runs=arrays["border_runs"][rows],
            extra_values=extra_values,
            digest=digest,
            perceptual_hash=image_hash,
            errors=(),
            lossy=bool(lossy),
            sample_format=samples.get(place, EIGHT_BITS),
            mask_digest=mask_digest,
            alignment=alignment,
        )
        entries[key] = ((stamp[0], stamp[1], stamp[2], stamp[3]), stats)
        start, color_start = start + count, color_start + color_count
    if start != len(arrays["edges"]) or start != len(arrays["border_runs"]):
        raise ValueError("the columns have different lengths")
    return entries
