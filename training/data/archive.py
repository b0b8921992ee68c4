"""Data sets in a zip or tar file: unpacked once into the user's cache folder, and read from there."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from models.archive_limits import check_zip_member, check_zip_total, open_tar
from models.errors import DataError, quoted
from training.data.unpacked import unpack_once

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
ENCRYPTED = 1  # the flag of an entry in a zip file


def is_archive(file: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return file.name.lower().endswith(ARCHIVE_SUFFIXES) and file.is_file()


def unpack(file: Path) -> Path:
    """The folder with the content of an archive; it is unpacked again if the archive changes.

    Raises: DataError for a broken or encrypted archive, entries outside the folder, entries that unpack to hundreds of times
    their size (`models/archive_limits.py`), or too little disk space.
    """
    return unpack_once(file, "archives", lambda folder: _unpack_into(file, folder), "unpack it yourself")


def _unpack_into(file: Path, folder: Path) -> None:
    """Raises: DataError, OSError."""
    try:
        if file.name.lower().endswith(".zip"):
            _unpack_zip(file, folder)
        else:
            _unpack_tar(file, folder)
    except (*BROKEN, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{file}: the archive is broken, or has entries that must not be unpacked ({error}). Copy or download it again, or "
            "unpack it yourself."
        ) from error


def _unpack_zip(file: Path, draft: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        check_zip_total(str(file), archive)
        check_space(file, sum(entry.file_size for entry in entries), draft)
        for entry in entries:
            if entry.flag_bits & ENCRYPTED:
                raise DataError(f"{file} is encrypted; unpack it yourself.")
            _check_name(entry.filename)
            check_zip_member(f"{file}: {entry.filename}", entry)
        archive.extractall(draft)


def _unpack_tar(file: Path, draft: Path) -> None:
    with open_tar(file) as (archive, members):
        check_space(file, sum(member.size for member in members), draft)
        # The filter refuses names outside the folder and links out of it, and drops owners and modes (PEP 706).
        archive.extractall(draft, members, filter="data")


def _check_name(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the entry {quoted(name)} leaves the folder")


def check_space(file: Path, size: int, draft: Path) -> None:
    """Raises: DataError if the disk of the folder `draft` has not `size` bytes free to unpack `file`."""
    free = shutil.disk_usage(draft).free
    if size > free:
        raise DataError(f"{file} holds {size:,} bytes, but {draft.parent} has only {free:,} free; unpack it elsewhere.")
