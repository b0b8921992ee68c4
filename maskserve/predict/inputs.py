"""Finds the images of a run and reads them. Local folders and files are read directly, everything else through fsspec."""

import glob
import io
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from maskserve.predict.dataset_folder import select_images
from maskserve.predict.unread import ARCHIVE_SUFFIXES, UnreadFiles
from models.archive_limits import check_zip_member, check_zip_total
from models.errors import ConfigError, DataError, MaskserveError, RunError, first_line, quoted
from models.imaging.decode import IMAGE_SUFFIXES
from models.imaging.files import check_file_size, check_is_file, read_image_file
from models.readers import SAMPLE_SUFFIXES, SIGNAL_SUFFIXES, VOLUME_SUFFIXES
from models.readers.archive import DICOM_SUFFIXES, pack_folder
from models.readers.wfdb import HEADER_SUFFIX, pack_record

ARCHIVE_SUFFIX = ".zip"
ALL_VOLUME_SUFFIXES = VOLUME_SUFFIXES | SAMPLE_SUFFIXES | frozenset({".tif", ".tiff", ARCHIVE_SUFFIX})
READ_SUFFIXES = {
    "HW": IMAGE_SUFFIXES | SAMPLE_SUFFIXES,
    "T": SIGNAL_SUFFIXES,
    "DHW": ALL_VOLUME_SUFFIXES,
}  # by the axes of the model
LIST_SUFFIXES = frozenset({".txt", ".lst", ".csv", ".tsv", ".json"})
TABLE_SUFFIXES = (".csv", ".tsv")
LABELS_OF = re.compile(r"\.(labels|events)$", re.IGNORECASE)  # the end of the stem of a label file
CHANNEL = re.compile(r"(.+)_(\d{4})(\.nii|\.nii\.gz|\.nrrd)")  # a file of one channel of a volume
FIRST_CHANNEL = re.compile(r"(.+)_0000(\.nii|\.nii\.gz|\.nrrd)")
NOUNS = {"HW": "image", "T": "recording", "DHW": "volume"}  # by axes
GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class InputRoot:
    """A location that contains images: an absolute folder, or a URL for fsspec, possibly chained (`a://x::b://y`)."""

    address: str

    @property
    def is_remote(self) -> bool:
        """Whether fsspec reads it."""
        return "://" in self.address

    def full_address(self, name: str) -> str:
        """The address of an image; `name` is its path below the root."""
        head, chain, rest = self.address.partition("::")
        return f"{head}{'' if head.endswith('/') else '/'}{name}{chain}{rest}"

    def read(self, name: str) -> bytes:
        """Read an image. Raises: DataError if this image cannot be read; RunError if the store or folder cannot."""
        if not self.is_remote:
            try:
                return read_image_file(Path(self.address, name))
            except OSError as error:
                if not Path(self.address).is_dir():
                    raise RunError(
                        f"The folder {self.address} has disappeared. Once it is back, the same command resumes."
                    ) from error
                raise DataError(f"{self.full_address(name)}: cannot be opened ({error.strerror}).") from error
        with self._open_remote(name) as (filesystem, path):
            check_size(self.full_address(name), filesystem, path)
            data: bytes = filesystem.cat_file(path)
            return data

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """An image as a local file, for formats that are read in parts. Raises: as `read`."""
        if not self.is_remote:
            file = Path(self.address, name)
            try:
                check_is_file(file)
            except OSError as error:
                raise DataError(f"{self.full_address(name)}: cannot be opened ({error.strerror}).") from error
            yield file
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / PurePosixPath(name).name
            copy.write_bytes(b"")
            with self._open_remote(name) as (filesystem, path):
                check_size(self.full_address(name), filesystem, path, in_memory=False)
                filesystem.get_file(path, str(copy))
            yield copy

    @contextmanager
    def _open_remote(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system of an image and its path there. Translates errors of the block. Raises: DataError, RunError."""
        address = self.full_address(name)
        with translate_store_errors(address):
            filesystem, folder = open_filesystem(self.address)
            with translate_item_errors(address):
                yield filesystem, f"{folder}/{name}" if folder else name


class InputImage(NamedTuple):
    """One image. Its root is shared with other images: there may be a million."""

    root: InputRoot
    name: str  # path below the root, with /; also the path of its mask below the output, but for the suffix

    @property
    def path(self) -> str:
        """The full address, the image's key in the manifest. It is valid text even if the name is not UTF-8."""
        return self.root.full_address(self.name).encode("utf-8", "backslashreplace").decode()

    def read(self) -> bytes:
        """The bytes of its file; of a WFDB record, a zip file of the header and the signal files; of a folder, of its slices; of a
        volume in several files, of its channels.

        Raises: as `InputRoot.read`.
        """
        if not self.root.is_remote and Path(self.root.address, self.name).is_dir():
            try:
                return pack_folder(Path(self.root.address, self.name))
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror}).") from error
        if match := FIRST_CHANNEL.fullmatch(self.name):
            return self._read_channels(match[1], match[2])
        if not self.name.lower().endswith(HEADER_SUFFIX):
            return self.root.read(self.name)
        folder = PurePosixPath(self.name).parent

        def read_beside(name: str) -> bytes:
            if "/" in name or "\\" in name or name in (".", ".."):
                raise DataError(f"{self.path}: names the signal file {quoted(name)}, which is not a file beside it.")
            return self.root.read(str(folder / name))

        return pack_record(PurePosixPath(self.name).name, read_beside)

    def _read_channels(self, stem: str, suffix: str) -> bytes:
        """The files `STEM_0000`, `STEM_0001` ... as a zip file; the only one as it is."""
        first = self.root.read(self.name)
        if self.root.is_remote or not Path(self.root.address, f"{stem}_0001{suffix}").is_file():
            return first
        buffer, channel = io.BytesIO(), 0
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            while Path(self.root.address, f"{stem}_{channel:04}{suffix}").is_file():
                name = f"{stem}_{channel:04}{suffix}"
                archive.writestr(f"{channel:04}{suffix}", self.root.read(name) if channel else first)
                channel += 1
        return buffer.getvalue()


