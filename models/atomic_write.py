"""Writes files whole or not at all."""

import os
from pathlib import Path


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write `content` to a temporary file beside `file`, flush it to the disk, and rename it to `file`.

    Where the process is killed or the disk is full, the old file stays as it was. Creates missing parent folders.
    Raises: OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
