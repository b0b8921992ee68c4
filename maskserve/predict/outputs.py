"""Writes masks, each whole or not at all, even after a kill -9 or on a full disk.

In a folder, a mask is first written under `.unfinished`. Once the manifest has its row, it is moved to its final path in one
step. So a row without a mask is a move that the next run completes, and a file without a row was not finished. An object store
writes an object whole or not at all; there the row follows the mask.
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
    """Where masks are written. `name` is a path below it, with /."""

    def put(self, name: str, data: bytes) -> None:
        """Write a mask; a folder needs `publish` too. Raises: RunError, and leaves nothing half-written."""
        ...

    def writable_path(self, name: str) -> AbstractContextManager[Path]:
        """As `put`, for a file that is written in pieces: a path to write, which is kept if the block succeeds."""
        ...

    def publish(self, name: str) -> None:
        """Move a mask that was written to its final path."""
        ...


class FolderStore:
    """A folder of this machine, or one that all machines of a cluster share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staging = path / STAGING_FOLDER

    def put(self, name: str, data: bytes) -> None:
        """Write a mask under `.unfinished`, without flushing it to the disk. Raises: RunError, as for a full disk."""
        with self.writable_path(name) as file:
            file.write_bytes(data)

    @contextmanager
    def writable_path(self, name: str) -> Iterator[Path]:
        """A path under `.unfinished`. Raises: RunError, as for a full disk."""
        file = self.staging / _staging_name(name)
        try:
            yield file
        except BaseException as error:
            with suppress(OSError):
                file.unlink()
            if isinstance(error, OSError):
                raise write_error(str(self.path / name), error) from error
            raise

    def publish(self, name: str) -> None:
        """Move a mask to its final path in one step. Raises: RunError."""
        target = self.path / name
        try:
            try:
                (self.staging / _staging_name(name)).replace(target)
            except FileNotFoundError:  # its folder does not exist yet
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.staging / _staging_name(name)).replace(target)
        except OSError as error:
            raise write_error(str(target), error) from error

    def recover(self, names: Iterable[str]) -> None:
        """After a killed run: publish the masks of these names, all in the manifest, and delete other files in staging."""
        self.staging.mkdir(parents=True, exist_ok=True)
        staged = {file.name for file in self.staging.iterdir()}
        for name in names if staged else ():
            if _staging_name(name) in staged:
                self.publish(name)
        for file in self.staging.iterdir():
            file.unlink()

    def close(self) -> None:
        """Remove the staging folder."""
        shutil.rmtree(self.staging, ignore_errors=True)


class ObjectStore:
    """A store that fsspec writes to, such as S3, which writes an object whole or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with translate_store_errors(url):
            self.fs, self.path = open_filesystem(url)

    def put(self, name: str, data: bytes) -> None:
        """Write an object. Raises: RunError."""
        with translate_store_errors(f"{self.url}/{name}"):
            self.fs.pipe_file(f"{self.path}/{name}", data)

    @contextmanager
    def writable_path(self, name: str) -> Iterator[Path]:
        """A local file that is uploaded when the block succeeds. Raises: RunError."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mask"
            yield file
            with translate_store_errors(f"{self.url}/{name}"):
                self.fs.put_file(str(file), f"{self.path}/{name}")

    def publish(self, name: str) -> None:
        """Do nothing: an object is written to its final path."""


def write_error(path: str, error: OSError) -> RunError:
    """The error of a disk that is full, or a folder that cannot be written to."""
    return RunError(
        f"{path} cannot be written ({error.strerror or error}). Once this is fixed, the same command resumes."
    )


def _staging_name(name: str) -> str:
    # Of fixed length: the whole path may be longer than a file name can be.
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
