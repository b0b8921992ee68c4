"""Which images there are, and their bytes. What is on this machine is read without fsspec; all else through it."""

import glob
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from models.errors import ConfigError, DataError, MaskserveError, RunError, first_line
from models.imaging.decode import IMAGE_SUFFIXES

ARCHIVE_SUFFIX = ".zip"
GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class InputRoot:
    """A place below which images lie: an absolute folder, or a URL for fsspec, whose chains are in order `a://x::b://y`."""

    address: str

    @property
    def is_remote(self) -> bool:
        """Whether fsspec reads it."""
        return "://" in self.address

    def full_address(self, name: str) -> str:
        """The address of an image, by its name below the root."""
        head, chain, rest = self.address.partition("::")
        return f"{head}{'' if head.endswith('/') else '/'}{name}{chain}{rest}"

    def read(self, name: str) -> bytes:
        """An image's bytes. Raises: DataError where it cannot be opened; RunError where the store or folder cannot be."""
        if not self.is_remote:
            try:
                return Path(self.address, name).read_bytes()
            except OSError as error:
                if not Path(self.address).is_dir():
                    raise RunError(
                        f"{self.address} is not there any more; the same command goes on once it is."
                    ) from error
                raise DataError(f"{self.full_address(name)}: cannot be opened ({error.strerror}).") from error
        with self._open_remote(name) as (system, place):
            data: bytes = system.cat_file(place)
            return data

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """An image as a file of this machine, for who reads parts of it. Raises: as `read`."""
        if not self.is_remote:
            yield Path(self.address, name)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / PurePosixPath(name).name
            copy.write_bytes(b"")
            with self._open_remote(name) as (system, place):
                system.get_file(place, str(copy))
            yield copy

    @contextmanager
    def _open_remote(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system of an image, and its place there. Raises: DataError, RunError for what the block meets."""
        address = self.full_address(name)
        with translate_store_errors(address):
            system, above = open_filesystem(self.address)
            with translate_item_errors(address):
                yield system, f"{above}/{name}" if above else name


class InputImage(NamedTuple):
    """One of the images: its root is shared with others, for there may be a million."""

    root: InputRoot
    name: str  # below the root, with /: also the place of its mask below the target

    @property
    def path(self) -> str:
        """Its whole address, by which the manifest knows it: text also where the name is no UTF-8."""
        return self.root.full_address(self.name).encode("utf-8", "backslashreplace").decode()


def find_images(words: Iterable[str], leave: str = "") -> Iterator[InputImage]:
    """The images that the words name, each folder's in order; what lies below `leave`, a folder or URL, is none of them.

    Raises: DataError for a word that names no image, RunError for a store that cannot be reached.
    """
    for word in (word.removeprefix("file://") for word in words):
        root, names = (
            _find_remote(word, leave) if _is_remote(word) else _find_local(word, Path(leave) if leave else None)
        )
        if not names:
            raise DataError(f"{word} holds no image; wanted are files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        for name in names:
            if PurePosixPath(name).is_absolute() or {"..", "."} & set(name.split("/")):
                raise DataError(f"{word} holds a file named {name!r}, whose mask would lie outside the target.")
            yield InputImage(root, name)


def _is_remote(word: str) -> bool:
    return "://" in word or "::" in word or (word.lower().endswith(ARCHIVE_SUFFIX) and Path(word).is_file())


def _find_local(word: str, leave: Path | None) -> tuple[InputRoot, list[str]]:
    path = Path(os.path.abspath(word))
    if path.is_dir():
        return InputRoot(str(path)), [place.relative_to(path).as_posix() for place in _list_images(path, leave)]
    if path.is_file():
        return InputRoot(str(path.parent)), [path.name]
    if not GLOB_CHARACTERS & set(word):
        raise DataError(f"{word} is not there; name images, folders, globs, zip files or URLs of them.")
    top = Path(*_parts_before_glob(path.parts))
    found = (Path(name) for name in glob.iglob(str(path), recursive=True))
    kept = sorted(place for place in found if _is_image(place.name) and place.is_file() and not _is_below(place, leave))
    return InputRoot(str(top)), [place.relative_to(top).as_posix() for place in kept]


def _list_images(folder: Path, leave: Path | None) -> list[Path]:
    found = []
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(above, name) != leave]
        found += [Path(above, name) for name in files if _is_image(name)]
    return sorted(found)


def _is_below(place: Path, folder: Path | None) -> bool:
    return folder is not None and place.is_relative_to(folder)


def _is_image(name: str) -> bool:
    """By its ending; what a Mac keeps beside an image has the same."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.rpartition("/")[2].startswith("._")


def _find_remote(word: str, leave: str) -> tuple[InputRoot, list[str]]:
    url = word if "://" in word or "::" in word else os.path.abspath(word)
    if url.lower().endswith(ARCHIVE_SUFFIX) and "::" not in url:
        url = f"zip://::{url}"
    with translate_store_errors(word):
        head, chain, rest = url.partition("::")
        scheme, _, path = head.partition("://")
        parts = _parts_before_glob(path.split("/"))
        pattern = len(parts) < len(path.split("/"))
        top = f"{scheme}://{'/'.join(parts)}"
        system, above = open_filesystem(top + chain + rest)
        if pattern:
            names = system.glob(_url_path(url))
        elif above and system.isfile(above):
            top, above = f"{scheme}://{'/'.join(parts[:-1])}", above.rpartition("/")[0]
            return InputRoot(top + chain + rest), [parts[-1]]
        else:
            names = system.find(above)
        root = InputRoot(top + chain + rest)
        names = [name.removeprefix(above).lstrip("/") for name in sorted(names) if _is_image(name)]
        return root, [name for name in names if not (leave and root.full_address(name).startswith(f"{leave}/"))]


def _parts_before_glob(parts: "tuple[str, ...] | list[str]") -> list[str]:
    """A path's parts before the first that is a pattern."""
    first = next((place for place, part in enumerate(parts) if GLOB_CHARACTERS & set(part)), len(parts))
    return list(parts[:first])


def _url_path(url: str) -> str:
    """A URL's path as its file system writes it, pattern and all."""
    return str(open_filesystem(url)[1])


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. Listings are not kept, but for an archive's: a run may go on for days."""
    return _open_archive(url) if "::" in url else _open_filesystem(url)


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    system, path = fsspec.url_to_fs(url)
    return system, path.rstrip("/")


# To open an archive is to read its whole table: by each image of 50,000, that took 0.4 s. Its reads are locked.
_open_archive = lru_cache(maxsize=16)(_open_filesystem)


@contextmanager
def translate_item_errors(address: str) -> Iterator[None]:
    """What is wrong with one object or one member of an archive alone. Raises: DataError; the rest passes."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{address}: is not there any more.") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{address}: cannot be unpacked ({first_line(error)}).") from error
    except RuntimeError as error:  # zipfile's word for it
        if "encrypted" not in str(error):
            raise
        raise DataError(f"{address}: is encrypted.") from error
    except OSError as error:  # of S3: this object is not for us, or it is archived
        code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
        if code not in ("AccessDenied", "InvalidObjectState"):
            raise
        raise DataError(f"{address}: is not given out ({code}).") from error


@contextmanager
def translate_store_errors(address: str) -> Iterator[None]:
    """What a store can answer, in the house's words. Raises: ConfigError for a package that is missing, RunError."""
    try:
        yield
    except MaskserveError:
        raise
    except ImportError as error:
        raise ConfigError(
            f"{address} needs a package that is not here ({first_line(error)}): install the extra [batch], or that package."
        ) from error
    except Exception as error:  # each file system has its own
        refused = isinstance(error, PermissionError) or "credential" in type(error).__name__.lower()
        why = "the credentials were refused or are missing" if refused else "the store cannot be reached or read"
        raise RunError(
            f"{address}: {why} ({first_line(error)}). Once that is mended, the same command goes on from here."
        ) from error
