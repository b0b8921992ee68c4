"""Limits on what zip and tar files unpack to, checked before anything is unpacked.

Images hardly compress, so that an archive which unpacks to hundreds of times its size is made to fill a disk or the memory.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from models.errors import DataError

# Neither one member nor all of them together may unpack to more bytes than the larger of these two.
MIN_BOMB_BYTES, MAX_UNPACKED_RATIO = 256 << 20, 200
MAX_TAR_HEADER_BYTES = 1 << 20  # of a name or of attributes (pax), which tarfile reads into memory; names have 4 KB

_TAR_COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


def check_unpacked_size(name: str, packed: int, unpacked: int) -> None:
    """Check the sizes, in bytes, of an archive or a member. Raises: DataError, which begins with `name`."""
    if unpacked > max(MIN_BOMB_BYTES, MAX_UNPACKED_RATIO * packed):
        raise DataError(
            f"{name} would unpack to {unpacked / 1e6:,.0f} MB from {packed / 1e3:,.0f} kB, more than {MAX_UNPACKED_RATIO} "
            "times its size. Unpack it yourself if you trust it."
        )


def check_zip_total(name: str, archive: zipfile.ZipFile) -> None:
    """Check a zip file's table. Raises: DataError for members that share their bytes, or are too large together."""
    members = archive.infolist()
    packed, unpacked = sum(info.compress_size for info in members), sum(info.file_size for info in members)
    if packed > archive.start_dir:  # of a real one, members and their headers fill the file
        raise DataError(
            f"{name} has members that share their bytes: they would unpack to {unpacked / 1e6:,.0f} MB from "
            f"{archive.start_dir / 1e3:,.0f} kB. Pack it again."
        )
    check_unpacked_size(name, packed, unpacked)


def check_zip_member(name: str, member: zipfile.ZipInfo) -> None:
    """Check one member; `name` is its address for the user. Raises: DataError."""
    check_unpacked_size(name, member.compress_size, member.file_size)


@contextmanager
def open_tar(file: Path) -> Iterator[tuple[tarfile.TarFile, list[tarfile.TarInfo]]]:
    """Open a tar file, compressed or not, and list its members. What it unpacks to is limited while it is read.

    Raises: DataError; OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError.
    """
    packed = file.stat().st_size
    with ExitStack() as stack:
        with file.open("rb") as compressed:
            magic = compressed.read(6)
        opener = next((opener for start, opener in _TAR_COMPRESSIONS.items() if magic.startswith(start)), None)
        plain: IO[bytes] = stack.enter_context(opener(file) if opener else file.open("rb"))
        archive = stack.enter_context(tarfile.open(fileobj=_LimitedHeaders(plain), mode="r:"))
        members, unpacked = [], 0
        for member in archive:  # the next header is found by decompressing this member
            members.append(member)
            unpacked += tarfile.BLOCKSIZE + member.size
            check_unpacked_size(str(file), packed, unpacked)
        yield archive, members


class _LimitedHeaders(io.RawIOBase):
    """A file that refuses to read much at once: tarfile copies members in small pieces, and reads only headers whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