def find_images(
    sources: Iterable[str], exclude: str = "", unread: UnreadFiles | None = None, axes: str = "HW"
) -> Iterator[InputImage]:
    """The images of each source, sorted within a folder. `exclude`: a folder or URL whose content is skipped.

    `axes`: of the model; for one of signals, the recordings of each source; for one of volumes, its volumes, of which a zip file
    and a folder of DICOM images are one each.
    `unread` gets the other files. A pipe or a device with the name of an image is an image: reading it is an error of its own.
    Raises: DataError for a source without images, RunError for a store that cannot be reached.
    """
    for source in (source.removeprefix("file://") for source in sources):
        skipped = UnreadFiles(axes)
        suffixes = READ_SUFFIXES[axes]
        root, names = (
            _find_remote(source, exclude, skipped, suffixes)
            if _is_remote(source, axes)
            else _find_local(source, Path(exclude) if exclude else None, skipped, suffixes)
        )
        if axes == "T":
            names = without_labels(names)
        if axes == "DHW" and not root.is_remote:
            names = without_further_channels(names)
        if not names:
            noun, found = NOUNS[axes], f" ({'; '.join(skipped.messages())})" if skipped.messages() else ""
            raise DataError(
                f"{source} contains no {noun}{found}; expected files ending in {', '.join(sorted(suffixes))}."
            )
        if unread is not None:
            unread.update(skipped)
        for name in names:
            if PurePosixPath(name).is_absolute() or {"..", "."} & set(name.split("/")):
                raise DataError(
                    f"{source} contains a file named {quoted(name)}, whose mask would be written outside the output."
                )
            yield InputImage(root, name)


def without_labels(names: list[str]) -> list[str]:
    """The recordings without their labels: `a.csv` beside `a.edf`, and `a.labels.csv` or `a.events.csv` beside `a.csv`."""
    stems = {name: os.path.splitext(name)[0] for name in names}
    recordings = {stem for name, stem in stems.items() if not name.lower().endswith(TABLE_SUFFIXES)}

    def is_label(name: str) -> bool:
        base = LABELS_OF.sub("", stems[name])
        if base != stems[name]:
            return base in stems.values()
        return name.lower().endswith(TABLE_SUFFIXES) and base in recordings

    return [name for name in names if not is_label(name)]


