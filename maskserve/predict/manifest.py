"""The manifest: a row an image, with its mask's size and classes or the reason why there is none.

It is also what a run that was killed goes on from, so that no image gets two rows. In a folder it is `manifest.jsonl`, a
line for what all rows have in common and a line an image, each written as soon as the mask is (`targets.py`); at the end
the same becomes `manifest.parquet` where pyarrow is installed. Where nothing can be appended to, as in object stores, it
is a Parquet data set of parts, `manifest/part-*.parquet`, beside `manifest/_job.json`, which readers of data sets pass over.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maskserve.predict.config import is_installed
from maskserve.predict.inputs import translate_store_errors
from maskserve.predict.outputs import FolderStore, ObjectStore, write_error
from maskserve.predict.parquet import read_parquet_bytes, to_parquet_bytes, write_parquet
from models.errors import RunError, first_line

MANIFEST = "manifest"
JSONL_FILE, PARQUET_FILE = f"{MANIFEST}.jsonl", f"{MANIFEST}.parquet"
PART_PATTERN, HEADER_FILE = MANIFEST + "/part-{:020d}.parquet", f"{MANIFEST}/_job.json"
OPEN_FLAGS = os.O_RDWR | getattr(os, "O_BINARY", 0)  # Windows would else write other line ends
PART_ROWS, PART_SECONDS = 1000, 20.0  # a part is written when it has so many rows or is so old


@dataclass(frozen=True)
class ManifestRow:
    """What became of an image."""

    path: str  # its address
    mask: str | None = None  # the mask's file below the target; none for parquet, or where it failed
    error: str | None = None  # one sentence; none where it is done
    height: int | None = None  # pixels, of the mask and the upright image
    width: int | None = None
    # Of each class that is there, by label: {"label", "name", "fraction" of all pixels 0..1} and for parquet "rle": COCO's
    # compressed counts. Void makes up the rest. None where the format does not tell.
    classes: list[dict[str, Any]] | None = None
    milliseconds: float | None = None  # of the inference, or of the request to a service
    model: str | None = None  # name and short hash of the bundle


@dataclass
class ManifestState:
    """What a manifest held when it was opened."""

    paths: set[str] = field(default_factory=set)  # addresses of images that have a row
    masks: set[str] = field(default_factory=set)  # places that are taken
    failed_count: int = 0  # rows with an error

    def add(self, row: dict[str, Any]) -> None:
        """Take up a row."""
        self.paths.add(row["path"])
        if row.get("mask"):
            self.masks.add(row["mask"])
        self.failed_count += row.get("error") is not None


class JsonlManifest:
    """The manifest of a folder."""

    def __init__(self, target: FolderStore, sealed: dict[str, Any], again: Set[str] = frozenset()) -> None:
        """Open or begin it; of the images in `again` those that failed have no row any more.

        Raises: RunError for a folder that is not ours, masks that were asked for otherwise, or another run at work.
        """
        self.output, self.state = target, ManifestState()
        self.path = target.path / JSONL_FILE
        self.lock, self.has_new_rows = threading.Lock(), False
        begun = self.path.is_file()
        if not begun and target.path.is_dir() and any(target.path.iterdir()):
            raise foreign_folder_error(str(target.path), self.path.name)
        try:
            target.path.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, OPEN_FLAGS | os.O_CREAT, 0o644)
            try:
                self._lock_file()
                self._load_rows(sealed)
                if again and self.state.failed_count:
                    self._drop_failed(again)
                    self._load_rows(sealed)
                target.recover(self.state.masks)
            except BaseException:
                os.close(self.fd)
                raise
        except OSError as error:
            raise write_error(str(target.path), error) from error

    def append(self, row: ManifestRow) -> None:
        """Add a row, in one write. Raises: RunError; a line that was half-written is taken back."""
        kept = {name: value for name, value in asdict(row).items() if value is not None}
        with self.lock:
            if not self.has_new_rows:  # where the table is there, it has every row
                (self.output.path / PARQUET_FILE).unlink(missing_ok=True)
            self.has_new_rows = True
            self._append_line(kept)

    def close(self, complete: bool) -> None:
        """Let go, last of all; where all is done, leave the Parquet table too. Raises: RunError."""
        try:
            if not self.has_new_rows and not self.state.paths:  # nothing came of it
                self.path.unlink()
                self.output.close()
                with suppress(OSError):
                    self.output.path.rmdir()
            elif complete:
                if is_installed("pyarrow") and not (self.output.path / PARQUET_FILE).exists():
                    with self.output.writable_path(PARQUET_FILE) as file:
                        write_parquet(file, (row for _, row in _read_lines(self.path) if "path" in row))
                    self.output.publish(PARQUET_FILE)
                self.output.close()
        finally:
            os.close(self.fd)
            self.fd = -1  # the number may soon be another file's

    def _lock_file(self) -> None:
        """Two runs in one folder would label every image twice. The lock goes with the process, however that ends."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{self.output.path}: another run writes there; wait for its end, or choose another --out."
            ) from error

    def _load_rows(self, sealed: dict[str, Any]) -> None:
        self.state, end = ManifestState(), 0
        for place, row in _read_lines(self.path):
            end = place
            if "path" in row:
                self.state.add(row)
            else:
                check_header(row, sealed, str(self.output.path))
        os.ftruncate(self.fd, end)  # of a line that was torn by a kill nothing else is known
        os.lseek(self.fd, end, os.SEEK_SET)
        if end == 0:
            self._append_line(sealed)

    def _drop_failed(self, again: Set[str]) -> None:
        """Write it anew without them, beside it, and put that in its place."""
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as file:
            for _, row in _read_lines(self.path):
                if row.get("error") is None or row["path"] not in again:
                    file.write(_to_json_line(row))
        (self.output.path / PARQUET_FILE).unlink(missing_ok=True)
        fresh.replace(self.path)
        old, self.fd = self.fd, os.open(self.path, OPEN_FLAGS)
        os.close(old)
        self._lock_file()

    def _append_line(self, row: dict[str, Any]) -> None:
        start = os.lseek(self.fd, 0, os.SEEK_CUR)
        data = memoryview(_to_json_line(row).encode())
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError as error:
            os.ftruncate(self.fd, start)
            os.lseek(self.fd, start, os.SEEK_SET)
            raise write_error(str(self.path), error) from error


