"""Writes files whole or not at all."""

import os
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
    Raises: OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.part")
    try:
        with draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
