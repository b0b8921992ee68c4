"""A run's files: where they stand, and how they are written: whole, or not at all."""

import os
from pathlib import Path

BEST_CHECKPOINT, LAST_CHECKPOINT = Path("checkpoints") / "best.ckpt", Path("checkpoints") / "last.ckpt"


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write beside the file's place, to the disk's own satisfaction, and only then put it there.

    A process killed half-way, or a disk that is full, leaves the old one. Raises: OSError.
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
