"""Where masks go: each is there whole or not at all, also after a kill -9 or on a full disk.

In a folder, a mask is written under `.unfinished` first and moved to its place in one step, once the manifest has its row:
a row without its mask is then a move that is still to be made, and a file without its row was never finished. An object
store takes an object whole or not at all by itself; there the row comes after it.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from maskserve.predict.inputs import open_filesystem, translate_store_errors
from models.errors import RunError

STAGING_FOLDER = ".unfinished"


class OutputStore(Protocol):
    """What masks are written to; places are paths below it, with /."""

    def put(self, place: str, data: bytes) -> None:
        """Write a mask, not yet at its place where that can be had. Raises: RunError; nothing half-written is left."""
        ...

    def writable_path(self, place: str) -> AbstractContextManager[Path]:
        """As `put`, for who writes a file in pieces: a path to write, whose content counts when the block ends well."""
        ...

    def publish(self, place: str) -> None:
        """Move a mask that was put to its place."""
        ...


class FolderStore:
    """A folder of this machine, or one that all machines of a cluster see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staging = path / STAGING_FOLDER

    def put(self, place: str, data: bytes) -> None:
        """Write under `.unfinished`. Raises: RunError for a full disk and the like."""
        with self.writable_path(place) as file:
            file.write_bytes(data)

    @contextmanager
    def writable_path(self, place: str) -> Iterator[Path]:
        """A path under `.unfinished`. Raises: RunError for a full disk and the like."""
        file = self.staging / _staging_name(place)
        try:
            yield file
        except BaseException as error:
            with suppress(OSError):
                file.unlink()
            if isinstance(error, OSError):
                raise write_error(str(self.path / place), error) from error
            raise

    def publish(self, place: str) -> None:
        """Move it to its place, in one step. Raises: RunError."""
        final = self.path / place
        try:
            try:
                (self.staging / _staging_name(place)).replace(final)
            except FileNotFoundError:  # its folder is new
                final.parent.mkdir(parents=True, exist_ok=True)
                (self.staging / _staging_name(place)).replace(final)
        except OSError as error:
            raise write_error(str(final), error) from error

    def recover(self, places: Iterable[str]) -> None:
        """After a run that was killed: make the moves to these places, all in the manifest; throw away other leftovers."""
        self.staging.mkdir(parents=True, exist_ok=True)
        left = {file.name for file in self.staging.iterdir()}
        for place in places if left else ():
            if _staging_name(place) in left:
                self.publish(place)
        for file in self.staging.iterdir():
            file.unlink()

    def close(self) -> None:
        """Nothing is under way any more."""
        shutil.rmtree(self.staging, ignore_errors=True)


class ObjectStore:
    """What fsspec writes to: S3 and its like, which take an object whole or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with translate_store_errors(url):
            self.fs, self.path = open_filesystem(url)

    def put(self, place: str, data: bytes) -> None:
        """Write the object. Raises: RunError."""
        with translate_store_errors(f"{self.url}/{place}"):
            self.fs.pipe_file(f"{self.path}/{place}", data)

    @contextmanager
    def writable_path(self, place: str) -> Iterator[Path]:
        """A file of this machine that becomes the object. Raises: RunError."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mask"
            yield file
            with translate_store_errors(f"{self.url}/{place}"):
                self.fs.put_file(str(file), f"{self.path}/{place}")

    def publish(self, place: str) -> None:
        """It is at its place."""


def write_error(place: str, error: OSError) -> RunError:
    """The sentence for a disk that is full, or not ours to write to."""
    return RunError(
        f"{place} cannot be written ({error.strerror or error}). Once that is mended, the same command goes on from here."
    )


def _staging_name(place: str) -> str:
    # A name of fixed length, for the whole path with its slashes may be longer than a name can be.
    return hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
