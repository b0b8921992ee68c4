"""The manifest: a row a picture, with its mask's size and classes or the reason why there is none.

It is also what a run that was killed goes on from, so that no picture gets two rows. In a folder it is `manifest.jsonl`, a
line for what all rows have in common and a line a picture, each written as soon as the mask is (`targets.py`); at the end
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

from maskserve.predict.config import installed
from maskserve.predict.inputs import reached
from maskserve.predict.outputs import Folder, Store, unwritable
from maskserve.predict.parquet import as_bytes, rows_of, write
from models.errors import RunError, first_line

MANIFEST = "manifest"
LINES, TABLE = f"{MANIFEST}.jsonl", f"{MANIFEST}.parquet"
PARTS, SEAL = MANIFEST + "/part-{:020d}.parquet", f"{MANIFEST}/_job.json"
OPEN = os.O_RDWR | getattr(os, "O_BINARY", 0)  # Windows would else write other line ends
PART_ROWS, PART_SECONDS = 1000, 20.0  # a part is written when it has so many rows or is so old


@dataclass(frozen=True)
class Row:
    """What became of a picture."""

    path: str  # its address
    mask: str | None = None  # the mask's file below the target; none for parquet, or where it failed
    error: str | None = None  # one sentence; none where it is done
    height: int | None = None  # pixels, of the mask and the upright picture
    width: int | None = None
    # Of each class that is there, by label: {"label", "name", "share" of all pixels 0..1} and for parquet "rle": COCO's
    # compressed counts. Void makes up the rest. None where the format does not tell.
    classes: list[dict[str, Any]] | None = None
    milliseconds: float | None = None  # of the inference, or of the request to a service
    model: str | None = None  # name and short hash of the bundle


@dataclass
class Known:
    """What a manifest held when it was opened."""

    done: set[str] = field(default_factory=set)  # addresses of pictures that have a row
    masks: set[str] = field(default_factory=set)  # places that are taken
    failed: int = 0  # rows with an error

    def add(self, row: dict[str, Any]) -> None:
        """Take up a row."""
        self.done.add(row["path"])
        if row.get("mask"):
            self.masks.add(row["mask"])
        self.failed += row.get("error") is not None


class Lines:
    """The manifest of a folder."""

    def __init__(self, target: Folder, sealed: dict[str, Any], again: Set[str] = frozenset()) -> None:
        """Open or begin it; of the pictures in `again` those that failed have no row any more.

        Raises: RunError for a folder that is not ours, masks that were asked for otherwise, or another run at work.
        """
        self.target, self.known = target, Known()
        self.path = target.path / LINES
        self.lock, self.grown = threading.Lock(), False
        begun = self.path.is_file()
        if not begun and target.path.is_dir() and any(target.path.iterdir()):
            raise foreign(str(target.path), self.path.name)
        try:
            target.path.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, OPEN | os.O_CREAT, 0o644)
            try:
                self._claim()
                self._take_up(sealed)
                if again and self.known.failed:
                    self._drop_failed(again)
                    self._take_up(sealed)
                target.recover(self.known.masks)
            except BaseException:
                os.close(self.file)
                raise
        except OSError as error:
            raise unwritable(str(target.path), error) from error

    def append(self, row: Row) -> None:
        """Add a row, in one write. Raises: RunError; a line that was half-written is taken back."""
        kept = {name: value for name, value in asdict(row).items() if value is not None}
        with self.lock:
            if not self.grown:  # where the table is there, it has every row
                (self.target.path / TABLE).unlink(missing_ok=True)
            self.grown = True
            self._write(kept)

    def close(self, complete: bool) -> None:
        """Let go, last of all; where all is done, leave the Parquet table too. Raises: RunError."""
        try:
            if not self.grown and not self.known.done:  # nothing came of it
                self.path.unlink()
                self.target.close()
                with suppress(OSError):
                    self.target.path.rmdir()
            elif complete:
                if installed("pyarrow") and not (self.target.path / TABLE).exists():
                    with self.target.file(TABLE) as file:
                        write(file, (row for _, row in _rows(self.path) if "path" in row))
                    self.target.publish(TABLE)
                self.target.close()
        finally:
            os.close(self.file)
            self.file = -1  # the number may soon be another file's

    def _claim(self) -> None:
        """Two runs in one folder would label every picture twice. The lock goes with the process, however that ends."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{self.target.path}: another run writes there; wait for its end, or choose another --out."
            ) from error

    def _take_up(self, sealed: dict[str, Any]) -> None:
        self.known, end = Known(), 0
        for place, row in _rows(self.path):
            end = place
            if "path" in row:
                self.known.add(row)
            else:
                check_seal(row, sealed, str(self.target.path))
        os.ftruncate(self.file, end)  # of a line that was torn by a kill nothing else is known
        os.lseek(self.file, end, os.SEEK_SET)
        if end == 0:
            self._write(sealed)

    def _drop_failed(self, again: Set[str]) -> None:
        """Write it anew without them, beside it, and put that in its place."""
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as file:
            for _, row in _rows(self.path):
                if row.get("error") is None or row["path"] not in again:
                    file.write(_line(row))
        (self.target.path / TABLE).unlink(missing_ok=True)
        fresh.replace(self.path)
        old, self.file = self.file, os.open(self.path, OPEN)
        os.close(old)
        self._claim()

    def _write(self, row: dict[str, Any]) -> None:
        start = os.lseek(self.file, 0, os.SEEK_CUR)
        data = memoryview(_line(row).encode())
        try:
            while data:
                data = data[os.write(self.file, data) :]
        except OSError as error:
            os.ftruncate(self.file, start)
            os.lseek(self.file, start, os.SEEK_SET)
            raise unwritable(str(self.path), error) from error