def without_further_channels(names: list[str]) -> list[str]:
    """The volumes without the files of their further channels, as nnU-Net names them: `a_0001.nii.gz` beside `a_0000.nii.gz`."""
    known = set(names)

    def is_further(name: str) -> bool:
        match = CHANNEL.fullmatch(name)
        return bool(match and match[2] != "0000" and f"{match[1]}_0000{match[3]}" in known)

    return [name for name in names if not is_further(name)]


def strip_suffix(name: str, axes: str) -> str:
    """The name of an image without its suffix, of a volume without `_0000`; a folder of DICOM images keeps its name."""
    if axes == "DHW" and (match := FIRST_CHANNEL.fullmatch(name)):
        return match[1]
    if name.lower().endswith(".nii.gz"):
        return name[: -len(".nii.gz")]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in READ_SUFFIXES[axes] else name


def _is_remote(source: str, axes: str) -> bool:
    is_archive = axes != "DHW" and source.lower().endswith(ARCHIVE_SUFFIX) and Path(source).is_file()
    return "://" in source or "::" in source or is_archive


def _find_local(
    source: str, exclude: Path | None, unread: UnreadFiles, suffixes: frozenset[str]
) -> tuple[InputRoot, list[str]]:
    path = Path(os.path.abspath(source))
    if path.is_dir():
        if unread.axes == "DHW" and _has_dicom(file.name for file in path.iterdir()):
            return InputRoot(str(path.parent)), [path.name]
        files = _list_images(path, exclude, unread, suffixes)
        layout, images = select_images(path, files) if unread.axes == "HW" else ("", files)
        if len(images) < len(files):
            unread.masks.append(
                f"{source} is a data set ({layout}): its {len(images):,} images are segmented, not its "
                f"{len(files) - len(images):,} masks"
            )
        return InputRoot(str(path)), [file.relative_to(path).as_posix() for file in images]
    if os.path.lexists(path):
        _check_is_image_file(source, path, suffixes)
        return InputRoot(str(path.parent)), [path.name]
    if not GLOB_CHARACTERS & set(source):
        raise DataError(f"{source} does not exist; expected an image, a folder, a glob, a zip file or a URL of these.")
    folder = Path(*_parts_before_glob(path.parts))
    files = []
    for file in map(Path, glob.iglob(str(path), recursive=True)):
        if file.is_dir() or (exclude and file.is_relative_to(exclude)):
            continue
        if _is_image(file.name, suffixes):
            files.append(file)
        else:
            unread.add(file.name)
    return InputRoot(str(folder)), [file.relative_to(folder).as_posix() for file in sorted(files)]


def _check_is_image_file(source: str, path: Path, suffixes: frozenset[str]) -> None:
    """Check that a file that is named as a source is no archive and no list. Raises: DataError."""
    suffix = path.suffix.lower()
    if suffix in ARCHIVE_SUFFIXES - suffixes and not path.name.lower().endswith(".nii.gz"):  # decoding names a volume
        raise DataError(
            f"{source} is an archive; only zip files are read. Unpack it and name its folder, or make a zip file."
        )
    if suffix in LIST_SUFFIXES - suffixes:
        raise DataError(
            f"{source} is no image. To segment the images that it lists, name them: maskserve predict MODEL $(cat {source}) ..."
        )


def _list_images(folder: Path, exclude: Path | None, unread: UnreadFiles, suffixes: frozenset[str]) -> list[Path]:
    images = []
    for parent, folders, files in os.walk(folder, onerror=unread.add_error):
        folders[:] = [name for name in folders if Path(parent, name) != exclude]
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                unread.add_link(Path(parent, name))
        if unread.axes == "DHW" and _has_dicom(files):
            images.append(Path(parent))
            continue
        for name in files:
            if _is_image(name, suffixes):
                images.append(Path(parent, name))
            else:
                unread.add(name)
    return sorted(images)


