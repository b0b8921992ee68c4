"""Writes files whole or not at all, and explains why a file cannot be written."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write `content` as in `atomic_writer`. Raises: OSError."""
    with atomic_writer(file) as stream:
        stream.write(content)


@contextmanager
def atomic_writer(file: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary file beside `file`, which is flushed to the disk and renamed to `file` when the block succeeds.

    If the process is killed, the block fails or the disk is full, the old file is unchanged. Creates missing parent folders.
    Raises: OSError that names the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.part")
    try:
        with name_disk_full(file), draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def name_disk_full(target: Path) -> Iterator[None]:
    """A full disk in this block becomes an OSError that names `target`; libraries hide it in errors of their own."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk or the user's quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def check_writable(folder: Path) -> None:
    """Check that files can be created in `folder`, or the folder itself if it is missing. Raises: OSError."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass
