"""The manifest: one row per image, with its mask, size and classes, or the reason why it has no mask.

A run that was stopped resumes from it, so that no image gets two rows. In a folder it is `manifest.jsonl`: a header line with
the properties that all rows share, and a line per image, appended as soon as the mask is written (`outputs.py`). At the end
it is also written as `manifest.parquet` if pyarrow is installed. Object stores cannot append. There it is a Parquet data set of
parts, `manifest/part-*.parquet`, beside `manifest/_header.json`, which readers of data sets skip.
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
from models.atomic_write import atomic_writer
from models.errors import RunError, first_line, quoted
from models.file_lock import lock_file

MANIFEST = "manifest"
JSONL_FILE, PARQUET_FILE = f"{MANIFEST}.jsonl", f"{MANIFEST}.parquet"
PART_PATTERN, HEADER_FILE = MANIFEST + "/part-{:020d}.parquet", f"{MANIFEST}/_header.json"
OPEN_FLAGS = os.O_RDWR | getattr(os, "O_BINARY", 0)  # without O_BINARY, Windows would change line ends
PART_ROWS, PART_SECONDS = 1000, 20.0  # a part is written when it has so many rows or is so old


@dataclass(frozen=True)
class ManifestRow:
    """The result of an image."""

    path: str  # the image's address
    mask: str | None = None  # the mask's path below the output; None for the format parquet, or on an error
    error: str | None = None  # the error message; None on success
    height: int | None = None  # pixels, of the mask and the upright image
    width: int | None = None
    length: int | None = None  # time steps of a recording
    rate: float | None = None  # Hz, of a recording
    shape: list[int] | None = None  # voxels of a volume, along the axes of its labels
    spacing: list[float] | None = None  # mm along these; None if the file does not state it
    # The classes that occur, by label: {"label", "name", "fraction" of all pixels 0..1} and for the format parquet "rle",
    # COCO's compressed counts. The remaining pixels are unlabeled. None if the format does not contain the labels. Of a
    # recording: {"label", "name", "events"}, the number of events, of all leads together. Of a volume: {"label", "name", "voxels",
    # "ml"}, without `ml` if the file does not state its spacing.
    classes: list[dict[str, Any]] | None = None
    milliseconds: float | None = None  # of the inference, or of the request to a service
    model: str | None = None  # name and short hash of the bundle


@dataclass
class ManifestState:
    """The content of a manifest when it was opened."""

    paths: set[str] = field(default_factory=set)  # addresses of the images that have a row
    masks: set[str] = field(default_factory=set)  # paths of their masks
    failed_count: int = 0  # rows with an error

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.paths.add(row["path"])
        if row.get("mask"):
            self.masks.add(row["mask"])
        self.failed_count += row.get("error") is not None


class JsonlManifest:
    """The manifest of a folder."""

    def __init__(self, output: FolderStore, header: dict[str, Any], retry: Set[str] = frozenset()) -> None:
        """Open or create it, and drop the rows with errors of the images in `retry`.

        Raises: RunError for a folder with other files, masks of other options, or a second run in the folder.
        """
        self.output, self.state = output, ManifestState()
        self.path = output.path / JSONL_FILE
        self.lock, self.has_new_rows = threading.Lock(), False
        if os.path.lexists(output.path) and not output.path.is_dir():
            raise RunError(f"{output.path} is a file; --out names the folder of the masks.")
        if not self.path.is_file() and output.path.is_dir() and any(output.path.iterdir()):
            raise foreign_folder_error(str(output.path), self.path.name)
        try:
            output.path.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, OPEN_FLAGS | os.O_CREAT, 0o644)
            try:
                self._lock_file()
                self._load_rows(header)
                if retry and self.state.failed_count:
                    self._drop_failed(retry)
                    self._load_rows(header)
                output.recover(self.state.masks)
            except BaseException:
                os.close(self.fd)
                raise
        except OSError as error:
            raise write_error(str(output.path), error) from error

    def append(self, row: ManifestRow) -> None:
        """Append a row in one write. Raises: RunError; a partly written line is removed again."""
        fields = {name: value for name, value in asdict(row).items() if value is not None}
        with self.lock:
            if not self.has_new_rows:  # the Parquet table, if it exists, has every row
                (self.output.path / PARQUET_FILE).unlink(missing_ok=True)
            self.has_new_rows = True
            self._append_line(fields)

    def close(self, complete: bool) -> None:
        """Release the folder. After a complete run, also write the Parquet table. Raises: RunError."""
        try:
            if not self.has_new_rows and not self.state.paths:  # nothing was done: leave no trace
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
            self.fd = -1  # the number may soon belong to another file

    def _lock_file(self) -> None:
        """Keep a second run out of the folder: both would segment every image. The lock ends with the process."""
        try:
            lock_file(self.fd)
        except BlockingIOError as error:
            raise RunError(
                f"Another run is writing to {self.output.path}. Wait until it ends, or choose another --out."
            ) from error

    def _load_rows(self, header: dict[str, Any]) -> None:
        """Read the rows, check the header or write it, and go to the end."""
        self.state, end = ManifestState(), 0
        for line_end, row in _read_lines(self.path):
            end = line_end
            if "path" in row:
                self.state.add(row)
            else:
                check_header(row, header, str(self.output.path))
        os.ftruncate(self.fd, end)  # drop a line that was cut off by a kill
        os.lseek(self.fd, end, os.SEEK_SET)
        if end == 0:
            self._append_line(header)

    def _drop_failed(self, retry: Set[str]) -> None:
        """Replace the file by one without the rows with errors of the images in `retry`."""
        with atomic_writer(self.path) as file:
            for _, row in _read_lines(self.path):
                if row.get("error") is None or row["path"] not in retry:
                    file.write(_to_json_line(row))
            (self.output.path / PARQUET_FILE).unlink(missing_ok=True)
        old, self.fd = self.fd, os.open(self.path, OPEN_FLAGS)
        os.close(old)
        self._lock_file()

    def _append_line(self, row: dict[str, Any]) -> None:
        start = os.lseek(self.fd, 0, os.SEEK_CUR)
        data = memoryview(_to_json_line(row))
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError as error:
            os.ftruncate(self.fd, start)
            os.lseek(self.fd, start, os.SEEK_SET)
            raise write_error(str(self.path), error) from error


class ParquetManifest:
    """The manifest of an object store."""

    def __init__(self, output: ObjectStore, header: dict[str, Any], retry: Set[str] = frozenset()) -> None:
        """As JsonlManifest, but a second run in the same output is detected only when a part is written."""
        self.output, self.state = output, ManifestState()
        self.known_parts: set[str] = set()
        self._start_part()
        self.lock, self.has_new_rows = threading.Lock(), False
        with translate_store_errors(output.url):
            output.fs.invalidate_cache()
            if output.fs.exists(f"{output.path}/{HEADER_FILE}"):
                check_header(json.loads(output.fs.cat_file(f"{output.path}/{HEADER_FILE}")), header, output.url)
                for name, rows in self._read_parts():
                    kept = [row for row in rows if row["error"] is None or row["path"] not in retry]
                    if len(kept) < len(rows):
                        output.put(name, to_parquet_bytes(kept))
                    for row in kept:
                        self.state.add(row)
            elif output.fs.exists(output.path) and output.fs.ls(output.path):
                raise foreign_folder_error(output.url, HEADER_FILE)
            else:
                output.put(HEADER_FILE, json.dumps(header).encode())

    def append(self, row: ManifestRow) -> None:
        """Add a row. Rows are written in parts, by their number or age. Raises: RunError."""
        with self.lock:
            self.pending.append(asdict(row))
            if len(self.pending) >= PART_ROWS or time.monotonic() - self.part_started > PART_SECONDS:
                self._flush()

    def close(self, complete: bool) -> None:
        """Write the pending rows. Raises: RunError."""
        with self.lock:
            self._flush()
            if not self.has_new_rows and not self.state.paths:  # nothing was done: leave no trace
                with translate_store_errors(self.output.url):
                    self.output.fs.rm(f"{self.output.path}/{HEADER_FILE}")

    def _flush(self) -> None:
        if self.pending:
            self._check_no_other_run()
            self.has_new_rows = True
            self.known_parts.add(self.part_name)
            self.output.put(self.part_name, to_parquet_bytes(self.pending))
        self._start_part()

    def _check_no_other_run(self) -> None:
        """A store has no locks, but shows parts that this run did not write. Raises: RunError."""
        with translate_store_errors(self.output.url):
            self.output.fs.invalidate_cache(f"{self.output.path}/{MANIFEST}")
            foreign = set(self._list_parts()) - self.known_parts
        if foreign:
            self.pending.clear()
            raise RunError(
                f"Another run is writing to {self.output.url}, so this one stops. Once the other has ended, the same command "
                "resumes."
            )

    def _start_part(self) -> None:
        # The name stays until the part is written: if a request succeeded but its response was lost, the retry writes the
        # same part again, and no row twice.
        self.pending: list[dict[str, Any]] = []
        self.part_name, self.part_started = PART_PATTERN.format(time.time_ns()), time.monotonic()

    def _read_parts(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The name and the rows of each part."""
        for name in self._list_parts():
            self.known_parts.add(name)
            yield name, read_parquet_bytes(self.output.fs.cat_file(f"{self.output.path}/{name}"))

    def _list_parts(self) -> list[str]:
        """The names of the parts in the store, the oldest first."""
        folder = self.output.path
        return [
            path.removeprefix(f"{folder}/") for path in sorted(self.output.fs.glob(f"{folder}/manifest/part-*.parquet"))
        ]