class Parts:
    """The manifest of an object store."""

    def __init__(self, target: Store, sealed: dict[str, Any], again: Set[str] = frozenset()) -> None:
        """As `Lines`; two runs at once are not seen here."""
        self.target, self.known = target, Known()
        self._begin()
        self.lock, self.grown = threading.Lock(), False
        with reached(target.url):
            target.system.invalidate_cache()
            if target.system.exists(f"{target.path}/{SEAL}"):
                check_seal(json.loads(target.system.cat_file(f"{target.path}/{SEAL}")), sealed, target.url)
                for name, rows in self._parts():
                    kept = [row for row in rows if row["error"] is None or row["path"] not in again]
                    if len(kept) < len(rows):
                        target.put(name, as_bytes(kept))
                    for row in kept:
                        self.known.add(row)
            elif target.system.exists(target.path) and target.system.ls(target.path):
                raise foreign(target.url, SEAL)
            else:
                target.put(SEAL, json.dumps(sealed).encode())

    def append(self, row: Row) -> None:
        """Add a row; every so many of them, or seconds, they are written. Raises: RunError."""
        with self.lock:
            self.waiting.append(asdict(row))
            if len(self.waiting) >= PART_ROWS or time.monotonic() - self.since > PART_SECONDS:
                self._flush()

    def close(self, complete: bool) -> None:
        """Write what is left. Raises: RunError."""
        with self.lock:
            self._flush()
            if not self.grown and not self.known.done:  # nothing came of it
                with reached(self.target.url):
                    self.target.system.rm(f"{self.target.path}/{SEAL}")

    def _flush(self) -> None:
        if self.waiting:
            self.grown = True
            self.target.put(self.part, as_bytes(self.waiting))
        self._begin()

    def _begin(self) -> None:
        # The name is kept until the part is written: where no answer came to a request that was carried out, the same
        # part is written again, and no row twice.
        self.waiting: list[dict[str, Any]] = []
        self.part, self.since = PARTS.format(time.time_ns()), time.monotonic()

    def _parts(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The parts that are there, by name, each with its rows."""
        system, path = self.target.system, self.target.path
        for place in sorted(system.glob(f"{path}/manifest/part-*.parquet")):
            yield place.removeprefix(f"{path}/"), rows_of(system.cat_file(place))


def open_manifest(target: Folder | Store, sealed: dict[str, Any], again: Set[str] = frozenset()) -> "Lines | Parts":
    """The manifest of a target, its own or a new one; of the pictures in `again` those that failed have no row any more.

    Raises: RunError for a target that is not ours, or whose masks were asked for otherwise.
    """
    return Lines(target, sealed, again) if isinstance(target, Folder) else Parts(target, sealed, again)


def check_seal(found: dict[str, Any], sealed: dict[str, Any], target: str) -> None:
    """Raises: RunError where the masks of a target were asked for otherwise."""
    for name, now in sealed.items():
        was = found.get(name)
        if was != now:
            raise RunError(
                f"{target} holds masks of {name} {_said(was)}, and now {_said(now)} is asked for. "
                "Ask as before, or choose another --out."
            )


def foreign(target: str, manifest: str) -> RunError:
    """The sentence for a place that holds what no run has put there."""
    return RunError(
        f"{target} is not empty and has no {manifest} of an earlier run: nothing is overwritten. Choose another --out."
    )


def _said(value: Any) -> str:
    return ",".join(str(one) for one in value) or "unset" if isinstance(value, list) else repr(value)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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
