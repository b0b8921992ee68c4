"""Reads the bytes of image files, but not of what only has an image's name: pipes, devices, and files of many gigabytes."""

import stat
from pathlib import Path

from models.errors import DataError

MAX_FILE_BYTES = 1 << 30


def read_image_file(path: Path) -> bytes:
    """The bytes of a file. Raises: OSError; DataError, which names the file, if it is not a regular file or too large."""
    check_file_size(str(path), check_is_file(path))
    return path.read_bytes()


def check_is_file(path: Path) -> int:
    """The size of a file, in bytes. Raises: OSError; DataError, which names the file, for a pipe or a device."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a folder cannot be opened
        raise DataError(f"{path} is not a file but a pipe or a device; expected an image file.")
    return status.st_size


def check_file_size(address: str, size: int) -> None:
    """Raises: DataError for more bytes than any image has: they would fill the memory."""
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{address} has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}. Remove it, or save it smaller."
        )