class ParquetManifest:
    """The manifest of an object store."""

    def __init__(self, target: ObjectStore, sealed: dict[str, Any], again: Set[str] = frozenset()) -> None:
        """As `Lines`; two runs at once are not seen here."""
        self.output, self.state = target, ManifestState()
        self._start_part()
        self.lock, self.has_new_rows = threading.Lock(), False
        with translate_store_errors(target.url):
            target.fs.invalidate_cache()
            if target.fs.exists(f"{target.path}/{HEADER_FILE}"):
                check_header(json.loads(target.fs.cat_file(f"{target.path}/{HEADER_FILE}")), sealed, target.url)
                for name, rows in self._read_parts():
                    kept = [row for row in rows if row["error"] is None or row["path"] not in again]
                    if len(kept) < len(rows):
                        target.put(name, to_parquet_bytes(kept))
                    for row in kept:
                        self.state.add(row)
            elif target.fs.exists(target.path) and target.fs.ls(target.path):
                raise foreign_folder_error(target.url, HEADER_FILE)
            else:
                target.put(HEADER_FILE, json.dumps(sealed).encode())

    def append(self, row: ManifestRow) -> None:
        """Add a row; every so many of them, or seconds, they are written. Raises: RunError."""
        with self.lock:
            self.pending.append(asdict(row))
            if len(self.pending) >= PART_ROWS or time.monotonic() - self.part_started > PART_SECONDS:
                self._flush()

    def close(self, complete: bool) -> None:
        """Write what is left. Raises: RunError."""
        with self.lock:
            self._flush()
            if not self.has_new_rows and not self.state.paths:  # nothing came of it
                with translate_store_errors(self.output.url):
                    self.output.fs.rm(f"{self.output.path}/{HEADER_FILE}")

    def _flush(self) -> None:
        if self.pending:
            self.has_new_rows = True
            self.output.put(self.part_name, to_parquet_bytes(self.pending))
        self._start_part()

    def _start_part(self) -> None:
        # The name is kept until the part is written: where no answer came to a request that was carried out, the same
        # part is written again, and no row twice.
        self.pending: list[dict[str, Any]] = []
        self.part_name, self.part_started = PART_PATTERN.format(time.time_ns()), time.monotonic()

    def _read_parts(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The parts that are there, by name, each with its rows."""
        system, path = self.output.fs, self.output.path
        for place in sorted(system.glob(f"{path}/manifest/part-*.parquet")):
            yield place.removeprefix(f"{path}/"), read_parquet_bytes(system.cat_file(place))


def open_manifest(
    target: FolderStore | ObjectStore, sealed: dict[str, Any], again: Set[str] = frozenset()
) -> "JsonlManifest | ParquetManifest":
    """The manifest of a target, its own or a new one; of the images in `again` those that failed have no row any more.

    Raises: RunError for a target that is not ours, or whose masks were asked for otherwise.
    """
    return (
        JsonlManifest(target, sealed, again)
        if isinstance(target, FolderStore)
        else ParquetManifest(target, sealed, again)
    )


def check_header(found: dict[str, Any], sealed: dict[str, Any], target: str) -> None:
    """Raises: RunError where the masks of a target were asked for otherwise."""
    for name, now in sealed.items():
        was = found.get(name)
        if was != now:
            raise RunError(
                f"{target} holds masks of {name} {_format_value(was)}, and now {_format_value(now)} is asked for. "
                "Ask as before, or choose another --out."
            )


def foreign_folder_error(target: str, manifest: str) -> RunError:
    """The sentence for a place that holds what no run has put there."""
    return RunError(
        f"{target} is not empty and has no {manifest} of an earlier run: nothing is overwritten. Choose another --out."
    )


def _format_value(value: Any) -> str:
    return ",".join(str(one) for one in value) or "unset" if isinstance(value, list) else repr(value)


def _to_json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole line of a manifest, the seal first, with the place where it ends."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RunError(f"{path} is no manifest of ours ({first_line(error)}). Choose another --out.") from error
            yield end, row
