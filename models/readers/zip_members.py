"""Reads the files of a zip in memory, within limits that are checked before anything is inflated."""

import io
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, Protocol, TypeVar

from models.errors import CorruptImageError, ImageError, UnsupportedFormatError

Result = TypeVar("Result")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others cost far more time for each byte that they unpack to


class Readable(Protocol):
    """A file that is open for reading."""

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes; by default all that are left."""
        ...


class _Member:
    """A file of a zip, of the size that the zip's table states: `ZipExtFile.read()` inflates all there is before it cuts it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(content)
        return content


def read_members(
    data: bytes,
    check: Callable[[Sequence[zipfile.ZipInfo]], None],
    read: Callable[[str, Readable], Result],
    describe_error: Callable[[Exception], str],
) -> dict[str, Result]:
    """What `read(name, file)` returns for each file of a zip, by name; a file is inflated as far as it is read.

    Args:
        data: the bytes of the zip.
        check: raises an ImageError for names, numbers or sizes of files beyond the limits, by the zip's table.
        read: called for each file, in the order of the table; it gets no more bytes than the table states.
        describe_error: the message for a zip that cannot be read, from the library's error.

    Raises: ImageError; MemoryError.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            check(members)
            if any(member.compress_type not in METHODS for member in members):
                raise UnsupportedFormatError("The zip is compressed by another method than deflate. Pack it again.")
            found = {}
            for member in members:
                with archive.open(member) as file:
                    found[member.filename] = read(member.filename, _Member(file, member.file_size))
            return found
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # zipfile and its codecs raise several types
        raise CorruptImageError(describe_error(error)) from error