def open_manifest(
    output: FolderStore | ObjectStore, header: dict[str, Any], retry: Set[str] = frozenset()
) -> "JsonlManifest | ParquetManifest":
    """Open or create the manifest of an output, and drop the rows with errors of the images in `retry`.

    Raises: RunError for an output with other files, or with masks of other options.
    """
    return (
        JsonlManifest(output, header, retry)
        if isinstance(output, FolderStore)
        else ParquetManifest(output, header, retry)
    )


def check_header(found: dict[str, Any], header: dict[str, Any], output: str) -> None:
    """Check that the masks of an output have the options of this run. Raises: RunError."""
    for name, requested in header.items():
        existing = found.get(name)
        if existing != requested:
            raise RunError(
                f"{output} contains masks with {name} {_format_value(existing)}; this run has {_format_value(requested)}. "
                "Use the same options, or choose another --out."
            )


def foreign_folder_error(output: str, manifest: str) -> RunError:
    """The error of an output that contains other files."""
    return RunError(
        f"{output} is not empty and has no {manifest} of an earlier run, so nothing was written. Choose another --out."
    )


def _format_value(value: Any) -> str:
    return ",".join(map(str, value)) or "unset" if isinstance(value, list) else quoted(value)


def _to_json_line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each complete line of a manifest, the header first, with the offset of its end in bytes."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RunError(
                    f"{path} is not a manifest of maskserve predict ({first_line(error)}). Choose another --out."
                ) from error
            yield end, row
