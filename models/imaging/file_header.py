"""Facts from the header of an image file."""

import io
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from models.errors import DataError
from models.imaging.call_decoder import is_sandboxed
from models.imaging.cpu_budget import allow_pixels
from models.imaging.decode import FORMATS, decode_file
from models.imaging.files import check_is_file
from models.imaging.orientation import read_orientation

# A PNG must be decoded to find its orientation, which may come after the pixels; few PNGs have one.
PNG_ORIENTATION_MARKERS = (b"eXIf", b"exif", b"rientation")
WEBP_START = 64  # bytes, which say whether a WebP is lossless


class FileHeader(NamedTuple):
    """The header of an image file, read without decoding it."""

    format: str = ""  # Pillow's name, such as JPEG; empty if the header is invalid, which the decoder reports better
    width: int = 0  # pixels, as stored
    height: int = 0
    orientation: int = 1  # EXIF orientation, 1 to 8; 1 is upright
    lossy: bool = False

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> FileHeader:
    """The header in an image's bytes; empty if it is invalid."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format == "PNG" and any(marker in data for marker in PNG_ORIENTATION_MARKERS):
                allow_pixels(image.width * image.height)
                with suppress(Exception):  # corrupt pixels
                    image.load()
            return _header_of(image, data[:WEBP_START])
    except Exception:
        return FileHeader()


def read_file_header(path: Path) -> FileHeader:
    """As `read_header`, of a file: all of it is read only if the sandbox is on. Raises: DataError if it cannot be opened."""
    if is_sandboxed():
        return decode_file(path, read_header)
    try:
        check_is_file(path)
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot open the file ({error.strerror}).") from error
    with file:
        start = file.read(WEBP_START)
        file.seek(0)
        try:
            with Image.open(file, formats=FORMATS) as image:
                return _header_of(image, start)
        except Exception:
            return FileHeader()


def _header_of(image: Image.Image, start: bytes) -> FileHeader:
    """`start`: the first bytes of the file."""
    return FileHeader(image.format or "", *image.size, read_orientation(image), _is_lossy(image, start))


def _is_lossy(image: Image.Image, start: bytes) -> bool:
    """Whether the file is lossy. AVIF can be lossless, but its colors pass through YUV."""
    if image.format == "WEBP":
        return b"VP8L" not in start
    return image.format in ("JPEG", "AVIF") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