def _is_image(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a file has one of the suffixes and is not one of macOS's companion files (`._*`)."""
    suffix = ".nii.gz" if name.lower().endswith(".nii.gz") else os.path.splitext(name)[1].lower()
    return suffix in suffixes and not name.rpartition("/")[2].startswith("._")


def _has_dicom(names: Iterable[str]) -> bool:
    return any(os.path.splitext(name)[1].lower() in DICOM_SUFFIXES for name in names)


def _find_remote(
    source: str, exclude: str, unread: UnreadFiles, suffixes: frozenset[str]
) -> tuple[InputRoot, list[str]]:
    url = source if "://" in source or "::" in source else os.path.abspath(source)
    if url.lower().endswith(ARCHIVE_SUFFIX) and "::" not in url:
        url = f"zip://::{url}"
    with translate_store_errors(source):
        head, chain, rest = url.partition("::")
        scheme, _, path = head.partition("://")
        parts = _parts_before_glob(path.split("/"))
        is_glob = len(parts) < len(path.split("/"))
        base = f"{scheme}://{'/'.join(parts)}"
        filesystem, folder = open_filesystem(base + chain + rest)
        if is_glob:
            names = filesystem.glob(open_filesystem(url)[1])
        elif folder and filesystem.isfile(folder):
            return InputRoot(f"{scheme}://{'/'.join(parts[:-1])}" + chain + rest), [parts[-1]]
        else:
            names = filesystem.find(folder)
        root = InputRoot(base + chain + rest)
        if scheme == "zip":
            check_zip_total(source, filesystem.zip)
        names = [name.removeprefix(folder).lstrip("/") for name in sorted(names)]
        names = [name for name in names if not (exclude and root.full_address(name).startswith(f"{exclude}/"))]
        for name in names:
            if not _is_image(name, suffixes) and "." in name.rpartition("/")[2]:  # a glob finds folders too
                unread.add(name)
        return root, [name for name in names if _is_image(name, suffixes)]


def check_size(address: str, filesystem: Any, path: str, in_memory: bool = True) -> None:
    """Check the size of an object or an archive's member before it is read. Raises: DataError."""
    archive = getattr(filesystem, "zip", None)
    member = archive.NameToInfo.get(path) if isinstance(archive, zipfile.ZipFile) else None
    if in_memory:
        check_file_size(address, member.file_size if member else filesystem.info(path).get("size") or 0)
    if member:
        check_zip_member(address, member)


def _parts_before_glob(parts: "tuple[str, ...] | list[str]") -> list[str]:
    """A path's parts before the first that contains a glob character."""
    first = next((index for index, part in enumerate(parts) if GLOB_CHARACTERS & set(part)), len(parts))
    return list(parts[:first])


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. Only archives are cached: a run may take days, and stores change."""
    return _open_archive(url) if "::" in url else _open_filesystem(url)


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    filesystem, path = fsspec.url_to_fs(url)
    return filesystem, path.rstrip("/")


# Opening an archive reads its whole table: 0.4 s for each image of 50,000. fsspec locks its reads.
_open_archive = lru_cache(maxsize=16)(_open_filesystem)


@contextmanager
def translate_item_errors(address: str) -> Iterator[None]:
    """Translates errors of a single object or archive member; lets others pass. Raises: DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{address}: no longer exists.") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{address}: cannot be unpacked ({first_line(error)}).") from error
    except RuntimeError as error:  # zipfile raises it for an encrypted member
        if "encrypted" not in str(error):
            raise
        raise DataError(f"{address}: is encrypted.") from error
    except OSError as error:  # of S3: no access to this object, or it is in cold storage
        code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
        if code not in ("AccessDenied", "InvalidObjectState"):
            raise
        raise DataError(f"{address}: the store denied access ({code}).") from error


@contextmanager
def translate_store_errors(address: str) -> Iterator[None]:
    """Translates errors of a store. Raises: ConfigError for a missing package, RunError for all others."""
    try:
        yield
    except MaskserveError:
        raise
    except zipfile.BadZipFile as error:
        raise RunError(f"{address} is not a zip file, or is incomplete. Copy or download it again.") from error
    except ImportError as error:
        raise ConfigError(
            f"{address} needs a package that is not installed ({first_line(error)}): install it, or the extra [batch]."
        ) from error
    except Exception as error:  # each file system has its own
        refused = isinstance(error, PermissionError) or "credential" in type(error).__name__.lower()
        problem = "credentials are missing or were refused" if refused else "the store cannot be reached or read"
        raise RunError(
            f"{address}: {problem} ({first_line(error)}). Once this is fixed, the same command resumes."
        ) from error
